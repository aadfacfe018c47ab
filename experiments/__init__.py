"""Programs: train, evaluate, benchmark."""
