"""Fit a run into the available time and memory."""
