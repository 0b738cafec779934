"""Weights that are kept on the disk, to save the host's memory."""

from __future__ import annotations

import os
import tempfile

import torch

from headshotkit.core import runtime

ALIGNED = 64
"""Bytes; each copy begins at a multiple of this."""


def copies_on_disk(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return CPU copies in a mapped temporary file, whose pages the system can drop and read again.

    The file is in the cache folder and already unlinked, so it disappears with the copies. If it can't be created, on a
    full disk for example, the copies are in memory.
    """
    lengths = [-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor in tensors.values()]
    file = _mapped(sum(lengths)) if tensors else None
    if file is None:
        return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
    parts = file.split(lengths)
    return {
        name: part[: tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        for (name, tensor), part in zip(tensors.items(), parts, strict=True)
    }


def _mapped(size: int) -> torch.Tensor | None:
    """Return the bytes of a new temporary file, shape (size,), mapped; None without room or without such a call."""
    folder = runtime.cache_path("waiting")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # writing to a page without room would kill the process
            return torch.from_file(file.name, shared=True, size=size, dtype=torch.uint8)
    except (OSError, AttributeError, RuntimeError):  # torch raises the last if it can't map the file
        return None
