"""The outer loop: its step, losses, evaluation and optimizer."""
