"""Changes that make a face another one in a small way, planted to see whether the measures of honesty catch them.

Pictures are RGB, uint8, shape (H, W, 3), with one face.
"""

from __future__ import annotations

import cv2
import numpy as np

from headshotkit.faces import recognition
from headshotkit.faces.colours import IRIS_CENTRES, LIDS
from headshotkit.faces.landmarks import OUTLINE


def recoloured(image: np.ndarray, a: float = -8.0, b: float = -14.0) -> np.ndarray:
    """Shift the irises' colour in CIELAB, by default from brown to blue."""
    marks, planted = _marks(image)[1], image.astype(np.float32) / 255
    centres = marks[list(IRIS_CENTRES)]
    radius = 0.09 * float(np.linalg.norm(centres[1] - centres[0]))
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    lids, iris = np.zeros(image.shape[:2], np.uint8), np.zeros(image.shape[:2], bool)
    for centre, outline in zip(centres, LIDS, strict=True):
        cv2.fillPoly(lids, [np.round(marks[list(outline)]).astype(np.int32)], 1)
        iris |= np.hypot(x - centre[0], y - centre[1]) <= radius
    lab = cv2.cvtColor(planted, cv2.COLOR_RGB2LAB)
    lab[iris & (lids > 0)] += np.float32([0, a, b])
    return _picture(lab)


def lightness_of(degrees: float, light: float, yellow: float) -> float:
    """Return by how much L rises so that the angle arctan((L - 50) / b) of a skin tone rises by so many degrees."""
    return 50 + yellow * float(np.tan(np.arctan2(light - 50, yellow) + np.radians(degrees))) - light


def lightened(image: np.ndarray, more: float) -> np.ndarray:
    """Raise the lightness (CIELAB) of the face's skin; eyes stay."""
    return _picture(_lab(image) + np.float32([more, 0, 0]) * _skin_mask(image, _marks(image)[1])[..., None])


def narrowed(image: np.ndarray, percent: float = 4.0) -> np.ndarray:
    """Squeeze the picture across, as a wrong aspect does."""
    height, width = image.shape[:2]
    return cv2.resize(image, (round(width * (1 - percent / 100)), height), interpolation=cv2.INTER_AREA)


def slimmed(image: np.ndarray, percent: float = 4.0) -> np.ndarray:
    """Pull the cheeks in below the eyes, as a filter does; eyes, nose and mouth stay nearly as they are."""
    marks = _marks(image)[1]
    outline = marks[OUTLINE]
    middle, half = outline.mean(0), np.ptp(outline[:, 0]) / 2
    y, x = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
    across = (x - middle[0]) / half
    fades = np.exp(-(((np.abs(across) - 1) / 0.45) ** 2)) * np.exp(-(((y - middle[1]) / (1.3 * half)) ** 2))
    moved = x + np.sign(across) * (percent / 100) * half * fades
    return cv2.remap(image, moved.astype(np.float32), y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def with_glasses(image: np.ndarray, thickness: float = 0.04) -> np.ndarray:
    """Draw dark frames around the eyes; `thickness` in eye distances."""
    marks, planted = _marks(image)[1], image.copy()
    eyes = marks[list(IRIS_CENTRES)]
    apart, dark = eyes[1] - eyes[0], (30, 25, 25)
    far = float(np.linalg.norm(apart))
    thick = max(1, round(thickness * far))
    for eye in eyes:
        middle = tuple(int(v) for v in np.round(eye + [0, 0.03 * far]))
        cv2.ellipse(planted, middle, (int(0.36 * far), int(0.27 * far)), 0, 0, 360, dark, thick, cv2.LINE_AA)
    bridge = [tuple(int(v) for v in eyes[0] + part * apart) for part in (0.36, 0.64)]
    cv2.line(planted, *bridge, dark, thick, cv2.LINE_AA)
    return planted


def _marks(image: np.ndarray) -> tuple[recognition.Face, np.ndarray]:
    face = recognition.detect_faces(image)[0]
    return face, recognition.landmarks_106(image, face)


def _lab(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def _picture(lab: np.ndarray) -> np.ndarray:
    return np.round(np.clip(cv2.cvtColor(lab.astype(np.float32), cv2.COLOR_LAB2RGB), 0, 1) * 255).astype(np.uint8)


def _skin_mask(image: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """Return where the face's skin is, in [0, 1], with soft edges: its hull and forehead, without the eyes."""
    outline = marks[OUTLINE]
    eyes = marks[list(IRIS_CENTRES)].mean(0)
    hull = np.concatenate([outline, 2 * eyes - outline[outline[:, 1] > eyes[1]]])  # the forehead mirrors the chin
    mask = np.zeros(image.shape[:2], np.float32)
    cv2.fillConvexPoly(mask, cv2.convexHull(np.round(hull).astype(np.int32)), 1.0)
    away = np.zeros(image.shape[:2], np.float32)
    for lids in LIDS:
        cv2.fillPoly(away, [np.round(marks[list(lids)]).astype(np.int32)], 1.0)
    far = float(np.linalg.norm(np.subtract(*marks[list(IRIS_CENTRES)])))
    mask = cv2.GaussianBlur(mask, (0, 0), 0.05 * far) * (1 - cv2.dilate(away, np.ones((3, 3))))
    return np.clip(mask, 0, 1)
