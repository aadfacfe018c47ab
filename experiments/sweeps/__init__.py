"""Sweeps, lists of runs for experiments/sweep.py: one file each, which defines get_runs().

`run_list` is what they are made of, `sweep_file` reads and checks them, `runner` trains their runs.
"""
