"""Settings of restoration."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from headshotkit.config.base import Config, FilePath, stored_as


class RestoreConfig(Config):
    """Settings of restoration."""

    fidelity: Annotated[float, Field(ge=0, le=1)] = 0.7
    """CodeFormer's weight: 0 = better looking, 1 = truer to the input."""
    codeformer_weights: FilePath = stored_as("weights", "")
    """Path of codeformer.pth; empty: the cache folder's `codeformer/codeformer.pth`."""
    max_identity_loss: Annotated[float, Field(ge=0, le=2)] = 0.02
    """Largest loss of identity by restoration; beyond it the unrestored headshot is kept."""
