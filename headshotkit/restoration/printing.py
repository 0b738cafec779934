"""Write larger copies of the restored headshots, for print, and check that the person stays the same."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from headshotkit.config import RestoreConfig
from headshotkit.core import runtime
from headshotkit.core.errors import BadWeights
from headshotkit.core.run import Run, sha256_of, write_atomic
from headshotkit.faces import recognition
from headshotkit.photos.files import png_bytes
from headshotkit.scoring.identity import identity_of, known_faces

FOLDER = "print"


def upscaler_digest(config: RestoreConfig) -> str:
    """Return the sha256 of the upscaler's weights; empty if the file can't be read."""
    try:
        return sha256_of(runtime.typed_path(config.upscaler_weights))
    except OSError:
        return ""


def print_copies(run: Run, folder: Path, files: list[str], config: RestoreConfig) -> dict:
    """Write the copies for print to `print/` in the stage's folder, and return facts for its manifest.

    Returns: empty without `print_px`. `print` has a row for each file: its size, what enlarged it, and identity before
        and after if that was the network. `upscaler_missing`: why the network could not be used, and what to do.
    """
    if not config.print_px:
        return {}
    net, lacking = _open(config)
    centre = known_faces(run, "arcface").mean(0) if net else None
    (folder / FOLDER).mkdir(exist_ok=True)
    rows = []
    for file in runtime.progress(files, "enlarging for print"):
        with Image.open(folder / file, formats=("PNG",)) as picture:
            image, texts = np.asarray(picture.convert("RGB")), dict(getattr(picture, "text", {}))
        made, row = enlarge(image, config, net, centre)
        texts["Enlarged"] = f"{row['by']}, to {config.print_px} px"
        write_atomic(folder / FOLDER / file, png_bytes(Image.fromarray(made), **texts))
        rows.append({"file": f"{FOLDER}/{file}", "size_px": [made.shape[1], made.shape[0]], **row})
    return {"print": rows} | ({"upscaler_missing": lacking} if lacking else {})


def _open(config: RestoreConfig):
    """Return the upscaler's network and nothing, or None and why it can't be used, with what to do."""
    if not config.upscaler_weights:
        return None, []
    from headshotkit.restoration.upscaling import load_upscaler  # not above: it loads torch

    place = runtime.typed_path(config.upscaler_weights)
    if not os.path.isfile(place):
        return None, [f"there is no file {runtime.shown_path(place)}", "Correct --upscaler-weights"]
    try:
        return load_upscaler(place).to(runtime.choose_device()[0]), []
    except BadWeights as error:
        return None, [error.happened.rstrip("."), error.next_step]


def enlarge(image: np.ndarray, config: RestoreConfig, net, centre: np.ndarray | None) -> tuple[np.ndarray, dict]:
    """Return a picture at print size and its row: by the network if identity holds, else by Lanczos."""
    from headshotkit.restoration.upscaling import upscale  # not above: it loads torch

    plain = upscale(image, config.print_px)
    if net is None:
        return plain, {"by": "Lanczos"}
    try:
        made = upscale(image, config.print_px, net)
    except ValueError as error:
        return plain, {"by": "Lanczos", "why": str(error)}
    found = [recognition.detect_faces(picture) for picture in (plain, made)]
    if not all(len(faces) == 1 for faces in found):
        return plain, {"by": "Lanczos", "why": "identity can't be compared: there is no single face"}
    before, after = (identity_of(p, f[0], centre, "arcface") for p, f in zip((plain, made), found, strict=True))
    row = {"identity_before": before, "identity_after": after}
    if after < before - config.max_identity_loss:
        return plain, {"by": "Lanczos", "why": "the network's picture is less similar to you", **row}
    return made, {"by": "Real-ESRGAN", **row}
