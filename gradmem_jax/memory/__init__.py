"""Ways to write a context into a memory."""
