"""The embedded base's own restorer: from its soft 256 px headshots to crisp ones of 512 px.

It was trained on what this base does wrong to a face, so it suits no other base. It knows who the person is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from headshotkit.core.errors import NotFinite
from headshotkit.core.run import sha256_of
from headshotkit.faces import colours, recognition
from headshotkit.faces.recognition import Face
from headshotkit.restoration.reference import UNKNOWN, Photo, choose_photo, laid_over

GIVEN_PX, MADE_PX = 256, 512
IRIS = 0.075, 0.105
"""Distance from an iris's centre, in eye distances, up to which its colour is changed, and from which it is not."""


def weights_of(folder: Path) -> tuple[Path | None, str]:
    """Return the restorer's folder and its weights' sha256; (None, "") if it has no weights."""
    file = folder / "restorer.safetensors"
    return (folder, sha256_of(file)) if file.is_file() else (None, "")


@dataclass(frozen=True)
class Embedded:
    """The loaded restorer.

    person: what its network gets to know about the person, float32, shape (P,) · photos: those that it may see · eyes:
    the photos' eye colour in CIELAB, None if it is not known.
    """

    net: object
    person: np.ndarray
    photos: list[Photo]
    eyes: np.ndarray | None = None
    name: str = "the embedded restorer"

    def of(self, image: np.ndarray, faces: list[Face]) -> Callable[[float], np.ndarray]:
        """Return a function that takes a fidelity and returns the whole picture at twice its size.

        Args:
            image: RGB, uint8, shape (256, 256, 3). The result has shape (512, 512, 3): at fidelity 0 it is the
                network's, at 1 the picture enlarged, in between a mix.
            faces: the person's; the network is told where the first one is, and restores the whole picture.
        Raises:
            NotFinite: the network returned NaN or infinity.
        """
        import torch

        device = next(self.net.parameters()).device
        with torch.no_grad():
            pixels = torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1).to(device)
            told = (torch.from_numpy(known)[None].to(device) for known in self.told(image, faces[0]))
            made = self.net(pixels, *told)[0]
        if not made.isfinite().all():
            raise NotFinite(
                "the restored face holds NaN or infinity.", "The restorer's weights are damaged.",
                "Reinstall headshotkit; the face stays as it is.",
            )  # fmt: skip
        full = (made.clamp(-1, 1).cpu().numpy().transpose(1, 2, 0) + 1) * 127.5
        if self.eyes is not None:
            scale = MADE_PX / GIVEN_PX
            face = replace(faces[0], box=faces[0].box * scale, points=faces[0].points * scale)
            full = with_eye_colour(full.round().astype(np.uint8), face, self.eyes).astype(np.float32)
        plain = enlarged(image).astype(np.float32)
        return lambda fidelity: (full + (plain - full) * fidelity).round().clip(0, 255).astype(np.uint8)

    def told(self, image: np.ndarray, face: Face) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return what the network is told besides the picture: the person, points of the face, a photo laid over it.

        Shapes (P,), (5, 2) and (3, 512, 512), float32; the photo's RGB is in [-1, 1], 0 where nothing is known.
        """
        laid = np.full((MADE_PX, MADE_PX, 3), UNKNOWN, np.uint8)
        if self.photos:
            marks, scale = recognition.landmarks_106(image, face), MADE_PX / GIVEN_PX
            chosen = choose_photo(self.photos, marks)
            laid = laid_over(chosen.picture, chosen.marks, (marks + 0.5) * scale - 0.5, MADE_PX)
        return self.person, face.points.astype(np.float32), laid.astype(np.float32).transpose(2, 0, 1) / 127.5 - 1

    def photo_for(self, image: np.ndarray, face: Face) -> Photo:
        """Return the photo that lends detail to a face."""
        return choose_photo(self.photos, recognition.landmarks_106(image, face))

    def to(self, device: str) -> None:
        """Move the network to a device."""
        self.net.to(device)


def with_eye_colour(picture: np.ndarray, face: Face, eyes: np.ndarray) -> np.ndarray:
    """Return a picture whose irises have another colour on average; their pattern, pupils and highlights stay.

    The hue comes from `eyes`, the brightness by half, because it also depends on the picture's light. In the dark less
    of both is changed, or the eyes would glow.

    Args:
        picture: RGB, uint8, shape (H, W, 3). eyes: CIELAB, shape (3,), as `colours.eye_colour`.
    """
    import cv2

    marks = recognition.landmarks_106(picture, face)
    now = colours.iris_colour(picture, marks)
    if now is None:
        return picture
    centres = marks[list(colours.IRIS_CENTRES)]
    apart = float(np.linalg.norm(centres[1] - centres[0]))
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]].astype(np.float32)
    share = np.zeros(picture.shape[:2], np.float32)
    for centre, outline in zip(centres, colours.LIDS, strict=True):
        lids = np.zeros(picture.shape[:2], np.float32)
        cv2.fillPoly(lids, [np.round(marks[list(outline)]).astype(np.int32)], 1.0)
        away = np.hypot(x - centre[0], y - centre[1]) / apart
        disc = ((IRIS[1] - away) / (IRIS[1] - IRIS[0])).clip(0, 1)
        share = np.maximum(share, disc * cv2.GaussianBlur(lids, (0, 0), 0.01 * apart))
    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    light = min(1.0, float(now[0] / max(eyes[0], 1.0)))
    lab += share[..., None] * (eyes - now) * np.float32([0.5, 1, 1]) * light
    changed = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB).clip(0, 1) * 255
    return np.where(share[..., None] > 0, changed.round(), picture).astype(np.uint8)


def enlarged(image: np.ndarray) -> np.ndarray:
    """Return a picture at twice its size, bicubic, RGB, uint8."""
    import cv2

    return cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
