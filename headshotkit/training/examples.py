"""Prepare what a training samples from: latents, caption embeddings, sizes, and face boxes.

All are computed once and kept on disk, so that the encoders need no memory during the training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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


@dataclass
class Examples:
    """What the loop samples from: latents (N, C, h, w), an index of each one's caption, sizes for the U-Net.

    `boxes`: face boxes, (x0, y0, x1, y1) relative to the picture's width and height; empty for class images.
    """

    latents: torch.Tensor
    caption_ids: list[int]
    sizes: list[tuple[int, ...]]
    boxes: list[tuple[float, ...]]

    def weights(self, chosen: list[int], face_weight: float) -> torch.Tensor | None:
        """Return the weight of each latent position of the chosen pictures, (N, 1, h, w), mean 1 each; None: all 1."""
        if face_weight == 1 or not self.boxes:
            return None
        height, width = self.latents.shape[-2:]
        return torch.stack([face_weights(self.boxes[i], height, width, face_weight) for i in chosen])


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
) -> tuple[dict[int, Examples], dict[int, Examples], Condition]:
    """Return latents and embeddings, encoded once and kept on disk: (person's Examples, class Examples, conditions).

    Both dictionaries are by size. The last condition is the empty caption's, the one before it the class prompt's.

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
        kept["latents"][px] = _encode(family, folder, dataset, px)
    if missing:
        write_atomic(cache_folder / CACHE_FILE, to_bytes(kept))
    person, pictures, n = {}, {}, len(dataset.photos)
    for px in sizes_px:
        latents, facts = kept["latents"][px], [_facts_at(photo, dataset.size_px, px) for photo in dataset.photos]
        ids = [captions.index(photo.caption) for photo in dataset.photos]
        person[px] = Examples(latents[:n], ids, [size for size, _ in facts], [box for _, box in facts])
        sizes = [(dataset.size_px, dataset.size_px, 0, 0, px, px)] * len(dataset.class_images)
        pictures[px] = Examples(latents[n:], [len(captions) - 2] * len(sizes), sizes, [])
    return person, pictures, Condition(kept["condition"])


def _encode(family: Family, folder: Path, dataset: Dataset, px: int) -> torch.Tensor:
    """Encode all pictures of a dataset at one size to latents, shape (N, C, h, w); class images come last."""
    latents = []
    for file in runtime.progress([p.file for p in dataset.photos] + list(dataset.class_images), f"encoding at {px} px"):
        with Image.open(folder / file, formats=("PNG",)) as opened:
            image = opened.convert("RGB")
        size, window = window_at(image.size, dataset.size_px, px)
        if size != image.size:
            image = image.resize(size, Image.Resampling.LANCZOS, box=window)
        latents.append(family.encode_images([image]))
    return torch.cat(latents)


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


def _facts_at(photo: TrainingPhoto, size_px: int, px: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return a picture's SDXL micro-conditioning at a size, as `Family.loss` takes it, and its relative face box."""
    (width, height), (left, top, right, bottom) = window_at(photo.size_px or (size_px, size_px), size_px, px)
    scale = width / (right - left)
    corner = (round((photo.crop_top_left_px[0] + top) * scale), round((photo.crop_top_left_px[1] + left) * scale))
    corners = zip(photo.face_box_px, (left, top) * 2, (width, height) * 2, strict=True)
    box = tuple((edge - start) * scale / side for edge, start, side in corners)
    return (*photo.original_size_px[::-1], *corner, height, width), box
