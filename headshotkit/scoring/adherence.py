"""Measure prompt adherence: whether a headshot shows what its prompt asks, by landmarks and background colour.

The request is read from the bank's brief prompt: gaze direction, smile, and a plain background. What can't be
measured (a blurred office, clothes, light) does not count, neither for a picture nor against it.
"""

from __future__ import annotations

import numpy as np

from headshotkit.faces import traits
from headshotkit.families.expressions import NEUTRAL, SMILING

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


def shown_by(image: np.ndarray, points: np.ndarray, landmarks: np.ndarray) -> dict[str, str]:
    """Return what a headshot shows, axis -> value, for all axes that can be measured.

    Args:
        image: RGB, uint8, shape (H, W, 3).
        points: the detector's five points of its face, px, shape (5, 2).
        landmarks: insightface's 106 landmarks of it, px, shape (106, 2).
    """
    yaw, _, _ = traits.head_pose(landmarks)
    return {
        "direction": traits.side_of(yaw, traits.ASIDE_DEG) or "camera",
        "expression": "smile" if traits.smile(points) >= traits.SMILE else "neutral",
        "background": traits.background(image).colour or "other",
    }


def prompt_adherence(asked: dict[str, str], shown: dict[str, str]) -> float | None:
    """Return the share of what is asked that is shown, in [0, 1]; None if nothing is asked that can be measured.

    >>> prompt_adherence({"direction": "left", "expression": "smile"}, {"direction": "left", "expression": "neutral"})
    0.5
    """
    return sum(shown.get(axis) == value for axis, value in asked.items()) / len(asked) if asked else None
