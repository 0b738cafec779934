"""Restore faces with CodeFormer: its licence is non-commercial, so package and weights are opt-in.

A restored face is kept only if its identity holds. If CodeFormer is not installed or its weights can't be used, the
headshots are copied unchanged, and the manifest lists what is missing and how to get it. If the weights were given
by the user, that is an error as well.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from headshotkit.config import RestoreConfig
from headshotkit.core import locks, runtime
from headshotkit.core.downloads import first_line
from headshotkit.core.errors import BadWeights, BrokenPackage, CannotRestore, NotFinite
from headshotkit.core.run import Run, sha256_of, write_atomic
from headshotkit.faces import recognition
from headshotkit.photos.files import png_bytes
from headshotkit.scoring.identity import identity_of, known_faces
from headshotkit.training.checkpoints import DAMAGE

PACKAGE = "codeformer"
PIP = "pip install --no-deps codeformer-pip==0.0.4"
WEIGHTS_URL = "https://github.com/sczhou/CodeFormer/releases/download/v0.1.0/codeformer.pth"
WEIGHTS_SHA256 = "1009e537e0c2a07d4cabce6355f53cb66767cd4b4297ec7a4a64ca4b8a5684b7"
SIDE_PX = 512
TEMPLATE = np.array(
    [[192.98138, 239.94708], [318.90277, 240.1936], [256.63416, 314.01935], [201.26117, 371.41043],
     [313.08905, 371.15118]], np.float32,
) / np.float32(SIDE_PX)  # fmt: skip
"""CodeFormer's positions of eyes, nose and mouth corners, in fractions of its 512 px square (facexlib's template)."""
FEATHER = 0.06
"""Width of the soft edge around a restored face, in fractions of the square's side."""


@locks.writes("restore")
@runtime.frees_memory
def restore_headshots(run: Run, config: RestoreConfig | None = None) -> dict:
    """Restore the faces of the delivered headshots.

    Writes `restored/`: a PNG a headshot, manifest.json. Returns the manifest: `restored` has for each file the
    identity before and after, and which of the two was kept.

    Raises:
        StageMissing: no headshots have been generated.
        DamagedRun: one is missing or changed.
        CannotRestore: the user's weights can't be used; the stage is finished nevertheless.
    """
    config = config or RestoreConfig()
    weights, digest, missing = find_codeformer(config)
    files = run.manifest("headshots")["delivered"]
    run.files("headshots", files)
    stage = run.begin("restored", config, run.inputs_from("headshots") | {"codeformer": digest or "missing"})
    if stage.done:
        return _demand_asked(config, stage.manifest)
    if weights:
        try:
            net = load_codeformer(weights)
        except (BadWeights, BrokenPackage) as error:
            missing = (error.happened.rstrip("."), error.next_step)
    if missing:
        for file in files:
            write_atomic(stage.folder / file, (run.path("headshots") / file).read_bytes())
        manifest = stage.finish(
            f"skipped, {len(files)} headshots copied unchanged: {missing[0]}",
            missing=list(missing),
            restored=[{"file": f, "kept": "unrestored"} for f in files],
        )
        return _demand_asked(config, manifest)
    centre = known_faces(run, "arcface").mean(0)
    rows, changes = [], stage.manifest.setdefault("memory_changes", [])
    for file in runtime.progress(files, "restoring faces"):
        original = Image.open(run.path("headshots") / file, formats=("PNG",))
        pixels = np.asarray(original.convert("RGB"))
        device = "cpu" if changes else runtime.choose_device()[0]
        work = partial(_restored, pixels, net, centre, config)
        made, said = runtime.within_memory(lambda work=work, device=device: (net.to(device), work())[1])
        if said and not changes:
            changes.append({"device": "cpu", "why": said})
            runtime.say(f"restoration continues on the CPU: {said}")
        if said:
            net.to("cpu")
        result, row = work() if said else made
        texts = {**getattr(original, "text", {}), "Restored": f"CodeFormer, fidelity {config.fidelity}"}
        unchanged = (run.path("headshots") / file).read_bytes()
        restored = row["kept"] == "restored"
        write_atomic(stage.folder / file, png_bytes(Image.fromarray(result), **texts) if restored else unchanged)
        rows.append({"file": file, **row})
    kept = sum(row["kept"] == "restored" for row in rows)
    return stage.finish(
        f"restored {kept} of {len(files)} faces; the rest had no single face or lost identity",
        restored=rows,
        weights={"sha256": digest, "published": digest == WEIGHTS_SHA256},
    )


def _demand_asked(config: RestoreConfig, manifest: dict) -> dict:
    """Return the finished stage's manifest, unless the user gave weights that could not be used.

    Raises:
        CannotRestore: the user's weights could not be used.
    """
    missing = manifest.get("missing")
    if config.codeformer_weights and missing:
        untouched = len(manifest["restored"])
        raise CannotRestore(
            f"no face was restored with the given weights: {missing[0]}.",
            f"The {untouched} headshots were copied unchanged, and later stages can use them.",
            "; ".join(missing[1:]),
        )
    return manifest


def find_codeformer(config: RestoreConfig) -> tuple[Path | None, str, tuple[str, ...]]:
    """Return CodeFormer's weights and their sha256, or what is missing: (None, "", (what, how, ...)).

    A file in the cache must be the published one; one that the user gives may be another.
    """
    usual = runtime.cache_path("codeformer", "codeformer.pth")
    place = runtime.typed_path(config.codeformer_weights) if config.codeformer_weights else usual
    missing, shown, digest = [], runtime.shown_path(place), ""
    if not runtime.has_module(PACKAGE):
        missing += ["CodeFormer's package is not installed", f"Install it (S-Lab licence, non-commercial): {PIP}"]
    try:
        digest = sha256_of(place) if os.path.isfile(place) else ""
        if not digest:
            missing += [f"CodeFormer's weights are not at {shown}", f"Download {WEIGHTS_URL} (376 MB) to {shown}"]
    except OSError as error:
        missing += [f"{shown} can't be read: {error.strerror}", "Change its permissions, or give another file"]
    if digest and not config.codeformer_weights and digest != WEIGHTS_SHA256:
        missing += [f"{shown} is not the expected file (its sha256 differs)", f"Download {WEIGHTS_URL} again"]
    return (None, "", tuple(missing)) if missing else (place, digest, ())


def codeformer_class():
    """Return the network class of the CodeFormer package, without running the package's own imports.

    They would download four files and pull in torchvision, so bare modules replace the package's folders while the
    one file is imported.
    """
    root = Path(importlib.util.find_spec(PACKAGE).submodule_search_locations[0])
    names = ("", ".basicsr", ".basicsr.archs", ".basicsr.utils")
    stubs = {PACKAGE + name: ModuleType(PACKAGE + name) for name in names}
    for name, module in stubs.items():
        module.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
    stubs[f"{PACKAGE}.basicsr.utils"].get_root_logger = logging.getLogger
    before = {name: sys.modules.get(name) for name in stubs}
    sys.modules.update(stubs)
    try:
        return importlib.import_module(f"{PACKAGE}.basicsr.archs.codeformer_arch").CodeFormer
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


def load_codeformer(weights: Path):
    """Return the network with its weights on the CPU, float32 (it overflows in fp16), ready to restore.

    Raises:
        BadWeights: the file is truncated or empty, holds other things than tensors, or another network's.
        BrokenPackage: the package has no network of that name.
    """
    import torch

    from headshotkit.core.finite import spoilt  # not above: `check` needs no torch

    try:
        net = codeformer_class()()
    except (ImportError, AttributeError, TypeError) as error:
        raise BrokenPackage(
            f"CodeFormer's package can't be used: {first_line(error)}.",
            "It is not the supported version.",
            f"Install the supported one: {PIP}",
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch warns about pickles before it refuses them
            state = torch.load(weights, weights_only=True, map_location="cpu")
        state = state.get("params_ema", state)
        net.load_state_dict(state)
        if names := spoilt(state):
            raise ValueError(f"{len(names)} of its {len(state)} tensors hold NaN or infinity")
    except (*DAMAGE, AttributeError, TypeError) as error:
        if runtime.out_of_memory(error):
            raise
        raise BadWeights(
            f"{runtime.shown_path(weights)} can't be used as CodeFormer's weights: {first_line(error)}.",
            "It is truncated, damaged, or belongs to another network.",
            f"Download {WEIGHTS_URL} (376 MB), whose sha256 begins with {WEIGHTS_SHA256[:8]}",
        ) from error
    return net.eval()


def _restored(image: np.ndarray, net, centre: np.ndarray, config: RestoreConfig) -> tuple[np.ndarray, dict]:
    """Return one headshot with its face restored, and its identity before and after; the caller applies `kept`."""
    found = recognition.detect_faces(image)
    if len(found) != 1:
        return image, {"kept": "unrestored", "why": f"{len(found)} faces"}
    before = identity_of(image, found[0], centre, "arcface")
    aligned = recognition.align_face(image, found[0].points, SIDE_PX, TEMPLATE)
    try:
        result = paste_back(image, restore_face(aligned, net, config.fidelity), found[0].points)
    except NotFinite as error:
        return image, {"identity_before": before, "kept": "unrestored", "why": error.happened}
    after_faces = recognition.detect_faces(result)
    after = identity_of(result, after_faces[0], centre, "arcface") if len(after_faces) == 1 else None
    row = {"identity_before": before, "identity_after": after}
    if after is None or after < before - config.max_identity_loss:
        return image, row | {"kept": "unrestored", "why": "the restored face is less similar to you"}
    return result, row | {"kept": "restored"}


def restore_face(aligned: np.ndarray, net, fidelity: float) -> np.ndarray:
    """Restore one aligned face with CodeFormer.

    Args:
        aligned: RGB, uint8, shape (512, 512, 3).
        fidelity: in [0, 1]; 0 = better looking, 1 = truer to the input.
    Returns: RGB, uint8, shape (512, 512, 3).
    Raises:
        NotFinite: the result holds NaN or infinity.
    Source: Zhou et al. 2022, arXiv:2206.11253.
    """
    import torch

    pixels = torch.from_numpy(aligned.astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1)
    with torch.no_grad():
        made = net(pixels.to(next(net.parameters()).device), w=fidelity, adain=True)[0]
    if not made.isfinite().all():
        raise NotFinite(
            "the restored face holds NaN or infinity.",
            "CodeFormer's weights are damaged, or not CodeFormer's.",
            "Download them again; the face stays as it is.",
        )
    return ((made[0].clamp(-1, 1).cpu().numpy().transpose(1, 2, 0) + 1) * 127.5).round().astype(np.uint8)


def paste_back(image: np.ndarray, face: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Paste an aligned face back where it was cut, with a soft edge.

    Args:
        image: RGB, uint8, shape (H, W, 3). face: RGB, uint8, shape (512, 512, 3). points: px, shape (5, 2).
    """
    import cv2

    back = cv2.invertAffineTransform(recognition.template_transform(points, SIDE_PX, TEMPLATE))
    size = (image.shape[1], image.shape[0])
    edge = int(FEATHER * SIDE_PX)
    mask = np.zeros((SIDE_PX, SIDE_PX), np.float32)
    mask[2 * edge : -2 * edge, 2 * edge : -2 * edge] = 1
    soft = cv2.warpAffine(cv2.GaussianBlur(mask, (0, 0), edge / 2), back, size)[..., None]
    laid = cv2.warpAffine(face, back, size, flags=cv2.INTER_LINEAR)
    return (laid * soft + image * (1 - soft)).round().astype(np.uint8)
