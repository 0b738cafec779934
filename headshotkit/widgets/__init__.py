"""Notebook controls, thin over the verbs."""
