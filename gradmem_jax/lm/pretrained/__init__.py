"""Checkpoints of pretrained language models, read and written."""
