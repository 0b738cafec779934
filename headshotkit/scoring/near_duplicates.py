"""Find near-duplicates: two headshots that are nearly the same picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

SMALL_PX = 32


def small_copy(picture: Image.Image) -> np.ndarray:
    """Return a small grey copy, of mean 0 and standard deviation 1, float32, shape (SMALL_PX, SMALL_PX)."""
    grey = np.asarray(picture.convert("L").resize((SMALL_PX, SMALL_PX), Image.Resampling.BOX), np.float32)
    return (grey - grey.mean()) / max(float(grey.std()), 1e-6)


class Album:
    """The accepted headshots so far, by name, to find a near-duplicate of a new one.

    >>> album, one = Album(), Image.linear_gradient("L")
    >>> album.add("a.png", one)
    >>> album.nearest(one), album.nearest(one.rotate(180))
    ((1.0, 'a.png'), (-1.0, 'a.png'))
    """

    def __init__(self) -> None:
        self.copies: dict[str, np.ndarray] = {}

    def add(self, name: str, picture: Image.Image) -> None:
        self.copies[name] = small_copy(picture)

    def nearest(self, picture: Image.Image) -> tuple[float, str]:
        """Return the largest correlation with a headshot of the album, in [-1, 1], and its name; (-1, "") if empty."""
        small = small_copy(picture)
        alike = [(round(float((small * other).mean()), 4), name) for name, other in self.copies.items()]
        return max(alike, default=(-1.0, ""))
