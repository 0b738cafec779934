"""Cut a face into an upright square for a restorer, and paste the restored one back without a seam."""

from __future__ import annotations

import numpy as np

from headshotkit.faces import measures, recognition

SIDE_PX = 512
TEMPLATE = np.array(
    [[192.98138, 239.94708], [318.90277, 240.1936], [256.63416, 314.01935], [201.26117, 371.41043],
     [313.08905, 371.15118]], np.float32,
) / np.float32(SIDE_PX)  # fmt: skip
"""CodeFormer's positions of eyes, nose and mouth corners, in fractions of its 512 px square (facexlib's template)."""
FEATHER = 0.06
"""Width of the soft edge around a restored face, in fractions of the square's side."""
MOST_GRAIN = 6.0
"""Largest standard deviation of added grain, grey levels."""


def aligned_face(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return a face, upright, in the restorers' square; beyond the picture's border its edge pixels are repeated.

    Args:
        image: RGB, uint8, shape (H, W, 3). points: px, shape (5, 2).
    Returns: RGB, uint8, shape (512, 512, 3).
    """
    matrix = recognition.template_transform(points, SIDE_PX, TEMPLATE)
    corners = np.array([[0, 0], [SIDE_PX, 0], [0, SIDE_PX], [SIDE_PX, SIDE_PX]], float)
    placed = (corners - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    size = np.array(image.shape[1::-1])
    before = np.clip(np.ceil(-placed.min(0)), 0, size).astype(int)
    after = np.clip(np.ceil(placed.max(0) - size), 0, size).astype(int)
    wide = np.pad(image, ((before[1], after[1]), (before[0], after[0]), (0, 0)), mode="edge")
    return recognition.align_face(wide, points + before, SIDE_PX, TEMPLATE)


def paste_back(image: np.ndarray, face: np.ndarray, aligned: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Paste a restored face where it was cut, with the colour and grain of its surroundings and a soft edge.

    What is pasted is the difference that restoring made. So a restorer that changes nothing changes no pixel, and
    detail finer than the square's stays.

    Args:
        image: RGB, uint8, shape (H, W, 3).
        face: restored, RGB, uint8, shape (512, 512, 3).
        aligned: what the restorer was given, by `aligned_face`.
        points: the face's points in the image, px, shape (5, 2).
    Returns: RGB, uint8, shape (H, W, 3); outside of the mask every pixel is the image's own.
    """
    import cv2

    matrix = recognition.template_transform(points, SIDE_PX, TEMPLATE)
    change = matched(face, aligned).astype(np.float32) - aligned
    shrink = float(np.hypot(*matrix[:, 0]))
    if shrink > 1.5:  # the face is smaller in the picture: a warp samples single pixels, so smooth them first
        change = cv2.GaussianBlur(change, (0, 0), 0.45 * shrink)
    back, size = cv2.invertAffineTransform(matrix), (image.shape[1], image.shape[0])
    soft = cv2.warpAffine(face_mask(), back, size)[..., None]
    laid = cv2.warpAffine(change, back, size, flags=cv2.INTER_LINEAR)
    return (image + laid * soft).round().clip(0, 255).astype(np.uint8)


def face_mask() -> np.ndarray:
    """Return the weight of a restored face in its square: 1 inside, falling to 0 at the edge; float32, (512, 512)."""
    import cv2

    edge = int(FEATHER * SIDE_PX)
    mask = np.zeros((SIDE_PX, SIDE_PX), np.float32)
    mask[2 * edge : -2 * edge, 2 * edge : -2 * edge] = 1
    return cv2.GaussianBlur(mask, (0, 0), edge / 2)


def matched(face: np.ndarray, aligned: np.ndarray) -> np.ndarray:
    """Return a restored face with the mean and the spread of each colour of the given one, and at least its grain.

    Grain is measured beside the face, where the given picture stays as it is. Its noise comes from a fixed seed.

    Args:
        face, aligned: RGB, uint8, shape (512, 512, 3).
    Source: Reinhard et al. 2001, Color transfer between images; in RGB, within the mask.
    """
    if np.array_equal(face, aligned):
        return face
    inside = face_mask() > 0.5
    made, given = face.astype(np.float32), aligned.astype(np.float32)
    for channel in range(3):
        target, own = given[..., channel][inside], made[..., channel][inside]
        gain = np.clip(float(target.std()) / max(float(own.std()), 1.0), 0.8, 1.25)
        made[..., channel] = (made[..., channel] - own.mean()) * gain + target.mean()
    lacking = measures.noise_in(aligned, ~inside) ** 2 - measures.noise_in(face, inside) ** 2
    if lacking > 0:
        strength = min(lacking**0.5, MOST_GRAIN)
        made += np.random.default_rng(0).normal(0, strength, made.shape[:2]).astype(np.float32)[..., None]
    return made.round().clip(0, 255).astype(np.uint8)
