"""Models opened, contexts written into memory, questions answered from it."""
