"""The embedded base's own restorer: from its soft 256 px headshots to crisp ones of 512 px.

It was trained on what this base does wrong to a face, so it suits no other base. It knows who the person is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headshotkit.core.errors import NotFinite
from headshotkit.core.run import sha256_of
from headshotkit.faces.recognition import Face

GIVEN_PX, MADE_PX = 256, 512


def weights_of(folder: Path) -> tuple[Path | None, str]:
    """Return the restorer's folder and its weights' sha256; (None, "") if it has no weights."""
    file = folder / "restorer.safetensors"
    return (folder, sha256_of(file)) if file.is_file() else (None, "")


@dataclass(frozen=True)
class Embedded:
    """The loaded restorer. person: what its network gets to know about the person, float32, shape (P,)."""

    net: object
    person: np.ndarray
    name: str = "the embedded restorer"

    def of(self, image: np.ndarray, faces: list[Face]) -> Callable[[float], np.ndarray]:
        """Return a function that takes a fidelity and returns the whole picture at twice its size.

        Args:
            image: RGB, uint8, shape (256, 256, 3). The result has shape (512, 512, 3): at fidelity 0 it is the
                network's, at 1 the picture enlarged, in between a mix.
            faces: unused, as the network sees the whole picture.
        Raises:
            NotFinite: the network returned NaN or infinity.
        """
        import torch

        device = next(self.net.parameters()).device
        with torch.no_grad():
            pixels = torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1).to(device)
            made = self.net(pixels, torch.from_numpy(self.person)[None].to(device))[0]
        if not made.isfinite().all():
            raise NotFinite(
                "the restored face holds NaN or infinity.", "The restorer's weights are damaged.",
                "Reinstall headshotkit; the face stays as it is.",
            )  # fmt: skip
        full = (made.clamp(-1, 1).cpu().numpy().transpose(1, 2, 0) + 1) * 127.5
        plain = enlarged(image).astype(np.float32)
        return lambda fidelity: (full + (plain - full) * fidelity).round().clip(0, 255).astype(np.uint8)

    def to(self, device: str) -> None:
        """Move the network to a device."""
        self.net.to(device)


def enlarged(image: np.ndarray) -> np.ndarray:
    """Return a picture at twice its size, bicubic, RGB, uint8."""
    import cv2

    return cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
