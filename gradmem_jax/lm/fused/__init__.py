"""Causal attention in fused kernels that is differentiated twice."""
