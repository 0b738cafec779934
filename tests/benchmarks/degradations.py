"""Spoils a portrait in eleven ways, each in graded strength: what the gate's limits are calibrated on.

Strengths are relative to the face's size, so that they mean the same on any photo.
"""

from __future__ import annotations

import io
import zlib

import cv2
import numpy as np
from PIL import Image

from headshotkit.faces.recognition import Face

STRENGTHS: dict[str, tuple[float, ...]] = {
    "blur": (0.005, 0.01, 0.02, 0.03, 0.045, 0.065, 0.09),  # sigma / width of the face
    "motion": (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.45),  # length of the streak / width of the face
    "dark": (0.6, 0.35, 0.2, 0.1, 0.05, 0.025, 0.012),  # factor on linear light, then a camera's noise and 8 bit
    "bright": (1.5, 2, 3, 4.5, 7, 11, 18),  # factor on linear light, clipped
    "pale": (0.6, 0.4, 0.25, 0.15, 0.08, 0.05, 0.03),  # contrast that is left
    "noise": (4, 10, 20, 35, 55, 80, 120),  # sigma in grey levels
    "jpeg": (70, 40, 20, 10, 5, 2, 1),  # quality
    "small": (120, 90, 64, 45, 32, 22, 15),  # width of the face, px
    "covered": (0.08, 0.15, 0.25, 0.35, 0.45, 0.6, 0.8),  # fraction of the face behind a plain patch
    "turned": (10, 25, 40, 60, 90, 135, 180),  # degrees in the picture's plane
    "cut": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),  # fraction of the face beyond the picture's edge
}


def degrade(image: np.ndarray, face: Face, kind: str, strength: float, seed: int = 0) -> np.ndarray:
    """A spoiled copy.

    Args:
        image: RGB, uint8, shape (H, W, 3).
        face: the face that strengths are relative to.
        kind, strength: a key of STRENGTHS and a value of its scale.
        seed: of noise, direction and place.
    Returns: RGB, uint8; its size differs for small and cut.
    """
    rng = np.random.default_rng([seed, zlib.crc32(kind.encode()), int(1000 * strength)])
    return np.ascontiguousarray(WAYS[kind](image, face, strength, rng))


def _blur(image, face, strength, rng):
    return cv2.GaussianBlur(image, (0, 0), strength * face.width_px)


def _motion(image, face, strength, rng):
    side = max(3, round(strength * face.width_px)) | 1
    kernel = np.zeros((side, side), np.float32)
    angle, reach = rng.uniform(0, np.pi), side / 2
    ends = [(round(side / 2 + s * reach * np.cos(angle)), round(side / 2 + s * reach * np.sin(angle))) for s in (-1, 1)]
    cv2.line(kernel, *ends, 1.0)
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE)


def _exposed(image, face, strength, rng):
    """Light times `strength`; what is dark also gets the noise of a sensor that lacks light."""
    linear = (image / 255.0) ** 2.2 * strength
    linear += rng.normal(0, 0.002, image.shape) * (strength < 1)
    return (np.clip(linear, 0, 1) ** (1 / 2.2) * 255).round().astype(np.uint8)


def _pale(image, face, strength, rng):
    return (127 + (image.astype(np.float32) - 127) * strength).round().astype(np.uint8)


def _noise(image, face, strength, rng):
    return np.clip(image + rng.normal(0, strength, image.shape), 0, 255).astype(np.uint8)


def _jpeg(image, face, strength, rng):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=int(strength))
    return np.asarray(Image.open(buffer).convert("RGB"))


def _small(image, face, strength, rng):
    scale = strength / face.width_px
    size = [max(8, round(side * scale)) for side in image.shape[1::-1]]
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX if scale < 0.5 else 1))


def _covered(image, face, strength, rng):
    """A patch in front of the face from one side: a bar over the eyes, a mask, a hand, a phone."""
    made = image.copy()
    x0, y0, x1, y1 = face.box
    width, height = x1 - x0, y1 - y0
    side = rng.choice(["eyes", "mouth", "left", "right"])
    skin = np.median(image[int(y0 + 0.5 * height) : int(y0 + 0.7 * height), int(x0) : int(x1)].reshape(-1, 3), 0)
    plain = np.array([[15, 15, 18], [60, 110, 170], [225, 225, 222], skin * rng.uniform(0.8, 1.05)])
    colour = plain[rng.integers(len(plain))]
    if side == "eyes":
        middle = face.points[:2, 1].mean()
        y0, y1 = middle - strength * height / 2, middle + strength * height / 2
    elif side == "mouth":
        y0 = y1 - strength * height
    elif side == "left":
        x1 = x0 + strength * width
    else:
        x0 = x1 - strength * width
    top, bottom, left, right = (max(0, int(v)) for v in (y0, y1, x0, x1))
    patch = np.broadcast_to(colour, (*made[top:bottom, left:right].shape[:2], 3))
    made[top:bottom, left:right] = np.clip(patch + rng.normal(0, 3, patch.shape), 0, 255)
    return made


def _turned(image, face, strength, rng):
    middle = tuple(float(v) for v in face.points.mean(0))
    matrix = cv2.getRotationMatrix2D(middle, strength, 1.0)
    return cv2.warpAffine(image, matrix, image.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)


def _cut(image, face, strength, rng):
    x0, y0, x1, y1 = (int(v) for v in face.box)
    width, height = x1 - x0, y1 - y0
    return {
        0: image[:, int(x0 + strength * width) :],
        1: image[:, : int(x1 - strength * width)],
        2: image[int(y0 + strength * height) :],
        3: image[: int(y1 - strength * height)],
    }[int(rng.integers(4))]


WAYS = {
    "blur": _blur, "motion": _motion, "dark": _exposed, "bright": _exposed, "pale": _pale, "noise": _noise,
    "jpeg": _jpeg, "small": _small, "covered": _covered, "turned": _turned, "cut": _cut,
}  # fmt: skip
