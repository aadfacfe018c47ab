"""Causal language models as pure functions of parameters and embeddings."""
