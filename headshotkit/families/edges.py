"""Edges of a picture, as a ControlNet reads them, and how well another picture follows them."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

LOW, HIGH = 60, 150
"""Canny's thresholds on the gradient of 8-bit brightness: an edge begins at HIGH and goes on down to LOW."""
REACH_PX = 1
"""Largest distance at which an edge still counts as matched, px."""


def find_edges(picture: Image.Image, size_px: tuple[int, int] | None = None) -> Image.Image:
    """Return white edges on black, one px wide.

    Args:
        picture: RGB.
        size_px: (width, height) to resize it to first, as thin lines don't survive scaling; None: as it is.
    Source: Canny 1986, doi:10.1109/TPAMI.1986.4767851, as in OpenCV.
    """
    import cv2

    picture = picture if size_px in (None, picture.size) else picture.resize(size_px, Image.Resampling.LANCZOS)
    lines = cv2.Canny(np.asarray(picture.convert("L")), LOW, HIGH)
    return Image.fromarray(lines).convert("RGB")


def edge_agreement(picture: Image.Image, edges: Image.Image) -> float:
    """Return how well a picture has the wanted edges: F1 of the edge px that lie within REACH_PX of each other.

    Args:
        picture: RGB, any size; it is resized to the edges' size.
        edges: as `find_edges` returns them.
    Returns: in [0, 1], unitless; higher is more alike; 0 if either has no edges.
    Source: Martin et al. 2004, doi:10.1109/TPAMI.2004.1273918, with a fixed reach in place of their matching.

    >>> lines = Image.new("RGB", (8, 8))
    >>> edge_agreement(Image.new("RGB", (8, 8), "red"), lines)
    0.0
    """
    wanted, there = (np.asarray(e.convert("L")) > 0 for e in (edges, find_edges(picture, edges.size)))
    if not (wanted.any() and there.any()):
        return 0.0
    precision, recall = there[_near(wanted)].sum() / there.sum(), wanted[_near(there)].sum() / wanted.sum()
    return round(float(2 * precision * recall / (precision + recall)), 4) if precision + recall else 0.0


def _near(lines: np.ndarray) -> np.ndarray:
    """Return a mask of the px within REACH_PX of a line."""
    thick = Image.fromarray(lines.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(2 * REACH_PX + 1))
    return np.asarray(thick) > 0
