"""Draw headshots until enough are accepted."""
