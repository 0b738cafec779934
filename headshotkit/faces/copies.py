"""Detect a headshot that copies a photo: compare the fine structure of aligned faces, whatever their colours.

A recogniser can't: a copy and a good headshot both show the person. A copy has the same shadows, brows and hairs in
the same places; no other photo of the person and no drawn picture has.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headshotkit.faces import recognition
from headshotkit.faces.measures import LUMA

SIDE_PX = 96
FACE_SHARE = 0.6
"""Side of ArcFace's square relative to a face crop, which so includes hair and chin."""
TEMPLATE = ((recognition.ARCFACE_TEMPLATE - 0.5) * FACE_SHARE + 0.5).astype(np.float32)
Y, X = np.mgrid[:SIDE_PX, :SIDE_PX]
OVAL = ((X - 48) / 26) ** 2 + ((Y - 50) / 32) ** 2 < 1
"""The face's area; hair and background can be cut off or changed."""
COMPARED_PX = (0.6, 2.0)
"""Details between these two sizes (standard deviations of Gaussians) are compared: larger ones are common to all
portraits of that pose, smaller ones get lost when a picture is shrunk."""
LAID_PX = ((2.5, 8.0, 5), (1.2, 4.0, 3), (0.7, 2.5, 1))
"""Detail sizes for the alignment to a photo's face, from coarse to fine, and the smoothing of each, px, odd."""
EDGE_PX = 9
"""Width of the square that must lie inside the picture for its middle to be compared."""
LEAST_SEEN = 0.3
"""Least fraction of the oval that both pictures must show for a comparison."""
CANDIDATES = 4
"""Number of most similar photos to align."""


def face_crop(image: np.ndarray, face: recognition.Face) -> np.ndarray:
    """Return a face's crop for the comparison: luma, upright, of one size; float32, shape (SIDE_PX, SIDE_PX).

    Pixels outside of the picture are NaN.

    Args:
        image: RGB, uint8, shape (H, W, 3).
    """
    crop = recognition.align_face(image, face.points, SIDE_PX, TEMPLATE).astype(np.float32) @ LUMA
    inside = recognition.align_face(np.full_like(image, 255), face.points, SIDE_PX, TEMPLATE)[..., 0] > 250
    return np.where(inside, crop, np.float32(np.nan))


def copy_likeness(crop: np.ndarray, photos: Sequence[np.ndarray]) -> float:
    """Compute the largest similarity of a face's fine structure to a photo's, mirrored or not; lower is better.

    It is the correlation of luma between two sizes of detail, with local contrast normalised, so colour, brightness and
    contrast have no effect. The face is aligned to the photo's first, so rotation and stretching have none.

    Args:
        crop: of the headshot, by `face_crop`. photos: those of the photos, or none.
    Returns: in [-1, 1]; a copy is near 1. Figures: tests/benchmarks/README.md.
    Source: ECC image alignment, Evangelidis and Psarakis 2008; local contrast normalisation, Jarrett et al. 2009.
    """
    coarse = [_structure(photo, *LAID_PX[0][:2]) for photo in photos]
    best = -1.0
    for turned in (crop, np.ascontiguousarray(crop[:, ::-1])):
        seen = _structure(turned, *LAID_PX[0][:2])
        alike = [_correlation(seen, photo) for photo in coarse]
        for place in np.argsort(alike)[::-1][:CANDIDATES]:
            laid = _laid_over(turned, photos[place])
            best = max(best, _correlation(_structure(laid, *COMPARED_PX), _structure(photos[place], *COMPARED_PX)))
    return round(best, 4)


def _structure(luma: np.ndarray, fine_px: float, coarse_px: float) -> np.ndarray:
    """Return luma between two sizes of detail, with even local contrast, float32; NaN near and outside the edge."""
    import cv2

    inside = np.isfinite(luma)
    filled = np.where(inside, luma, luma[inside].mean() if inside.any() else 0).astype(np.float32)
    detail = cv2.GaussianBlur(filled, (0, 0), fine_px) - cv2.GaussianBlur(filled, (0, 0), coarse_px)
    contrast = np.sqrt(cv2.GaussianBlur(detail * detail, (0, 0), coarse_px))
    near = cv2.erode(inside.astype(np.uint8), np.ones((EDGE_PX, EDGE_PX), np.uint8), borderValue=0)
    return np.where(near > 0, detail / (contrast + 2), np.nan).astype(np.float32)


def _laid_over(crop: np.ndarray, photo: np.ndarray) -> np.ndarray:
    """Return the crop, aligned to the photo's structure by an affine map; unchanged if they share no structure."""
    import cv2

    matrix = np.eye(2, 3, dtype=np.float32)
    ends = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 1e-4)
    for fine_px, coarse_px, smooth_px in LAID_PX:
        pair = (_structure(photo, fine_px, coarse_px), _structure(crop, fine_px, coarse_px))
        mask = (OVAL & np.isfinite(pair[0]) & np.isfinite(pair[1])).astype(np.uint8)
        try:
            _, matrix = cv2.findTransformECC(
                *(np.nan_to_num(one) for one in pair), matrix, cv2.MOTION_AFFINE, ends, mask, smooth_px
            )
        except cv2.error:  # no common structure
            break
    inside, how = np.isfinite(crop), {"flags": cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP}
    filled = np.where(inside, crop, crop[inside].mean() if inside.any() else 0).astype(np.float32)
    laid = cv2.warpAffine(filled, matrix, crop.shape[::-1], **how)
    return np.where(cv2.warpAffine(inside.astype(np.float32), matrix, crop.shape[::-1], **how) > 0.9, laid, np.nan)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Compute Pearson's correlation within the face's oval, where both show it; -1 if that is too little."""
    both = OVAL & np.isfinite(one) & np.isfinite(other)
    if both.sum() < LEAST_SEEN * OVAL.sum():
        return -1.0
    a, b = (values[both] - values[both].mean() for values in (one, other))
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum() + 1e-9))
