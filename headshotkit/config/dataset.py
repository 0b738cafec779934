"""How photos become training pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from headshotkit.config.base import Config, FilePath, OneOf, Range, Seed, Size, Text, demand
from headshotkit.config.bases import BASES

SDXL_SIZES_PX = {"1:1": (1024, 1024), "4:5": (896, 1152), "3:4": (832, 1152), "2:3": (832, 1216), "16:9": (1344, 768)}
"""Aspect, width to height -> the size (width, height) px that SDXL was trained on which stands for it: 896 x 1152 is
0.78, 832 x 1152 is 0.72, 832 x 1216 is 0.68, 1344 x 768 is 1.75. Source: SDXL, Podell et al. 2023, arXiv:2307.01952,
appendix I."""
ASPECTS = ("1:1", "4:5", "3:4", "2:3")
"""Shapes of training pictures and crops."""
CLASS_WORDS = ("person", "woman", "man")
"""What a person can be called in captions; the token stands before it, as in "photo of ohwx woman"."""
AUGMENTS = ("off", "safe", "full")
CAPTIONERS = ("template", "blip", "florence")


@dataclass(frozen=True)
class DatasetConfig(Config):
    """How photos become training pictures."""

    base: str = "sdxl"
    """The base that the pictures are for; decides their size."""
    token: Annotated[str, Text(40)] = "ohwx"
    """The rare token that names the person in captions."""
    class_word: Annotated[str, OneOf(CLASS_WORDS)] = "person"
    """What the person is, one of CLASS_WORDS."""
    size_px: Size = 1024
    """Side of the square training picture, px; a multiple of 8. Other aspects have about as many pixels."""
    aspect: Annotated[str, OneOf(ASPECTS)] = "1:1"
    """Shape of the training pictures, one of ASPECTS; one for all of them, for a batch holds one shape."""
    face_fractions: tuple[Annotated[float, Range(0.1, 1)], ...] = (0.45, 0.62)
    """Height of the face relative to the picture's, one crop for each; as far as the photo allows.
    0.45 shows head and shoulders, 0.62 the face."""
    augment: Annotated[str, OneOf(AUGMENTS)] = "off"
    """off, safe (each crop once more, turned and scaled a little) or full (mirrored once more as well). Off, for no
    face is symmetric, so mirrored pictures harm identity (arXiv:2505.03557), and turned ones are a little softer."""
    captioner: Annotated[str, OneOf(CAPTIONERS)] = "template"
    """Who writes the captions: template (words for what was measured, offline), blip or florence (they see scene and
    clothes; their words on the face are taken out)."""
    captioner_weights: FilePath = ""
    """Folder or hub id of the captioner's weights; empty: the hub's usual ones."""
    class_images: Annotated[int, Range(0, 10_000, "It is how many are drawn.")] = 0
    """Number of class images for prior preservation, generated from the base; 0 is none."""
    class_prompt: Annotated[str, Text(400)] = ""
    """What class images show, in words, such as "oil painting of a woman": then the base keeps that style, while it
    learns the person; empty: a photo of the class word."""
    seed: Seed = 0
    """Seed of the class images and of the augmentation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        demand(
            bool(self.token) and not self.token.isspace(),
            f"token {self.token!r} is empty.",
            "Captions name the person by it and the class word.",
            "Set DatasetConfig.token.",
        )
        demand(
            bool(self.face_fractions),
            "face_fractions are none.",
            "Each photo is cropped once for each of them.",
            "Set DatasetConfig.face_fractions, for example (0.45, 0.62).",
        )
        demand(
            bool(self.class_images) or not self.class_prompt,
            f"class_prompt is {self.class_prompt!r}, class_images is 0.",
            "It says what class images show.",
            "Set DatasetConfig.class_images as well, for example 50.",
        )
        self._demand_what_the_base_can_do()

    def _demand_what_the_base_can_do(self) -> None:
        """Shapes and words that the base was not trained on, and shapes that class images don't have, are refused."""
        small = self.base in BASES and BASES[self.base].brief_prompts
        demand(
            self.aspect == "1:1" or not small,
            f"aspect is {self.aspect}, base is {self.base!r}.",
            "This base was trained on square pictures only.",
            "Set DatasetConfig.aspect to 1:1, or choose another base: --base sdxl",
        )
        demand(
            self.aspect == "1:1" or not self.class_images,
            f"aspect is {self.aspect}, class_images is {self.class_images}.",
            "Class images are square, and a training batch holds pictures of one shape.",
            "Set DatasetConfig.aspect to 1:1 or DatasetConfig.class_images to 0.",
        )
        demand(
            self.captioner == "template" or not small,
            f"captioner is {self.captioner!r}, base is {self.base!r}.",
            "This base knows only the few words that the templates use.",
            "Set DatasetConfig.captioner to template, or choose another base: --base sdxl",
        )
