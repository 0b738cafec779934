"""Fit a run into the time and the memory that there are."""
