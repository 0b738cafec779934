"""The five transforms that diffusers' DreamBooth scripts take from torchvision, for machines that can't have it.

`install()` puts them into `sys.modules` as `torchvision`; the libraries are asked first whether the real one is here,
so that they go on without it. For a process of its own only.
"""

from __future__ import annotations

import random
import sys
from enum import Enum
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import torch
from PIL import Image, ImageOps


class InterpolationMode(Enum):
    """Names as torchvision has them; values are PIL's filters."""

    NEAREST = Image.Resampling.NEAREST
    BILINEAR = Image.Resampling.BILINEAR
    BICUBIC = Image.Resampling.BICUBIC
    LANCZOS = Image.Resampling.LANCZOS


def crop(image: Image.Image, top: int, left: int, height: int, width: int) -> Image.Image:
    return image.crop((left, top, left + width, top + height))


class Resize:
    """The shorter side becomes `size` px."""

    def __init__(self, size: int, interpolation: InterpolationMode = InterpolationMode.BILINEAR) -> None:
        self.size, self.filter = size, interpolation.value

    def __call__(self, image: Image.Image) -> Image.Image:
        factor = self.size / min(image.size)
        return image.resize([round(side * factor) for side in image.size], self.filter)


class CenterCrop:
    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        return crop(image, (image.height - self.size) // 2, (image.width - self.size) // 2, self.size, self.size)


class RandomCrop(CenterCrop):
    @staticmethod
    def get_params(image: Image.Image, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """(top, left, height, width) of a crop at a random place."""
        height, width = size
        return random.randint(0, image.height - height), random.randint(0, image.width - width), height, width

    def __call__(self, image: Image.Image) -> Image.Image:
        return crop(image, *self.get_params(image, (self.size, self.size)))


class RandomHorizontalFlip:
    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.mirror(image) if random.random() < self.p else image


class ToTensor:
    """PIL RGB to float32, shape (3, H, W), in [0, 1]."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


class Normalize:
    def __init__(self, mean: list[float], std: list[float]) -> None:
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, picture: torch.Tensor) -> torch.Tensor:
        return (picture - self.mean) / self.std


class Compose:
    def __init__(self, transforms: list) -> None:
        self.transforms = transforms

    def __call__(self, picture):
        for transform in self.transforms:
            picture = transform(picture)
        return picture


def install() -> None:
    """Makes `import torchvision` give the stand-in, in this process."""
    import diffusers  # noqa: F401 - it looks for torchvision as it is imported, and finds none
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():  # remembered by transformers: later questions have the same answer
        return
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    modules = [ModuleType(name) for name in names]
    for name, module in zip(names, modules, strict=True):
        module.__spec__ = ModuleSpec(name, None)
        sys.modules[name] = module
    package, transforms, functional = modules
    package.transforms, transforms.functional, functional.crop = transforms, functional, crop
    for part in (InterpolationMode, Resize, CenterCrop, RandomCrop, RandomHorizontalFlip, ToTensor, Normalize, Compose):
        setattr(transforms, part.__name__, part)
