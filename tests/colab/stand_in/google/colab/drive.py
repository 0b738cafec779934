"""Stands in for Colab's Drive."""

from pathlib import Path


def mount(mountpoint: str) -> None:
    """Makes the folder that a mounted Drive has, in the working folder, which is /content on Colab."""
    assert mountpoint == "/content/drive"
    Path("drive", "MyDrive").mkdir(parents=True, exist_ok=True)
