"""Load a network's weights from a file of somebody else: tensors only, strictly, and nothing in the file is run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from headshotkit.core import runtime
from headshotkit.core.downloads import first_line
from headshotkit.core.errors import BadWeights
from headshotkit.core.finite import spoilt
from headshotkit.training.checkpoints import DAMAGE


def net_with_weights(file: Path, build: Callable[[dict], torch.nn.Module], owner: str, next_step: str):
    """Return a network with the weights of a file on the CPU, float32, ready to use.

    Args:
        build: returns the network for these tensors, name -> tensor.
        owner: name of the network, for the error.
        next_step: what to do about a bad file.
    Raises:
        BadWeights: the file is truncated or empty, holds other things than tensors, or another network's.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch warns about pickles before it refuses them
            state = torch.load(file, weights_only=True, map_location="cpu")
        state = state.get("params_ema", state.get("params", state))
        net = build(state)
        net.load_state_dict(state)
        if names := spoilt(state):
            raise ValueError(f"{len(names)} of its {len(state)} tensors hold NaN or infinity")
    except (*DAMAGE, AttributeError, TypeError) as error:
        if runtime.out_of_memory(error):
            raise
        raise BadWeights(
            f"{runtime.shown_path(file)} can't be used as {owner}'s weights: {first_line(error)}.",
            "It is truncated, damaged, or belongs to another network.",
            next_step,
        ) from error
    return net.eval()
