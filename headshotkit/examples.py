"""What a training draws from: pictures as latents, captions as embeddings, sizes, and where the face is.

All of it is made once and kept on disk, so that the encoders are free while the training runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from headshotkit import runtime
from headshotkit.checkpoints import DAMAGE, read_checked, to_bytes
from headshotkit.families import Condition, Family
from headshotkit.records import Dataset
from headshotkit.run import write_atomic

CACHE_FILE = "cache.pt"
FACE_PADDING = 0.1
"""What is added to a face's box on each side, in box heights: its outline and the hairline belong to the person."""
FACE_EDGE = 0.2
"""Width of the soft edge of that box, in box heights; at least one latent position."""


@dataclass
class Examples:
    """What the loop draws from: latents (N, C, h, w), an index of each one's caption, sizes for the U-Net.

    `boxes`: where each face is, (x0, y0, x1, y1) relative to the picture's width and height; empty for class images.
    """

    latents: torch.Tensor
    caption_ids: list[int]
    sizes: list[tuple[int, ...]]
    boxes: list[tuple[float, ...]]

    def weights(self, chosen: list[int], face_weight: float) -> torch.Tensor | None:
        """The weight of each latent position of the chosen pictures, (N, 1, h, w), mean 1 a picture; None: all 1."""
        if face_weight == 1 or not self.boxes:
            return None
        height, width = self.latents.shape[-2:]
        return torch.stack([face_weights(self.boxes[i], height, width, face_weight) for i in chosen])


def face_weights(box: tuple[float, ...], height: int, width: int, face_weight: float) -> torch.Tensor:
    """How much each latent position counts: a face more than what surrounds it, with a soft edge.

    The mean is 1, so a learning rate means the same with any weight.

    Args:
        box: of the face, (x0, y0, x1, y1) relative to the picture's width and height.
        height, width: of the latents.
        face_weight: weight of the face relative to the rest, at least 1.
    Returns: float32, shape (1, height, width), mean 1.

    >>> face_weights((0.25, 0.25, 0.75, 0.75), 8, 8, 3.0)[0, 4].round(decimals=2)
    tensor([0.5800, 1.0500, 1.7400, 1.7400, 1.7400, 1.7400, 1.0500, 0.5800])
    """
    tall = (box[3] - box[1]) * height
    padding, edge = FACE_PADDING * tall, max(1.0, FACE_EDGE * tall)
    across = _inside(box[0] * width - padding, box[2] * width + padding, edge, width)
    down = _inside(box[1] * height - padding, box[3] * height + padding, edge, height)
    weights = 1 + (face_weight - 1) * down[:, None] * across[None, :]
    return (weights / weights.mean())[None]


def _inside(start: float, end: float, edge: float, count: int) -> torch.Tensor:
    """How far inside an interval the middles of `count` positions lie: 1 inside, 0 outside, linear over the edge."""
    middles = torch.arange(count) + 0.5
    return ((middles - start) / edge + 0.5).clamp(0, 1) * ((end - middles) / edge + 0.5).clamp(0, 1)


def cached_examples(
    family: Family, folder: Path, dataset: Dataset, cache_folder: Path
) -> tuple[Examples, Examples, Condition]:
    """Latents and embeddings, encoded once and kept on disk: (person's Examples, class Examples, conditions).

    The last condition is the empty caption's, the one before it the class's.

    Args:
        folder: of the dataset.
        cache_folder: where they are kept.
    Raises:
        DiskFull, RunFolderError: they can't be written.
    """
    captions = sorted({p.caption for p in dataset.photos}) + [f"photo of a {dataset.class_word}", ""]
    side = dataset.size_px
    person_sizes = [
        (*p.original_size_px[::-1], *p.crop_top_left_px, *(p.size_px[::-1] or (side, side))) for p in dataset.photos
    ]
    class_sizes = [(side, side, 0, 0, side, side)] * len(dataset.class_images)
    cache = cache_folder / CACHE_FILE
    try:
        kept = read_checked(cache)
    except DAMAGE:  # mostly: it is not there yet
        files = [p.file for p in dataset.photos] + list(dataset.class_images)
        images = runtime.progress([Image.open(folder / f).convert("RGB") for f in files], "encoding photos")
        latents = torch.cat([family.encode_images([image]) for image in images])
        condition = family.encode_prompts(captions)
        kept = {"latents": latents, "condition": dict(condition)}
        write_atomic(cache, to_bytes(kept))
    conditions = Condition(kept["condition"])
    n = len(dataset.photos)
    boxes = [_relative_box(p.face_box_px, p.size_px or (side, side)) for p in dataset.photos]
    person = Examples(kept["latents"][:n], [captions.index(p.caption) for p in dataset.photos], person_sizes, boxes)
    pictures = Examples(kept["latents"][n:], [len(captions) - 2] * len(class_sizes), class_sizes, [])
    return person, pictures, conditions


def _relative_box(box: tuple[float, ...], size: tuple[int, ...]) -> tuple[float, ...]:
    """A box in px as one relative to the picture's (width, height)."""
    return tuple(edge / side for edge, side in zip(box, size * 2, strict=True))
