"""Hand over the accepted headshots."""
