"""The network that finds artefacts in a face. It reads what the first layers of the recogniser see of the head."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from headshotkit.core import runtime
from headshotkit.core.downloads import first_line
from headshotkit.core.errors import BadWeights
from headshotkit.core.finite import spoilt
from headshotkit.faces.artefacts import KINDS

FINE, COARSE = 128, 256
"""Channels of the recogniser's two maps."""
REGIONS = {"eyes": (0.3, 0.62, 0.1, 0.9), "mouth": (0.55, 0.97, 0.15, 0.85)}
"""Part of the head in which an artefact of that kind lies: top, bottom, left, right; the whole head for the others."""
VERSION = "1"


class ArtefactNet(nn.Module):
    """Four numbers for a face, one for each of KINDS: above 0 the artefact is there.

    A place is compared with the place opposite to it, because most faces are symmetrical and most artefacts are not.
    """

    def __init__(self, fine: int = 40, coarse: int = 48, width: int = 64) -> None:
        super().__init__()
        self.sizes = {"fine": fine, "coarse": coarse, "width": width}
        self.fine, self.coarse = _mixed(FINE, fine), _mixed(COARSE, coarse)
        self.join = _mixed(2 * (2 * fine + coarse) + 3, width)
        self.first = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.rate = nn.ModuleList([nn.Linear(2 * width, 1) for _ in KINDS])
        self.dropout = nn.Dropout(0.3)
        self.register_buffer("limits", torch.zeros(len(KINDS)))

    def forward(self, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """Rate faces.

        Args:
            fine, coarse: the recogniser's maps of aligned heads, shapes (N, FINE, 2 S, 2 S) and (N, COARSE, S, S).
        Returns: shape (N, 4), above 0 for an artefact.
        """
        detail = self.fine(fine)
        h = torch.cat([F.avg_pool2d(detail, 2), F.max_pool2d(detail, 2), self.coarse(coarse)], 1)
        side = h.shape[-1]
        along = torch.linspace(-1, 1, side, device=h.device, dtype=h.dtype)
        place = torch.stack(
            [along.expand(side, side), along.abs().expand(side, side), along[:, None].expand(side, side)]
        )
        h = self.join(torch.cat([h, (h - h.flip(3)).abs(), place.expand(len(h), 3, side, side)], 1))
        h = h + self.first(h)
        h = h + self.second(h)
        rated = []
        for kind, rate in zip(KINDS, self.rate, strict=True):
            top, bottom, left, right = (round(side * edge) for edge in REGIONS.get(kind, (0, 1, 0, 1)))
            part = h[:, :, top:bottom, left:right]
            rated.append(rate(self.dropout(torch.cat([part.mean((2, 3)), part.amax((2, 3))], 1))))
        return torch.cat(rated, 1) - self.limits


def _mixed(given: int, made: int) -> nn.Sequential:
    """Return a layer that mixes the channels of each place."""
    return nn.Sequential(nn.Conv2d(given, made, 1, bias=False), nn.BatchNorm2d(made), nn.ReLU())


def save_detector(net: ArtefactNet, file: Path) -> None:
    """Write the network's weights in fp16, and its sizes, to one file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: tensor for name, tensor in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    save_file({name: tensor.half().contiguous() for name, tensor in kept.items()}, file,
              {"version": VERSION, "sizes": json.dumps(net.sizes)})  # fmt: skip


def load_detector(file: Path) -> ArtefactNet:
    """Return the network of a file on the CPU, in float32, ready to rate faces.

    Raises:
        BadWeights: the file is damaged, or of another network.
    """
    try:
        with safe_open(file, "pt") as kept:
            about, state = kept.metadata() or {}, {name: kept.get_tensor(name).float() for name in kept.keys()}  # noqa: SIM118
        if about.get("version") != VERSION:
            raise ValueError(f"version {about.get('version')}, this program reads {VERSION}")
        if names := spoilt(state):
            raise ValueError(f"{len(names)} of {len(state)} tensors hold NaN or infinity")
        net = ArtefactNet(**json.loads(about["sizes"]))
        found = net.load_state_dict(state, strict=False)
        missing = [name for name in found.missing_keys if not name.endswith("num_batches_tracked")]
        if missing or found.unexpected_keys:
            raise ValueError(f"{len(missing)} tensors are missing, {len(found.unexpected_keys)} are unknown")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise BadWeights(
            f"{runtime.shown_path(file)} can't be used to find artefacts in faces: {first_line(error)}.",
            "The file is damaged, or belongs to another network.",
            "Install headshotkit again, or generate without this check (--max-artefact 1).",
        ) from error
    return net.eval()
