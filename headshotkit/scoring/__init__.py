"""Measure how good a picture is, and whether it shows the person."""
