"""Measure prompt adherence: whether a headshot shows what its prompt asks, by landmarks and background colour.

The request is read from the bank's brief prompt: gaze direction, smile, and a plain background. What can't be
measured (a blurred office, clothes, light) does not count, neither for a picture nor against it.
"""

from __future__ import annotations

import numpy as np

from headshotkit.faces import landmarks, measures
from headshotkit.families.expressions import NEUTRAL, SMILING
from headshotkit.photos.coverage import SMILE

TURNED_DEG = 7.0
"""Yaw from which a face looks to a side; the embedded base's own benchmark uses the same."""
DARK_L, WHITE_L = 28.0, 72.0
"""Lightness (CIELAB) of the upper corners below which a background is dark, and above which it is white. Of 16 pictures
of the bare embedded base dark ones had 6, grey ones 50 to 52, white ones 79 to 96."""
COLOURLESS = 12.0
"""Distance of the upper corners' colour from grey in CIELAB beyond which they are neither grey nor white; those of 16
pictures had at most 4, blurred rooms and parks 10 to 28."""
WORDS = {
    "looking left": ("direction", "left"),
    "looking right": ("direction", "right"),
    "looking at the camera": ("direction", "camera"),
    SMILING: ("expression", "smile"),
    NEUTRAL: ("expression", "neutral"),
    "plain white background": ("background", "white"),
    "grey studio background": ("background", "grey"),
    "dark background": ("background", "dark"),
}
"""Phrase of a prompt -> (axis, value that it asks for). Left and right are the viewer's."""


def asked_of(prompt: str) -> dict[str, str]:
    """Return what a prompt asks for that can be measured: axis -> value; empty if nothing can.

    >>> asked_of("photo of ohwx man, smiling, looking left, blurred office background, soft light")
    {'direction': 'left', 'expression': 'smile'}
    """
    return {axis: value for words, (axis, value) in WORDS.items() if words in prompt}


def shown_by(image: np.ndarray, points: np.ndarray) -> dict[str, str]:
    """Return what a headshot shows, axis -> value, for all axes that can be measured.

    Args:
        image: RGB, uint8, shape (H, W, 3).
        points: insightface's 106 landmarks of its face, px, shape (106, 2).
    """
    yaw, _, _ = landmarks.head_pose(points)
    return {
        "direction": "camera" if abs(yaw) < TURNED_DEG else "right" if yaw > 0 else "left",
        "expression": "smile" if landmarks.smile(points) >= SMILE else "neutral",
        "background": _background(image),
    }


def _background(image: np.ndarray) -> str:
    """Return white, grey, dark, or other, by the colour of the upper corners."""
    light, a, b = measures.backdrop_lab(image)
    if light < DARK_L:
        return "dark"
    if np.hypot(a, b) > COLOURLESS:
        return "other"
    return "white" if light > WHITE_L else "grey"


def prompt_adherence(asked: dict[str, str], shown: dict[str, str]) -> float | None:
    """Return the share of what is asked that is shown, in [0, 1]; None if nothing is asked that can be measured.

    >>> prompt_adherence({"direction": "left", "expression": "smile"}, {"direction": "left", "expression": "neutral"})
    0.5
    """
    return sum(shown.get(axis) == value for axis, value in asked.items()) / len(asked) if asked else None
