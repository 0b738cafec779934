"""What is measured on a photo or a headshot: pure functions, each with its unit, its range and its source.

Aligned faces are RGB, uint8, shape (FACE_PX, FACE_PX, 3), turned upright by `faces.align_face`, so that a limit holds
for any size of picture.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from headshotkit import faces

FACE_PX = 128
LEFT_EYE, RIGHT_EYE = slice(33, 43), slice(87, 97)
"""Places of the eyes' outlines among the 106 landmarks."""


def _skin(aligned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Luma of an aligned face, float32 (H, W), and the oval that holds skin, bool (H, W)."""
    luma = aligned.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    y, x = np.mgrid[: luma.shape[0], : luma.shape[1]] / luma.shape[0]
    return luma, ((x - 0.5) / 0.33) ** 2 + ((y - 0.56) / 0.42) ** 2 < 1


def sharpness(aligned: np.ndarray) -> float:
    """Detail of the face: mean absolute Laplacian for a contrast of 50 grey levels; higher is sharper, about 5 to 18.

    Divided by the face's own contrast, so that dim or pale light does not count as blur.

    Source: Pertuz et al. 2013, Analysis of focus measure operators (LAP family).
    """
    luma, oval = _skin(aligned)
    edges = 4 * luma[1:-1, 1:-1] - luma[:-2, 1:-1] - luma[2:, 1:-1] - luma[1:-1, :-2] - luma[1:-1, 2:]
    return float(np.abs(edges)[oval[1:-1, 1:-1]].mean() / max(luma[oval].std(), 8.0) * 50)


def brightness(aligned: np.ndarray) -> float:
    """Median luma of the face, 0 to 255."""
    luma, oval = _skin(aligned)
    return float(np.median(luma[oval]))


def clipped(aligned: np.ndarray) -> float:
    """Fraction of the face that is pure white (luma above 250), in [0, 1]; lower is better."""
    luma, oval = _skin(aligned)
    return float((luma[oval] > 250).mean())


def eye_contrast(aligned: np.ndarray) -> float:
    """Median luma of the band over both eyes relative to the cheeks below; about 0.6 to 1, near 0 when covered."""
    luma, _ = _skin(aligned)
    eyes = faces.ARCFACE_TEMPLATE[:2] * len(luma)
    top, left, right = int(eyes[:, 1].mean()), int(eyes[0, 0]), int(eyes[1, 0])
    band = luma[top - 7 : top + 7, left - 12 : right + 12]
    cheeks = luma[int(0.625 * len(luma)) : int(0.75 * len(luma)), 30:98]
    return float(np.median(band) / max(float(np.median(cheeks)), 1.0))


def eye_openness(landmarks: np.ndarray) -> float:
    """Height of the wider open eye relative to its width; about 0.2 to 0.45 open, below 0.12 closed.

    Args:
        landmarks: shape (106, 2), px.
    Source: eye aspect ratio, Soukupova and Cech 2016.
    """
    sides = [np.ptp(landmarks[eye], axis=0) for eye in (LEFT_EYE, RIGHT_EYE)]
    return float(max(height / max(width, 1e-6) for width, height in sides))


def face_inside(points: np.ndarray, width_px: int, height_px: int) -> float:
    """Fraction of the face's square that lies inside the picture, in [0, 1]; 1 is all of it.

    Args:
        points: the face's five points, px, shape (5, 2).
    """
    side = 28
    matrix = faces.template_transform(points, side)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) + 0.5
    places = (grid - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    return float(((places >= 0) & (places < [width_px, height_px])).all(1).mean())


def difference_hash(image: np.ndarray) -> np.ndarray:
    """64 bits that nearly equal pictures share: which of neighbouring cells of a 9 x 8 grid is brighter.

    Args:
        image: RGB, uint8, shape (H, W, 3).
    Returns: bool, shape (64,).
    """
    cells = np.asarray(Image.fromarray(image).convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    return (np.diff(cells, axis=1) > 0).ravel()
