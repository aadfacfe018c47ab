"""What a training step would take on a machine that is not there."""
