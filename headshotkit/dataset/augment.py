"""Augmentation: another copy of a crop, turned and scaled a little, or mirrored. Off by default.

No face is symmetric, so a mirrored picture shows somebody else: it harms identity (arXiv:2505.03557). Of 40 real
faces the similarity to the photo is 0.981 by ArcFace and 0.863 by dlib when mirrored, 0.994 and 0.955 when turned by
4 degrees (Face Research Lab London Set). A turned picture is resampled twice, so a little softer.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from headshotkit.core import runtime
from headshotkit.dataset.crops import Window

MAX_ANGLE = 4.0
"""Largest turn of a picture, degrees to either side."""
MIN_ZOOM, MAX_ZOOM = 0.9, 1.1
"""Smallest and largest scale of a picture's content."""


def draw_turn(seed: int, name: str) -> tuple[float, float]:
    """Draw the angle in degrees and the zoom of a picture: its own for each name, the same on every machine.

    Returns: (angle in [-MAX_ANGLE, MAX_ANGLE], zoom in [MIN_ZOOM, MAX_ZOOM]).

    >>> draw_turn(0, "a_0") == draw_turn(0, "a_0"), draw_turn(0, "a_0") == draw_turn(1, "a_0")
    (True, False)
    """
    rng = np.random.default_rng(runtime.seed_for(seed, zlib.crc32(name.encode("utf-8", "surrogateescape"))))
    return float(rng.uniform(-MAX_ANGLE, MAX_ANGLE)), float(rng.uniform(MIN_ZOOM, MAX_ZOOM))


@dataclass(frozen=True)
class Turn:
    """A turned window: its middle (x, y) and size, px of the photo, and its angle in degrees.

    A positive angle turns the content counter-clockwise.
    """

    middle: tuple[float, float]
    width: float
    height: float
    angle: float

    def place(self, points: np.ndarray) -> np.ndarray:
        """Map points of the photo, px, shape (N, 2), into the window, px of the photo's scale."""
        cos, sin = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        turned = (np.atleast_2d(points) - self.middle) @ np.array([[cos, -sin], [sin, cos]])
        return turned + [self.width / 2, self.height / 2]

    def place_box(self, box: np.ndarray) -> np.ndarray:
        """Return the box of a face after the turn, shape (4,): that of an oval, as a face does not fill its corners."""
        cos, sin = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        a, b = (box[2] - box[0]) / 2, (box[3] - box[1]) / 2
        reach = np.array([math.hypot(a * cos, b * sin), math.hypot(a * sin, b * cos)])
        middle = self.place((box[:2] + box[2:]) / 2)[0]
        return np.concatenate([middle - reach, middle + reach])


def turned_window(window: Window, box: np.ndarray, photo: tuple[int, int], angle: float, zoom: float) -> Turn | None:
    """Return a window turned and scaled, inside the photo, with the whole face; None if the photo is too tight.

    A tight photo gets half the angle, or a quarter.

    Args:
        box: the face's x0, y0, x1, y1, px of the photo.
        photo: its (width, height) px.
        angle: degrees, -45 to 45.
        zoom: how much larger the content gets; up to MAX_ZOOM if a tight photo makes the window smaller.
    """
    left, top, width, height = window
    for share in (1.0, 0.5, 0.25):
        turn, scale = angle * share, 1 + (zoom - 1) * share
        cos, sin = math.cos(math.radians(turn)), abs(math.sin(math.radians(turn)))
        reach = np.array([width * cos + height * sin, width * sin + height * cos]) / 2 / scale
        shrink = min(1.0, *(np.array(photo) / 2 / reach))
        reach *= shrink
        middle = np.clip([left + width / 2, top + height / 2], reach, np.array(photo) - reach)
        made = Turn(tuple(middle.tolist()), width / scale * shrink, height / scale * shrink, turn)
        seen = made.place_box(np.clip(box, 0, [*photo, *photo]))
        if (
            scale / shrink <= MAX_ZOOM
            and (seen[:2] >= -1).all()
            and (seen[2:] <= [made.width + 1, made.height + 1]).all()
        ):
            return made
    return None


def cut_turned(image: np.ndarray, turn: Turn, size: tuple[int, int]) -> Image.Image:
    """Cut a turned window from a photo and scale it to a size (width, height) px.

    Args:
        image: RGB, uint8, shape (H, W, 3).
    """
    reach = math.hypot(turn.width, turn.height) / 2 + 2
    x0, y0 = (max(0, math.floor(m - reach)) for m in turn.middle)
    x1, y1 = (math.ceil(m + reach) for m in turn.middle)
    around = Image.fromarray(image[y0:y1, x0:x1])
    x, y = turn.middle[0] - x0, turn.middle[1] - y0
    upright = around.rotate(turn.angle, Image.Resampling.BICUBIC, center=(x, y))
    box = (x - turn.width / 2, y - turn.height / 2, x + turn.width / 2, y + turn.height / 2)
    limits = (0, 0, *around.size)
    box = tuple(float(np.clip(v, limits[i % 2], limits[2 + i % 2])) for i, v in enumerate(box))
    return upright.resize(size, Image.Resampling.LANCZOS, box=box)
