"""Provide notebook controls, thin wrappers of the verbs."""
