"""Meshes and layouts, parts of a batch, options of the compiler."""
