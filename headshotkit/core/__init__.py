"""The run folder, its records and locks, errors, and the machine."""

__version__ = "0.1.0"
