"""Measuring time, memory and communication."""
