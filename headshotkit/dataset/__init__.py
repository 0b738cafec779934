"""Make training pictures and their captions from kept photos."""
