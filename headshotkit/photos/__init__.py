"""Judge a folder of photos and keep the best."""
