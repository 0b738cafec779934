"""Measure the colours by which people know each other: of the eyes and of the hair, in CIELAB.

CIELAB is L in [0, 100], a and b about -100 to 100, as in `traits.to_lab`. Light and white balance change a colour
from photo to photo, so compare medians over several photos.
"""

from __future__ import annotations

import numpy as np

from headshotkit.faces import landmarks, recognition
from headshotkit.faces.traits import to_lab

IRIS_CENTRES = (38, 88)
"""Indices of the irises' centres among the 106 landmarks."""
LIDS = (35, 41, 40, 42, 39, 37, 33, 36), (89, 95, 94, 96, 93, 91, 87, 90)
"""Indices of the left and the right eye's outline among the 106 landmarks, in order around the eye."""
DISC = 0.07
"""Radius of the disc within an iris, in eye distances: an iris is about 0.09, a pupil 0.03."""
MIDDLE_LIGHTS = (25, 70)
"""Percentiles of L between which the iris is measured: the pupil is darker, highlights and sclera are brighter."""
SCLERA_FROM = 0.11
"""Distance from an iris's centre, in eye distances, from which the white of the eye is seen."""
MIN_WHITE, WHITEST = 6, 60
"""Fewest pixels of an eye's white that are measured, and the percentile of brightness above which they count: below it
are lashes and shadow."""
MIN_PIXELS = 10
MIN_OPENNESS = 0.14
"""Least height of an open eye relative to its width, as in `landmarks.eye_openness`."""
HAIR_UP, HAIR_ACROSS = (1.35, 1.5, 1.65, 1.8), (-0.7, -0.45, -0.2, 0.0, 0.2, 0.45, 0.7)
"""Spots over and beside the forehead, in distances from mouth to eyes, counted from between the eyes."""
MIN_HAIR_SPOTS = 8


def iris_discs(marks: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the pixels within both irises that lie between the lids, left eye first, as (rows, columns).

    An eye whose disc holds fewer than MIN_PIXELS pixels, because it is closed or small, has empty arrays.

    Args:
        marks: the 106 landmarks, px, shape (106, 2).
    """
    import cv2

    centres = marks[list(IRIS_CENTRES)]
    radius = DISC * float(np.linalg.norm(centres[1] - centres[0]))
    discs = []
    for centre, outline in zip(centres, LIDS, strict=True):
        corner = np.floor(centre - radius).astype(int) - 1
        side = int(2 * radius) + 4
        y, x = np.mgrid[:side, :side] + corner[::-1, None, None]
        lids = np.zeros((side, side), np.uint8)
        cv2.fillPoly(lids, [np.round(marks[list(outline)] - corner).astype(np.int32)], 1)
        inside = (np.hypot(x - centre[0], y - centre[1]) <= radius) & (lids > 0)
        inside &= inside.sum() >= MIN_PIXELS
        discs.append((y[inside], x[inside]))
    return discs


def eye_colour(picture: np.ndarray, face: recognition.Face) -> np.ndarray | None:
    """Compute the mean colour of both irises in CIELAB, float32, shape (3,); None if it can't be measured.

    None means that the eyes are closed, hidden by the picture's border, or so small that an iris has few pixels. Pupil,
    highlights and sclera are left out. Only the eyes that can be measured count.

    Args:
        picture: RGB, uint8, shape (H, W, 3).
        face: a face that was detected in it.
    """
    return iris_colour(picture, recognition.landmarks_106(picture, face))


def iris_colour(picture: np.ndarray, marks: np.ndarray) -> np.ndarray | None:
    """Return `eye_colour` of a face whose 106 landmarks are known, px, shape (106, 2)."""
    if landmarks.eye_openness(marks) < MIN_OPENNESS:
        return None
    colours = []
    for rows, columns in iris_discs(marks):
        if not len(rows) or min(rows.min(), columns.min()) < 0:
            continue
        if rows.max() >= picture.shape[0] or columns.max() >= picture.shape[1]:
            continue
        lab = to_lab(picture[rows, columns])
        dark, bright = np.percentile(lab[:, 0], MIDDLE_LIGHTS)
        colours.append(lab[(lab[:, 0] >= dark) & (lab[:, 0] <= bright)].mean(0))
    return np.mean(colours, 0).astype(np.float32) if colours else None


def eye_white(picture: np.ndarray, marks: np.ndarray) -> np.ndarray | None:
    """Compute the median colour of the whites of both eyes, RGB, float32, shape (3,), in [0, 255]; None if too small.

    Whites of eyes differ little from person to person, so this is the colour and strength of the light on a face.

    Args:
        picture: RGB, uint8, shape (H, W, 3).
        marks: the 106 landmarks, px, shape (106, 2).
    """
    import cv2

    centres, found = marks[list(IRIS_CENTRES)], []
    far = SCLERA_FROM * float(np.linalg.norm(centres[1] - centres[0]))
    for centre, outline in zip(centres, LIDS, strict=True):
        lids = np.zeros(picture.shape[:2], np.uint8)
        cv2.fillPoly(lids, [np.round(marks[list(outline)]).astype(np.int32)], 1)
        y, x = np.nonzero(lids)
        white = np.hypot(x - centre[0], y - centre[1]) > far
        if white.sum() >= MIN_WHITE:
            found.append(picture[y[white], x[white]])
    if not found:
        return None
    pixels = np.concatenate(found).astype(np.float32)
    light = pixels.mean(1)
    return np.median(pixels[light >= np.percentile(light, WHITEST)], 0)


def hair_colour(picture: np.ndarray, face: recognition.Face) -> np.ndarray | None:
    """Compute the median colour over and beside the forehead in CIELAB, float32, shape (3,); None if it is cut off.

    On a bald head that is the colour of the skin there.

    Args:
        picture: RGB, uint8, shape (H, W, 3).
        face: a face that was detected in it.
    """
    return crown_colour(picture, face.points)


def crown_colour(picture: np.ndarray, points: np.ndarray) -> np.ndarray | None:
    """Return `hair_colour` of a face whose five points are known, px, shape (5, 2)."""
    eyes = points[:2].mean(0)
    up = eyes - points[3:].mean(0)
    across = np.array([-up[1], up[0]])
    half = max(int(0.03 * float(np.linalg.norm(up))), 1)
    spots = []
    for u in HAIR_UP:
        for v in HAIR_ACROSS:
            x, y = np.round(eyes + up * u + across * v).astype(int)
            if half <= x < picture.shape[1] - half and half <= y < picture.shape[0] - half:
                spots.append(to_lab(picture[y - half : y + half + 1, x - half : x + half + 1]).mean(0))
    return np.median(spots, 0).astype(np.float32) if len(spots) >= MIN_HAIR_SPOTS else None
