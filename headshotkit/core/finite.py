"""Finite numbers: tensors that hold NaN or infinity are neither saved nor used."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from headshotkit.core.errors import NotFinite


def spoilt(tensors: dict[str, torch.Tensor]) -> list[str]:
    """Return the names of the tensors that hold NaN or infinity.

    >>> spoilt({"a": torch.zeros(2), "b": torch.tensor([1.0, float("nan")])})
    ['b']
    """
    return [name for name, tensor in tensors.items() if not tensor.isfinite().all()]


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Return whether no tensor holds NaN or infinity, with one query of the device for all of them."""
    found = [tensor.detach().isfinite().all() for tensor in tensors]
    return not found or bool(torch.stack(found).all())


def demand_finite(tensors: dict[str, torch.Tensor]) -> None:
    """Refuse to write trained tensors that hold NaN or infinity.

    Raises:
        NotFinite: with the number of such tensors.
    """
    if names := spoilt(tensors):
        raise NotFinite(
            f"{len(names)} of {len(tensors)} trained tensors hold NaN or infinity: {', '.join(names[:2])}.",
            "The training diverged; the usual cause is a learning rate that is too high.",
            "Train again with a lower TrainConfig.learning_rate, for example half of it; nothing was written.",
        )
