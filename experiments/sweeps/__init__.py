"""Lists of runs for experiments/sweep.py, one file a sweep."""
