"""Samples: tasks as random-access sources, tokenizers and the input pipeline."""
