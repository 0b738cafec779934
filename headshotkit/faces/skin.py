"""Measures of the skin of a face: its tone and its texture. Pure functions.

Aligned faces are RGB, uint8, shape (SKIN_PX, SKIN_PX, 3), turned upright by `recognition.align_face`.
"""

from __future__ import annotations

import numpy as np

from headshotkit.faces import measures, recognition, traits

SKIN_PX = 512
PATCHES = ((0.5, 0.68, 0.22, 0.36), (0.5, 0.68, 0.64, 0.78), (0.16, 0.28, 0.36, 0.64))
"""Cheeks and forehead: top, bottom, left, right in fractions of the aligned square."""
BANDS_PX = {"pores": (0.8, 1.6), "freckles": (1.6, 4.0)}
"""Bands of detail: standard deviations of the two blurs whose difference is the band, px of the aligned square."""


def tone(aligned: np.ndarray) -> np.ndarray:
    """Compute the median colour of cheeks and forehead in CIELAB, float32, shape (3,)."""
    return np.median(traits.to_lab(_pixels(aligned)), 0)


def tone_rgb(aligned: np.ndarray) -> np.ndarray:
    """Compute the median colour of cheeks and forehead, RGB in [0, 255], float64, shape (3,)."""
    return np.median(_pixels(aligned), 0)


def texture(aligned: np.ndarray) -> dict[str, float]:
    """Compute the energy of the skin's detail by band, percent of its brightness; about 0.3 to 3, near 0 if smoothed.

    Returns: for each of BANDS_PX the standard deviation of luma in that band relative to the mean luma, in percent;
        the median over cheeks and forehead, because hair or a hand covers one at most.
    """
    import cv2

    luma = aligned.astype(np.float32) @ measures.LUMA
    found = {}
    for name, (fine, coarse) in BANDS_PX.items():
        band = cv2.GaussianBlur(luma, (0, 0), fine) - cv2.GaussianBlur(luma, (0, 0), coarse)
        shares = [
            100 * float(part.std()) / max(float(light.mean()), 1.0)
            for part, light in zip(_patches(band), _patches(luma), strict=True)
        ]
        found[name] = float(np.median(shares))
    return found


def aligned_skin(image: np.ndarray, face: recognition.Face) -> np.ndarray:
    """Return a face in the square that `tone` and `texture` measure."""
    return recognition.align_face(image, face.points, SKIN_PX)


def shows_texture(face: recognition.Face) -> bool:
    """Return whether a face is large enough for its texture: its square is not an enlargement by more than a third."""
    return float(np.hypot(*recognition.template_transform(face.points, SKIN_PX)[:, 0])) < 4 / 3


def _pixels(aligned: np.ndarray) -> np.ndarray:
    """Return the pixels of cheeks and forehead, shape (N, 3)."""
    return np.concatenate([patch.reshape(-1, 3) for patch in _patches(aligned)])


def _patches(plane: np.ndarray) -> list[np.ndarray]:
    side = len(plane)
    return [plane[int(t * side) : int(b * side), int(x0 * side) : int(x1 * side)] for t, b, x0, x1 in PATCHES]
