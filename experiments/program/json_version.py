"""The version of the JSON files that programs write; docs/json_files.md says what is in them."""

VERSION = 1  # files without a version are from before 2026-12 and have the same fields
