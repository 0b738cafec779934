"""Enlarge a headshot for print: by Lanczos, or by Real-ESRGAN's network if its weights are given."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from headshotkit.core.finite import all_finite
from headshotkit.restoration.weights import net_with_weights

TILE_PX, MARGIN_PX = 192, 16
"""Side of the tiles that the network sees at once, and how much of each neighbour it sees beside them."""
WEIGHTS_URL = "https://github.com/xinntao/Real-ESRGAN/releases/download/v0.1.0/RealESRGAN_x4plus.pth"


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees all earlier ones, with a residual connection.

    Source: ESRGAN, Wang et al. 2018, arXiv:1809.00219; module names as in Real-ESRGAN's files.
    """

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        for n in range(1, 6):
            setattr(self, f"conv{n}", nn.Conv2d(width + (n - 1) * growth, growth if n < 5 else width, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = [x]
        for n in range(1, 5):
            seen.append(F.leaky_relu(getattr(self, f"conv{n}")(torch.cat(seen, 1)), 0.2))
        return x + 0.2 * self.conv5(torch.cat(seen, 1))


class TripleBlock(nn.Module):
    """Three dense blocks with a residual connection."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(width, growth) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class Upscaler(nn.Module):
    """Real-ESRGAN's network, four times as large; with 12 input channels it is the one that enlarges twice.

    Source: Real-ESRGAN, Wang et al. 2021, arXiv:2107.10833.
    """

    def __init__(self, blocks: int = 23, width: int = 64, growth: int = 32, channels: int = 3) -> None:
        super().__init__()
        self.scale = {3: 4, 12: 2}[channels]
        self.conv_first = nn.Conv2d(channels, width, 3, padding=1)
        self.body = nn.Sequential(*(TripleBlock(width, growth) for _ in range(blocks)))
        self.conv_body, self.conv_up1, self.conv_up2, self.conv_hr = (
            nn.Conv2d(width, width, 3, padding=1) for _ in range(4)
        )
        self.conv_last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Enlarge pictures, RGB in [0, 1], shape (N, 3, h, w) -> (N, 3, scale * h, scale * w)."""
        first = self.conv_first(F.pixel_unshuffle(x, 2) if self.scale == 2 else x)
        h = first + self.conv_body(self.body(first))
        for layer in (self.conv_up1, self.conv_up2):
            h = F.leaky_relu(layer(F.interpolate(h, scale_factor=2, mode="nearest")), 0.2)
        return self.conv_last(F.leaky_relu(self.conv_hr(h), 0.2))


def load_upscaler(weights: Path) -> Upscaler:
    """Return Real-ESRGAN's network with the weights of a file on the CPU, float32; its size is read from the file.

    Raises:
        BadWeights: the file is truncated, holds other things than tensors, or belongs to another network.
    """

    def build(state: dict) -> Upscaler:
        blocks = {int(found[1]) for name in state if (found := re.match(r"body\.(\d+)\.rdb1", name))}
        width, channels = state["conv_first.weight"].shape[:2]
        return Upscaler(len(blocks), width, len(state["body.0.rdb1.conv1.weight"]), channels)

    other = f"Give RealESRGAN_x4plus.pth from {WEIGHTS_URL}, or none: pictures are then enlarged by Lanczos"
    return net_with_weights(weights, build, "Real-ESRGAN", other)


def upscale(image: np.ndarray, side_px: int, net: Upscaler | None = None) -> np.ndarray:
    """Return a picture whose longer side has that many pixels.

    Args:
        image: RGB, uint8, shape (H, W, 3).
        net: enlarges first, as often as needed, in tiles; what it makes is brought to the size by Lanczos.
    """
    while net is not None and max(image.shape[:2]) < side_px:
        image = _through(net, image)
    height, width = image.shape[:2]
    scale = side_px / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def _through(net: Upscaler, image: np.ndarray) -> np.ndarray:
    """Return a picture enlarged by the network, tile by tile, so that memory does not grow with the picture.

    Raises:
        ValueError: the network returned NaN or infinity.
    """
    scale, device = net.scale, next(net.parameters()).device
    height, width = image.shape[:2]
    made = np.empty((height * scale, width * scale, 3), np.uint8)
    wide = np.pad(image, ((MARGIN_PX, MARGIN_PX + height % 2), (MARGIN_PX, MARGIN_PX + width % 2), (0, 0)), mode="edge")
    for y in range(0, height, TILE_PX):
        for x in range(0, width, TILE_PX):
            rows, columns = min(TILE_PX, height - y), min(TILE_PX, width - x)
            tile = wide[y : y + rows + 2 * MARGIN_PX + rows % 2, x : x + columns + 2 * MARGIN_PX + columns % 2]
            pixels = torch.from_numpy(tile.transpose(2, 0, 1)[None].astype(np.float32) / 255).to(device)
            with torch.no_grad():
                out = net(pixels)[0]
            if not all_finite([out]):
                raise ValueError("the enlarged picture holds NaN or infinity")
            edge = MARGIN_PX * scale
            inner = out[:, edge : edge + rows * scale, edge : edge + columns * scale].clamp(0, 1).cpu().numpy()
            made[y * scale : (y + rows) * scale, x * scale : (x + columns) * scale] = (
                (inner.transpose(1, 2, 0) * 255).round().astype(np.uint8)
            )
    return made
