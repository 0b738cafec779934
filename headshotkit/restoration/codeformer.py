"""CodeFormer, from the package codeformer-pip: its network class only, with weights of the user's choice.

Licence of package and weights: S-Lab License 1.0, non-commercial use only. So both are opt-in.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from headshotkit.config import RestoreConfig
from headshotkit.core import runtime
from headshotkit.core.downloads import NotWhole, again, download, first_line, trouble_of
from headshotkit.core.errors import BrokenPackage, DownloadFailed, NotFinite
from headshotkit.core.run import sha256_of
from headshotkit.faces.recognition import Face
from headshotkit.restoration.alignment import aligned_face, paste_back

PACKAGE = "codeformer"
PIP = "pip install --no-deps codeformer-pip==0.0.4"
WEIGHTS_URL = "https://github.com/sczhou/CodeFormer/releases/download/v0.1.0/codeformer.pth"
WEIGHTS_SHA256 = "1009e537e0c2a07d4cabce6355f53cb66767cd4b4297ec7a4a64ca4b8a5684b7"
LICENCE = (
    "CodeFormer's package and weights are under the S-Lab License 1.0 (Copyright 2022 S-Lab): redistribution and use "
    "for non-commercial purposes only; for commercial use ask its authors. "
    "The text: https://github.com/sczhou/CodeFormer/blob/master/LICENSE"
)


def find_codeformer(config: RestoreConfig) -> tuple[Path | None, str, tuple[str, ...]]:
    """Return CodeFormer's weights and their sha256, or what is missing: (None, "", (what, how, ...)).

    A file in the cache must be the published one; it is downloaded once if the licence is accepted. A file that the
    user gives may be another.
    """
    usual = runtime.cache_path("codeformer", "codeformer.pth")
    place = runtime.typed_path(config.codeformer_weights) if config.codeformer_weights else usual
    missing, shown, digest = [], runtime.shown_path(place), ""
    if not runtime.has_module(PACKAGE):
        missing += ["CodeFormer's package is not installed", f"Install it (S-Lab licence, non-commercial): {PIP}"]
    try:
        if config.accept_licence and not config.codeformer_weights and not missing and not usual.is_file():
            fetch_weights(usual)
        digest = sha256_of(place) if os.path.isfile(place) else ""
        if not digest:
            how = f"Download {WEIGHTS_URL} (376 MB) to {shown}, or accept the licence: --accept-licence. {LICENCE}"
            missing += [f"CodeFormer's weights are not at {shown}", how]
    except OSError as error:
        missing += [f"{shown} can't be read: {error.strerror}", "Change its permissions, or give another file"]
    except DownloadFailed as error:
        missing += [error.happened.rstrip("."), error.next_step]
    if digest and not config.codeformer_weights and digest != WEIGHTS_SHA256:
        missing += [f"{shown} is not the expected file (its sha256 differs)", f"Download {WEIGHTS_URL} again"]
    return (None, "", tuple(missing)) if missing else (place, digest, ())


def fetch_weights(file: Path) -> None:
    """Show the licence and download the published weights to a file; an earlier part of the download is continued.

    Raises:
        DownloadFailed: they can't be downloaded, or the bytes that arrived are not the published ones.
        OSError: the folder can't be made.
    """
    runtime.tell(LICENCE)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")

    def attempt(_: object) -> None:
        download(WEIGHTS_URL, part, "CodeFormer's weights")
        if sha256_of(part) != WEIGHTS_SHA256:
            part.unlink()
            raise NotWhole("the bytes that arrived are not the published file (sha256 differs); they were removed")

    try:
        again(attempt, "CodeFormer's weights")
    except Exception as error:
        trouble = trouble_of(error)
        raise DownloadFailed(
            f"CodeFormer's weights can't be downloaded: {first_line(error)}.",
            f"{trouble.why} They come from {WEIGHTS_URL}, once.",
            f"{trouble.next_step}, or give a file: --codeformer-weights PATH",
            cause=trouble.code,
        ) from error
    os.replace(part, file)


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
    from headshotkit.restoration.weights import net_with_weights  # not above: `check` needs no torch

    try:
        net = codeformer_class()()
    except (ImportError, AttributeError, TypeError) as error:
        raise BrokenPackage(
            f"CodeFormer's package can't be used: {first_line(error)}.",
            "It is not the supported version.",
            f"Install the supported one: {PIP}",
        ) from error
    anew = f"Download {WEIGHTS_URL} (376 MB), whose sha256 begins with {WEIGHTS_SHA256[:8]}"
    return net_with_weights(weights, lambda _: net, "CodeFormer", anew)


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


@dataclass(frozen=True)
class CodeFormer:
    """A loaded CodeFormer; `name` stands in manifests and pictures."""

    net: object
    name: str = "CodeFormer"

    def of(self, image: np.ndarray, faces: list[Face]) -> Callable[[float], np.ndarray]:
        """Return a function that takes a fidelity and returns the picture with these faces restored.

        Args:
            image: RGB, uint8, shape (H, W, 3). The result has its shape.
        """
        squares = [aligned_face(image, face.points) for face in faces]

        def restored(fidelity: float) -> np.ndarray:
            made = image
            for square, face in zip(squares, faces, strict=True):
                made = paste_back(made, restore_face(square, self.net, fidelity), square, face.points)
            return made

        return restored

    def to(self, device: str) -> None:
        """Move the network to a device, float32 as ever: it overflows in fp16."""
        self.net.to(device)
