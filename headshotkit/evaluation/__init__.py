"""Measure how good a run is, and plot it."""
