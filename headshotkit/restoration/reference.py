"""Lay a photo of the person over a headshot, feature on feature, so that a restorer can see what it has to repair.

The photo is bent by its landmarks: a thin-plate spline moves each landmark to its place in the headshot.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from headshotkit.faces import recognition
from headshotkit.restoration.harm import sharpness_of

UNKNOWN = 128
"""Grey of the pixels of which the photo says nothing."""
STIFFNESS = 1e-3
"""How much the spline prefers an even map to meeting each landmark; eye distances squared."""
ANCHORS, ANCHORS_AT = 12, 2.6
"""Number of points around the face that move with the whole face only, and their distance, in eye distances."""
STEP_PX = 8
"""The spline is computed for every so many px and interpolated in between."""
OVAL = (0.0, -0.15), (1.9, 2.4)
"""Middle and radii of the oval that holds the head, in eye distances, from the middle of eyes and mouth."""
FEATHER = 0.12
"""Width of the oval's soft edge, of its radii."""
EYES, MOUTH = (slice(33, 43), slice(87, 97)), slice(52, 72)
"""Places of eyes and mouth among the 106 landmarks."""
ENOUGH = 1.3
"""A photo is near enough if its landmarks are at most so many times as far off as the nearest photo's."""


@dataclass(frozen=True)
class Photo:
    """A photo of the person: its name, RGB, uint8, its 106 landmarks in px, and how sharp its face is."""

    name: str
    picture: np.ndarray
    marks: np.ndarray
    sharpness: float


def photo_of(picture: np.ndarray, face: recognition.Face, name: str = "") -> Photo:
    """Measure a photo so that it can serve as a reference."""
    return Photo(name, picture, recognition.landmarks_106(picture, face), sharpness_of(picture, face))


def choose_photo(photos: list[Photo], marks: np.ndarray) -> Photo:
    """Return the photo whose direction and expression are most like a headshot's; the sharpest of the near ones.

    Args:
        marks: the headshot's 106 landmarks, px.
    """
    away = np.array([np.sqrt(np.square(moved(photo.marks, marks) - marks).sum(1).mean()) for photo in photos])
    near = [photo for photo, distance in zip(photos, away, strict=True) if distance <= ENOUGH * away.min()]
    return max(near, key=lambda photo: photo.sharpness)


def moved(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return points after the rotation, scale and shift that bring them nearest to the target, both (N, 2), px."""
    turn, shift = _similarity(points, target)
    return points @ turn.T + shift


def laid_over(photo: np.ndarray, source: np.ndarray, target: np.ndarray, side: int) -> np.ndarray:
    """Return a photo bent so that its landmarks lie on a headshot's, RGB, uint8, (side, side, 3); grey off the head.

    Args:
        photo: RGB, uint8, (H, W, 3). source: its 106 landmarks, px.
        target: the headshot's, px of the result.
    Source: thin-plate splines, Bookstein 1989.
    """
    middle, eyes = _frame(target)
    angles = np.arange(ANCHORS) * 2 * np.pi / ANCHORS
    anchors = middle + ANCHORS_AT * eyes * np.stack([np.cos(angles), np.sin(angles)], 1)
    turn, shift = _similarity(target, source)
    knots = (np.concatenate([target, anchors]) - middle) / eyes
    goals = np.concatenate([source, anchors @ turn.T + shift])
    count = len(knots)
    system = np.zeros((count + 3, count + 3))
    system[:count, :count] = _bend(knots, knots) + STIFFNESS * np.eye(count)
    system[:count, count:] = np.column_stack([np.ones(count), knots])
    system[count:, :count] = system[:count, count:].T
    weights = np.linalg.solve(system, np.concatenate([goals, np.zeros((3, 2))]))
    cells = side // STEP_PX + 1
    ramp = np.linspace(0, side, cells) - 0.5
    grid = (np.stack(np.meshgrid(ramp, ramp), -1).reshape(-1, 2) - middle) / eyes
    coarse = _bend(grid, knots) @ weights[:count] + np.column_stack([np.ones(len(grid)), grid]) @ weights[count:]
    where = _between(coarse.reshape(cells, cells, 2).astype(np.float32), side)
    shrinks = float(np.sqrt(abs(np.linalg.det(turn))))
    soft = cv2.GaussianBlur(photo, (0, 0), 0.35 * shrinks) if shrinks > 1.25 else photo
    bent = cv2.remap(soft, where, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=(UNKNOWN,) * 3)
    share = _head(middle, eyes, target, side)[..., None]
    return (UNKNOWN + (bent - np.float32(UNKNOWN)) * share).round().astype(np.uint8)


def _similarity(points: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 2x2 matrix and the shift that bring points nearest to the target."""
    p, q = points - points.mean(0), target - target.mean(0)
    size = max(float((p**2).sum()), 1e-9)
    a, b = (p * q).sum() / size, (p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]).sum() / size
    turn = np.array([[a, -b], [b, a]])
    return turn, target.mean(0) - turn @ points.mean(0)


def _frame(marks: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the middle of eyes and mouth, px, and the distance of the eyes, px."""
    left, right = (marks[eye].mean(0) for eye in EYES)
    return ((left + right) / 2 + marks[MOUTH].mean(0)) / 2, max(float(np.linalg.norm(right - left)), 1.0)


def _bend(points: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Return the spline's kernel r^2 log r between points and knots, (N, K)."""
    squares = np.square(points[:, None] - knots[None]).sum(-1)
    return 0.5 * squares * np.log(np.maximum(squares, 1e-12))


def _between(coarse: np.ndarray, side: int) -> np.ndarray:
    """Return a map of every STEP_PX px for each px: float32, (side, side, 2)."""
    steps = (np.arange(side, dtype=np.float32) + 0.5) / STEP_PX
    columns, rows = np.meshgrid(steps, steps)
    return cv2.remap(coarse, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _head(middle: np.ndarray, eyes: float, marks: np.ndarray, side: int) -> np.ndarray:
    """Return the oval around the head, float32, (side, side), 1 inside and 0 outside."""
    left, right = (marks[eye].mean(0) for eye in EYES)
    across = (right - left) / max(float(np.linalg.norm(right - left)), 1e-6)
    ramp = np.arange(side, dtype=np.float32)
    x, y = np.meshgrid((ramp - middle[0]) / eyes, (ramp - middle[1]) / eyes)
    (u, v), (wide, high) = OVAL
    along, down = x * across[0] + y * across[1] - u, y * across[0] - x * across[1] - v
    radius = np.sqrt((along / wide) ** 2 + (down / high) ** 2)
    return ((1 + FEATHER / 2 - radius) / FEATHER).clip(0, 1).astype(np.float32)
