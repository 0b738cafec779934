"""Stands in for Colab's own package, which can't be had: enough of it for the first two cells of a notebook."""

from google.colab import drive

__all__ = ["drive"]
