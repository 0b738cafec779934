"""Prepare what a training samples from: latents, caption embeddings, sizes, and face boxes.

All are computed once and kept on disk, so that the encoders need no memory during the training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from headshotkit.core import runtime
from headshotkit.core.records import Dataset, TrainingPhoto
from headshotkit.core.run import write_atomic
from headshotkit.families import Condition, Family
from headshotkit.training.checkpoints import DAMAGE, read_checked, to_bytes

CACHE_FILE = "cache.pt"
GRID = 32
"""Sides of pictures at other sizes than the dataset's are multiples of it, px: SDXL needs that."""
FACE_PADDING = 0.1
"""Margin around a face's box on each side, in box heights, so that outline and hairline are included."""
FACE_EDGE = 0.2
"""Width of the soft edge of that box, in box heights; at least one latent position."""
EPOCH = 2
"""Index of the seed for the order of an epoch."""


class Batch(NamedTuple):
    """The pictures of one loss: latents (N, C, h, w), N captions' conditions, N sizes for the U-Net.

    `weights`: of each latent position, (N, 1, h, w), mean 1 a picture; None: all equal.
    """

    latents: torch.Tensor
    condition: Condition
    sizes: list[tuple[int, ...]]
    weights: torch.Tensor | None = None


@dataclass
class Examples:
    """What the loop samples from: latents (N, C, h, w), an index of each one's caption, sizes for the U-Net.

    `boxes`: face boxes, (x0, y0, x1, y1) relative to the picture's width and height; empty for class images.
    """

    latents: torch.Tensor
    caption_ids: list[int]
    sizes: list[tuple[int, ...]]
    boxes: list[tuple[float, ...]]

    @property
    def count(self) -> int:
        """Return N, the number of pictures."""
        return len(self.sizes)

    def batch(self, chosen: list[int], conditions: Condition, generator: torch.Generator, caption_dropout: float = 0.0,
              face_weight: float = 1.0) -> Batch:  # fmt: skip
        """Return the chosen pictures; some captions, drawn by the generator, are replaced by the empty one.

        Args:
            conditions: of all captions; the last is the empty caption's.
        """
        empty = conditions.count - 1
        dropped = torch.rand(len(chosen), generator=generator) < caption_dropout
        captions = [empty if drop else self.caption_ids[i] for i, drop in zip(chosen, dropped, strict=True)]
        sizes, weights = [self.sizes[i] for i in chosen], self.weights(chosen, face_weight)
        return Batch(self.latents[chosen], conditions.pick(captions), sizes, weights)

    def weights(self, chosen: list[int], face_weight: float) -> torch.Tensor | None:
        """Return the weight of each latent position of the chosen pictures, (N, 1, h, w), mean 1 each; None: all 1."""
        if face_weight == 1 or not self.boxes:
            return None
        height, width = self.latents.shape[-2:]
        return torch.stack([face_weights(self.boxes[i], height, width, face_weight) for i in chosen])


class TrainingSet(NamedTuple):
    """What a training samples from: the person's photos and the class images by size, px, and all conditions.

    The last condition is the empty caption's, the one before it the class prompt's.
    """

    person: dict[int, Examples]
    class_images: dict[int, Examples]
    conditions: Condition

    @property
    def class_count(self) -> int:
        """Return the number of class images, which is the same at every size."""
        return next(iter(self.class_images.values())).count


def in_epochs(count: int, first: int, last: int, seed: int) -> list[int]:
    """Return the indices of the pictures from place `first` to before `last` of an endless order.

    In it each of `count` pictures comes once an epoch, and every epoch has an order of its own.

    >>> first, second = in_epochs(3, 0, 3, seed=0), in_epochs(3, 3, 6, seed=0)
    >>> sorted(first) == sorted(second) == [0, 1, 2], in_epochs(3, 2, 4, seed=0) == [first[2], second[0]]
    (True, True)
    """
    chosen = []
    for place in range(first, last):
        epoch, index = divmod(place, count)
        generator = torch.Generator().manual_seed(runtime.seed_for(seed, EPOCH, epoch))
        chosen.append(int(torch.randperm(count, generator=generator)[index]))
    return chosen


def face_weights(box: tuple[float, ...], height: int, width: int, face_weight: float) -> torch.Tensor:
    """Return the loss weight of each latent position: higher on the face, with a soft edge.

    The mean is 1, so a learning rate means the same with any weight.

    Args:
        box: of the face, (x0, y0, x1, y1) relative to the picture's width and height.
        height, width: of the latents.
        face_weight: weight of the face relative to the rest, at least 1.
    Returns: float32, shape (1, height, width), mean 1.

    >>> face_weights((0.25, 0.25, 0.75, 0.75), 8, 8, 3.0)[0, 4].round(decimals=2)
    tensor([0.5800, 1.0500, 1.7400, 1.7400, 1.7400, 1.7400, 1.0500, 0.5800])
    """
    face_height = (box[3] - box[1]) * height
    padding, edge = FACE_PADDING * face_height, max(1.0, FACE_EDGE * face_height)
    across = _inside(box[0] * width - padding, box[2] * width + padding, edge, width)
    down = _inside(box[1] * height - padding, box[3] * height + padding, edge, height)
    weights = 1 + (face_weight - 1) * down[:, None] * across[None, :]
    return (weights / weights.mean())[None]


def _inside(start: float, end: float, edge: float, count: int) -> torch.Tensor:
    """Return how far the centres of `count` positions lie in an interval: 1 inside, 0 outside, linear at the edge."""
    middles = torch.arange(count) + 0.5
    return ((middles - start) / edge + 0.5).clamp(0, 1) * ((end - middles) / edge + 0.5).clamp(0, 1)


def cached_examples(
    family: Family, folder: Path, dataset: Dataset, cache_folder: Path, sizes_px: set[int]
) -> TrainingSet:
    """Return latents and embeddings, encoded once and kept on disk.

    Args:
        folder: of the dataset.
        cache_folder: folder they are kept in.
        sizes_px: sides of the square pictures needed, px; at most the dataset's.
    Raises:
        DiskFull, RunFolderError: they can't be written.
    """
    captions, files = dataset.captions, [p.file for p in dataset.photos] + list(dataset.class_images)
    made_of = {"captions": captions, "files": files}
    try:
        kept = read_checked(cache_folder / CACHE_FILE, ("latents", "condition"), **made_of)
        if any(len(latents) != len(files) for latents in kept["latents"].values()):
            raise ValueError("its latents are of other pictures")
    except (*DAMAGE, AttributeError, TypeError):  # usually it does not exist yet
        kept = {"latents": {}, "condition": dict(family.encode_prompts(captions)), **made_of}
    missing = sorted(sizes_px - set(kept["latents"]))
    for px in missing:
        latents = []
        for file in runtime.progress(files, f"encoding at {px} px"):
            with Image.open(folder / file, formats=("PNG",)) as opened:
                image = opened.convert("RGB")
            size, window = window_at(image.size, dataset.size_px, px)
            if size != image.size:
                image = image.resize(size, Image.Resampling.LANCZOS, box=window)
            latents.append(family.encode_images([image]))
        kept["latents"][px] = torch.cat(latents)
    if missing:
        write_atomic(cache_folder / CACHE_FILE, to_bytes(kept))
    person, pictures, n = {}, {}, len(dataset.photos)
    for px in sizes_px:
        latents, facts = kept["latents"][px], [facts_at(photo, dataset.size_px, px) for photo in dataset.photos]
        ids = [captions.index(photo.caption) for photo in dataset.photos]
        person[px] = Examples(latents[:n], ids, [size for size, _ in facts], [box for _, box in facts])
        sizes = [(dataset.size_px, dataset.size_px, 0, 0, px, px)] * len(dataset.class_images)
        pictures[px] = Examples(latents[n:], [len(captions) - 2] * len(sizes), sizes, [])
    return TrainingSet(person, pictures, Condition(kept["condition"]))


def window_at(
    size: tuple[int, int], size_px: int, px: int
) -> tuple[tuple[int, int], tuple[float, float, float, float]]:
    """Return a picture's (width, height) px at another size, and the window of the picture that is used.

    Sides are multiples of GRID. If that changes the aspect ratio slightly, the window is the largest centred one of
    the new ratio: (left, top, right, bottom) px of the picture.

    >>> window_at((1024, 1024), 1024, 768)
    ((768, 768), (0.0, 0.0, 1024.0, 1024.0))
    >>> size, window = window_at((832, 1152), 1024, 768)
    >>> size, [round(edge, 1) for edge in window]
    ((640, 864), [0.0, 14.4, 832.0, 1137.6])
    """
    if px == size_px:
        return size, (0.0, 0.0, float(size[0]), float(size[1]))
    new = tuple(max(GRID, round(side * px / size_px / GRID) * GRID) for side in size)
    scale = max(new[0] / size[0], new[1] / size[1])
    cut_width, cut_height = new[0] / scale, new[1] / scale
    left, top = (size[0] - cut_width) / 2, (size[1] - cut_height) / 2
    return new, (left, top, left + cut_width, top + cut_height)


def facts_at(photo: TrainingPhoto, size_px: int, px: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return a picture's SDXL micro-conditioning at a size, as `Family.predict` takes it, and its relative face box."""
    (width, height), (left, top, right, bottom) = window_at(photo.size_px or (size_px, size_px), size_px, px)
    scale = width / (right - left)
    corner = (round((photo.crop_top_left_px[0] + top) * scale), round((photo.crop_top_left_px[1] + left) * scale))
    corners = zip(photo.face_box_px, (left, top) * 2, (width, height) * 2, strict=True)
    box = tuple((edge - start) * scale / side for edge, start, side in corners)
    return (*photo.original_size_px[::-1], *corner, height, width), box
