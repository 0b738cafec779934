"""The run folder, its records and locks, errors, and the machine."""
