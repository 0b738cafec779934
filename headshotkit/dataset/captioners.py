"""Captioning models, BLIP and Florence-2, and the filter that removes what they write about the face.

Their weights come from the hub once; no photo is sent anywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

from headshotkit.core import hub, runtime

MOST_TOKENS = 60
BEAMS = 3
_FACE_WORDS = """
man men woman women person people boy boys girl girls guy lady ladies gentleman male female child children kid kids baby
toddler teen teenager adult model individual someone he she
face faces facial head hair haired hairs hairstyle haircut hairline beard bearded moustache mustache goatee stubble
sideburns shaved shaven eye eyes eyed eyebrow eyebrows eyelash eyelashes brow brows nose mouth lips lip teeth tooth
chin jaw jawline cheek cheeks cheekbones forehead ear ears skin skinned complexion freckle freckles freckled wrinkle
wrinkles wrinkled mole moles scar scars dimple dimples tanned bald balding blond blonde brunette redhead redheaded
curly wavy ponytail braid braids braided dreadlocks afro bangs makeup lipstick mascara tattoo tattoos
young younger older elderly aged middle-aged age teenage youthful years twenties thirties forties fifties sixties
beautiful handsome pretty gorgeous attractive cute lovely stunning sexy ugly good-looking slim fat skinny chubby
muscular asian african caucasian hispanic latino latina indian chinese japanese korean arab ethnicity race gender
"""
FACE_WORDS = frozenset(_FACE_WORDS.split())
"""Words for a face, a body, an age, a gender or a descent, and for the person as the subject."""
_EMPTY_WORDS = """
a an the is are was and of with there that who which this it its very image photo picture portrait close up close-up
headshot selfie shows shot
"""
EMPTY_WORDS = frozenset(_EMPTY_WORDS.split())
"""Words without a meaning of their own."""
SPLIT = re.compile(
    r"(\s*[,;.:]\s*|\s+(?:and|with|who|that|which|has|having|while|but)\s+"
    r"|\s+(?=(?:standing|sitting|wearing|posing|looking|smiling|holding|leaning|walking|dressed|taking|in|on|at|by|near"
    r"|against|under|outside|inside|beside|behind|next)\b))"
)


@dataclass(frozen=True)
class Recipe:
    """A captioner's weights, its classes in transformers, its task prompt, and its size, GB."""

    weights: str
    model: str
    processor: str
    task: str = ""
    size_gb: float = 1.9


RECIPES = {
    "blip": Recipe("Salesforce/blip-image-captioning-large", "BlipForConditionalGeneration", "BlipProcessor"),
    "florence": Recipe(
        "florence-community/Florence-2-base",
        "Florence2ForConditionalGeneration",
        "Florence2Processor",
        "<CAPTION>",
        0.5,
    ),
}


def source_of(name: str, weights: str = "") -> str:
    """Return the source of a captioner's weights, a folder or hub id; empty for captions without a model."""
    return weights or (RECIPES[name].weights if name in RECIPES else "")


class Captioner:
    """A loaded captioning model.

    Args:
        name: one of RECIPES.
        weights: folder or hub id; empty: the recipe's.
    Raises:
        BaseUnavailable: the weights are not on this machine and can't be downloaded.
    """

    def __init__(self, name: str, weights: str = "") -> None:
        import transformers

        from headshotkit.families.loading import loading

        self.recipe, self.device = RECIPES[name], runtime.choose_device()[0]
        title, otherwise = f"the captioner {name!r}", "use the offline captioner: template"
        place = hub.fetch(
            hub.Wanted(source_of(name, weights), title, otherwise, parts=hub.ROOT, size_gb=self.recipe.size_gb)
        )
        with loading(title, place, otherwise):
            self.processor = getattr(transformers, self.recipe.processor).from_pretrained(place)
            model = getattr(transformers, self.recipe.model).from_pretrained(place, use_safetensors=True)
        self.model = model.to(self.device).eval()

    def caption(self, picture: np.ndarray) -> str:
        """Caption a picture without describing the face; may be empty.

        Args:
            picture: RGB, uint8, shape (H, W, 3).
        """
        import torch

        asked = {"text": self.recipe.task} if self.recipe.task else {}
        inputs = self.processor(images=Image.fromarray(picture), return_tensors="pt", **asked).to(self.device)
        with torch.no_grad():
            made = self.model.generate(**inputs, max_new_tokens=MOST_TOKENS, num_beams=BEAMS, do_sample=False)
        return without_the_face(self.processor.batch_decode(made, skip_special_tokens=True)[0])


def without_the_face(text: str) -> str:
    """Return a caption without the parts about face, age, gender, body or descent, and without its subject.

    >>> without_the_face("A young woman with long blond hair and blue eyes wearing a green coat in front of a window.")
    'wearing a green coat, in front of a window'
    >>> without_the_face("there is a bearded man in a suit and tie smiling at the camera")
    'in a suit and tie, smiling, at the camera'
    """
    parts = SPLIT.split(f" {text.lower().strip()} ".replace("\n", " "))
    kept, last = "", -2
    for number in range(0, len(parts), 2):
        part = re.sub(r"\b(his|her|their|him|them)\b\s*", "", parts[number]).strip()
        words = set(re.findall(r"[a-z][a-z-]*", part))
        if words & FACE_WORDS or any(piece in FACE_WORDS for word in words for piece in word.split("-")):
            continue
        if not words - EMPTY_WORDS:
            continue
        joiner = parts[number - 1].strip() if number - last == 2 else ""
        kept += (f" {joiner} " if joiner in ("and", "with") else ", ") * bool(kept) + part
        last = number
    return kept
