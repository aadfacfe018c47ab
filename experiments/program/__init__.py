"""What every program needs: start-up, devices, log, files."""
