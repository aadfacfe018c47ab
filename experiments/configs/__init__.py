"""Configurations, one file an experiment; see default.py for what every field means."""
