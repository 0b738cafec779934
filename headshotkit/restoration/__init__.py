"""Restore faces without changing who they are."""
