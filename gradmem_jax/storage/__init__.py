"""Files: checkpoints, memories, parameters, fingerprints."""
