"""Measures of a face's landmarks: eyes, mouth, and agreement of two landmark sets. Pure functions.

Head direction and smile are in `traits`. Landmarks are insightface's 106, px, float, shape (106, 2).
"""

from __future__ import annotations

import numpy as np

from headshotkit.faces import recognition
from headshotkit.faces.traits import MOUTH_CORNERS, NOSE_TIP, OUTER_EYES

LEFT_EYE, RIGHT_EYE = slice(33, 43), slice(87, 97)
"""Indices of the eyes' outlines among the 106 landmarks."""
INNER_LIPS = (62, 60)
OUTLINE = slice(0, 33)
"""Indices of the face's outline from temple to temple, by the chin, among the 106 landmarks."""


def eye_openness(landmarks: np.ndarray) -> float:
    """Compute the height of the wider open eye relative to its width; about 0.2 to 0.45 open, below 0.12 closed.

    Source: eye aspect ratio, Soukupova and Cech 2016.
    """
    return max(_openness(landmarks))


def wink(landmarks: np.ndarray) -> float:
    """Compute the difference of the eyes' openness, height relative to width; about 0 to 0.1, a wink above 0.2."""
    return float(abs(np.subtract(*_openness(landmarks))))


def _openness(landmarks: np.ndarray) -> list[float]:
    """Return the height of each eye relative to its width, however the head leans."""
    eyes = [landmarks[LEFT_EYE], landmarks[RIGHT_EYE]]
    x, y = eyes[1].mean(0) - eyes[0].mean(0)
    sides = [np.ptp(eye @ np.array([[x, -y], [y, x]]), axis=0) for eye in eyes]
    return [float(height / max(width, 1e-6)) for width, height in sides]


def mouth_open(landmarks: np.ndarray) -> float:
    """Compute the lips' gap relative to the mouth's width; 0 closed, 0.1 shows teeth, above 0.45 wide open."""
    gap, width = (np.linalg.norm(np.subtract(*landmarks[list(pair)])) for pair in (INNER_LIPS, MOUTH_CORNERS))
    return float(gap / max(width, 1e-6))


def face_width(landmarks: np.ndarray) -> float:
    """Compute the width of the face's outline relative to its height from the eyes to the chin; about 1.05 to 1.3.

    Width and height are measured along and across the line between the eyes, however the head leans.
    """
    from_eyes = landmarks - landmarks[list(OUTER_EYES)].mean(0)
    x, y = landmarks[OUTER_EYES[1]] - landmarks[OUTER_EYES[0]]
    turned = (from_eyes @ np.array([[x, -y], [y, x]]))[OUTLINE]
    return float(np.ptp(turned[:, 0]) / max(turned[:, 1].max(), 1e-6))


def disagreement(points: np.ndarray, landmarks: np.ndarray) -> float:
    """Return the largest distance between the detector's five points and the landmark model's, in eye distances.

    About 0.05 on a clear face. Two independently trained networks disagree if a face is covered, lies on its side or is
    unreadable. The mouth's corners count for two thirds, because a beard hides them.

    Args:
        points: the detector's five points, px, shape (5, 2).
    """
    own = [landmarks[LEFT_EYE].mean(0), landmarks[RIGHT_EYE].mean(0), landmarks[NOSE_TIP]]
    own += [landmarks[corner] for corner in MOUTH_CORNERS]
    eyes = max(float(np.linalg.norm(points[1] - points[0])), 1e-6)
    apart = np.linalg.norm(np.stack(own) - points, axis=1) * [1, 1, 1, 2 / 3, 2 / 3]
    return float(apart.max() / eyes)


def face_inside(points: np.ndarray, width_px: int, height_px: int) -> float:
    """Return the fraction of the face's square that lies inside the picture, in [0, 1]; 1 is all of it.

    Args:
        points: the face's five points, px, shape (5, 2).
    """
    side = 28
    matrix = recognition.template_transform(points, side)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) + 0.5
    positions = (grid - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    return float(((positions >= 0) & (positions < [width_px, height_px])).all(1).mean())
