"""Restore the embedded base's headshots with a small network that knows who the person is.

It was trained by the scripts of data/mini. A 256 px picture goes in, one of 512 px comes out. The network sees one of
the person's own photos, laid over the headshot feature on feature. The mean ArcFace embedding of the photos and the
colours of eyes and hair modulate it. Without them it gives people the average eyes and a face that is less their own.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from headshotkit.core.errors import BadWeights
from headshotkit.core.finite import spoilt
from headshotkit.faces import colours, recognition

CONFIG, WEIGHTS = "config.json", "restorer.safetensors"
VERSION = 2
IN_PX, OUT_PX = 256, 512
EMBEDDING = 512
PERSON = EMBEDDING + 8
"""Length of a person's vector: the embedding, then for eyes and hair three colour values and whether they are known."""
USUAL_EYES = np.float32([28, 4, 6]), np.float32([12, 5, 8])
USUAL_HAIR = np.float32([25, 5, 8]), np.float32([18, 6, 10])
"""Mean and spread of the colours, CIELAB; they bring the vector's numbers to about [-2, 2]."""
CHANNELS = (40, 80, 128, 160)
"""Channels at 128, 64, 32 and 16 px."""
LAST_CHANNELS = (24, 16)
"""Channels at 256 and 512 px."""
BANDS = 4
"""Sizes of detail that the photo may lend: from 1 px to about 16 px of the result."""
KNOWN, MARGIN = 0.01, 5
"""A photo's pixel is known if it is so far from grey, and lends detail if those around it, of a quarter's size, are."""
MAPS, MAP_PX = 64, 96
"""Number and side of the learned maps of a face."""
FACE_POINTS = np.float32([[-17.7, -16.3], [17.5, -16.5], [0.0, 3.7], [-14.5, 24.4], [14.7, 24.2]]) / 80
"""Eyes, nose tip and corners of the mouth on the maps, which span [-1, 1]: about 4.5 times the distance of the eyes.

Source: the template of ArcFace, moved so that the middle of a head lies in the middle.
"""


class Block(nn.Module):
    """Two convolutions with a residual connection; the person scales and shifts the channels in between (FiLM).

    Source: FiLM, Perez et al. 2017, arXiv:1709.07871.
    """

    def __init__(self, channels: int, code: int = 0) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(code, 2 * channels) if code else None

    def forward(self, x: torch.Tensor, code: torch.Tensor | None = None) -> torch.Tensor:
        h = self.first(F.silu(self.norm(x)))
        if self.film is not None:
            scale, shift = self.film(code)[..., None, None].chunk(2, 1)
            h = h * (1 + scale) + shift
        return x + self.second(F.silu(h))


class FaceMaps(nn.Module):
    """Learned maps of a face, laid under each face that was found; the person says how much each of them counts.

    So the network knows where the eyes have to be, and whose they are, however smeared they are.
    """

    def __init__(self, code: int) -> None:
        super().__init__()
        self.maps = nn.Parameter(torch.empty(MAPS, MAP_PX, MAP_PX))
        self.film = nn.Linear(code, 2 * MAPS)

    def forward(self, code: torch.Tensor, points: torch.Tensor, side: tuple[int, int], px: int) -> torch.Tensor:
        """Return the maps as they lie under a picture, shape (N, MAPS, *side); 0 where no face is known.

        Args:
            points: of the face, px of the picture, shape (N, 5, 2); NaN if there is none.
            side: of the result: height, width. px: the picture's px for one of the result.
        """
        known = points.isfinite().all((1, 2))
        points = torch.where(known[:, None, None], points, torch.from_numpy(FACE_POINTS * 50).to(points))
        rows, columns = ((torch.arange(n, device=points.device, dtype=torch.float32) + 0.5) * px - 0.5 for n in side)
        where = torch.complex(*(t.contiguous() for t in torch.meshgrid(columns, rows, indexing="xy")))[None]
        found, wanted = (
            torch.view_as_complex(points.float().contiguous()),
            torch.view_as_complex(torch.from_numpy(FACE_POINTS).to(points.device)),
        )
        middle, goal = found.mean(1, keepdim=True), wanted.mean()
        away = found - middle  # the similarity with the least squares between the points
        turn = (away.conj() * (wanted - goal)).sum(1) / away.abs().square().sum(1).clamp(min=1e-6)
        where = torch.view_as_real((where - middle[..., None]) * turn[:, None, None] + goal)
        scale, shift = self.film(code)[..., None, None].chunk(2, 1)
        maps = self.maps * (1 + scale) + shift
        laid = F.grid_sample(maps, where.to(maps), padding_mode="zeros", align_corners=False)
        return laid * known[:, None, None, None]


class FaceRestorer(nn.Module):
    """A U-Net from 256 px to 512 px that sees a photo of the person, and knows where the face is and whose it is.

    It begins with the bicubic enlargement of its input, says band by band where the photo's detail takes the place of
    the enlargement's, and adds to the result. Inside, pixels are repeated and then convolved, because a pixel shuffle
    leaves a grid.

    Source: blending of bands, Burt and Adelson 1983.
    """

    def __init__(
        self, channels: tuple[int, ...] = CHANNELS, last_channels: tuple[int, int] = LAST_CHANNELS, code: int = 256
    ) -> None:
        super().__init__()
        self.sizes = {"channels": list(channels), "last_channels": list(last_channels), "code": code}
        self.person = nn.Sequential(nn.Linear(PERSON, code), nn.SiLU(), nn.Linear(code, code), nn.SiLU())
        self.enter = nn.Conv2d(12, channels[0], 3, padding=1)
        self.see_128 = nn.Conv2d(48, channels[0], 3, padding=1)
        self.encoder = nn.ModuleList([Block(c) for c in channels])
        self.down = nn.ModuleList([nn.Conv2d(a, b, 3, 2, 1) for a, b in zip(channels, channels[1:], strict=False)])
        self.middle = nn.ModuleList([Block(channels[-1], code) for _ in range(3)])
        self.up = nn.ModuleList([nn.Conv2d(b, a, 1) for a, b in zip(channels, channels[1:], strict=False)])
        self.decoder = nn.ModuleList([nn.ModuleList([Block(c, code), Block(c, code)]) for c in channels[:-1]])
        self.face = FaceMaps(code)
        self.lay = nn.ModuleList([nn.Conv2d(MAPS, c, 1) for c in channels])
        middle, fine = last_channels
        self.at_256 = nn.Conv2d(channels[0], middle, 3, padding=1)
        self.beside_256 = nn.Conv2d(3, middle, 3, padding=1)
        self.blend = nn.Conv2d(channels[0], BANDS, 3, padding=1)
        self.see_256 = nn.Conv2d(12, middle, 3, padding=1)
        self.gate_256 = nn.Conv2d(channels[0], middle, 1)
        self.block_256 = Block(middle)
        self.at_512 = nn.Conv2d(middle, fine, 3, padding=1)
        self.see_512 = nn.Conv2d(3, fine, 3, padding=1)
        self.gate_512 = nn.Conv2d(middle, fine, 1)
        self.leave = nn.Conv2d(fine, 3, 3, padding=1)
        self.reset()

    def reset(self) -> None:
        """Draw new weights: no effect of the person yet, and the enlargement as output.

        Activations begin at about 1. What comes from coarser levels begins weaker than what a level has itself, and a
        block weaker than what it adds to; without that, training takes several times as many steps.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
            if name.endswith(("film", "leave")) or name.startswith(("lay.", "see_", "blend")):
                nn.init.zeros_(module.weight)
        nn.init.normal_(self.face.maps)
        with torch.no_grad():
            for block in (m for m in self.modules() if isinstance(m, Block)):
                block.second.weight *= 0.3
            for module, gain in (*((m, 0.6) for m in self.down), *((m, 0.25) for m in self.up), (self.at_256, 0.7)):
                module.weight *= gain

    def forward(
        self, pixels: torch.Tensor, person: torch.Tensor, points: torch.Tensor, photo: torch.Tensor
    ) -> torch.Tensor:
        """Restore pictures.

        Args:
            pixels: RGB in [-1, 1], shape (N, 3, 256, 256); other multiples of 16 px work as well.
            person: `person_vector` of each picture's person, shape (N, PERSON); zeros if nobody is known.
            points: eyes, nose tip and corners of the mouth, px of the picture, shape (N, 5, 2); NaN if not known.
            photo: RGB in [-1, 1], laid over the enlarged picture, shape (N, 3, 512, 512); 0 where nothing is known.
        Returns: RGB, about [-1, 1], shape (N, 3, 512, 512).
        """
        code = self.person(person)
        h, skips = self.enter(F.pixel_unshuffle(pixels, 2)) + self.see_128(F.pixel_unshuffle(photo, 4)), []
        for level, block in enumerate(self.encoder):
            h = block(h)
            skips.append(h)
            if level < len(self.down):
                h = self.down[level](h)
        laid = [self.face(code, points, skips[0].shape[2:], 2)]
        for _ in self.down:
            laid.append(F.avg_pool2d(laid[-1], 2))
        h = h + self.lay[-1](laid[-1])
        for block in self.middle:
            h = block(h, code)
        for level in reversed(range(len(self.up))):
            h = F.interpolate(self.up[level](h), scale_factor=2, mode="nearest") + skips[level]
            h = h + self.lay[level](laid[level])
            for block in self.decoder[level]:
                h = block(h, code)
        h = F.silu(h)
        shares = self.blend(h).sigmoid() * _known(photo)
        gate = F.interpolate(self.gate_256(h).sigmoid(), scale_factor=2, mode="nearest")
        h = self.at_256(F.interpolate(h, scale_factor=2, mode="nearest")) + self.beside_256(pixels)
        h = F.silu(self.block_256(h + gate * self.see_256(F.pixel_unshuffle(photo, 2))))
        gate = F.interpolate(self.gate_512(h).sigmoid(), scale_factor=2, mode="nearest")
        h = self.at_512(F.interpolate(h, scale_factor=2, mode="nearest"))
        h = F.silu(h + gate * self.see_512(photo))
        plain = F.interpolate(pixels, scale_factor=2, mode="bicubic", align_corners=False)
        for share, own, other in zip(shares.split(1, 1), _bands(plain), _bands(photo), strict=True):
            share = F.interpolate(share, size=plain.shape[2:], mode="bilinear", align_corners=False)
            plain = plain + share * (other - own)
        return plain + self.leave(h)


def _bands(picture: torch.Tensor) -> list[torch.Tensor]:
    """Return a picture's detail at each of BANDS sizes, the finest first, each of the picture's shape."""
    bands, above, small = [], picture, picture
    for _ in range(BANDS):
        small = F.avg_pool2d(small, 2)
        below = F.interpolate(small, size=picture.shape[2:], mode="bilinear", align_corners=False)
        bands.append(above - below)
        above = below
    return bands


def _known(photo: torch.Tensor) -> torch.Tensor:
    """Return where the photo and all around it is known, 1 or 0, at a quarter of its size."""
    unknown = (photo.abs().amax(1, keepdim=True) < KNOWN).to(photo.dtype)
    return 1 - F.max_pool2d(F.avg_pool2d(unknown, 4), MARGIN, 1, MARGIN // 2).gt(0.5).to(photo.dtype)


def person_vector(pictures: list[np.ndarray], embeddings: np.ndarray) -> np.ndarray:
    """Describe a person to the network by photos, float32, shape (PERSON,).

    Args:
        pictures: RGB, uint8, (H, W, 3), each with one face; a picture with none or several gives no colour.
        embeddings: their ArcFace embeddings, float32, shape (N, 512).
    """
    faces = [(picture, recognition.detect_faces(picture)) for picture in pictures]
    alone = [(picture, found[0]) for picture, found in faces if len(found) == 1]
    eyes = [colour for picture, face in alone if (colour := colours.eye_colour(picture, face)) is not None]
    hair = [colour for picture, face in alone if (colour := colours.hair_colour(picture, face)) is not None]
    return compose_vector(
        embeddings.mean(0), np.median(eyes, 0) if eyes else None, np.median(hair, 0) if hair else None
    )


def compose_vector(embedding: np.ndarray, eyes: np.ndarray | None, hair: np.ndarray | None) -> np.ndarray:
    """Return a person's vector from an embedding of any norm, shape (512,), and colours in CIELAB or None."""
    parts = [embedding / max(float(np.linalg.norm(embedding)), 1e-6) * np.sqrt(EMBEDDING)]
    for colour, (mean, spread) in ((eyes, USUAL_EYES), (hair, USUAL_HAIR)):
        parts.append(np.zeros(4) if colour is None else np.append((colour - mean) / spread, 1))
    return np.concatenate(parts).astype(np.float32)


def save_restorer(net: FaceRestorer, folder: Path) -> None:
    """Write the network's sizes and its weights in fp16 to a folder."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.half().contiguous() for name, t in net.state_dict().items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"version": VERSION, **net.sizes}, indent=1) + "\n")


def load_restorer(folder: Path) -> FaceRestorer:
    """Return the network of a folder on the CPU, in float32, ready to restore.

    Raises:
        BadWeights: a file is missing, damaged, or of another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / CONFIG).read_text())
        if config["version"] != VERSION:
            raise ValueError(f"version {config['version']} in {CONFIG}, this program reads {VERSION}")
        net = FaceRestorer(tuple(config["channels"]), tuple(config["last_channels"]), config["code"])
        state = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}
        if names := spoilt(state):
            raise ValueError(f"{len(names)} of {len(state)} tensors hold NaN or infinity")
        net.load_state_dict(state)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise BadWeights(
            f"{folder} can't be used as the embedded restorer: {str(error).splitlines()[0]}",
            "A file is missing or damaged, or belongs to another network.",
            "Install headshotkit again, or take data/mini/restorer from the repository.",
        ) from error
    return net.eval()
