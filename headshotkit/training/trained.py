"""Write a finished training's files, each with how it was trained, and the record of how to use them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from headshotkit.core.records import Dataset, Lora
from headshotkit.core.run import Stage
from headshotkit.families.expressions import EXPRESSIONS
from headshotkit.families.methods import Method
from headshotkit.photos.coverage import ONE_SIDED
from headshotkit.training.checkpoints import Checkpoints


def write_trained(method: Method, checkpoints: Checkpoints, stage: Stage, dataset: Dataset, steps: int) -> Lora:
    """Write what the method leaves after `steps` steps, file by file, each with how it was trained."""
    captions, made, files = [photo.caption for photo in dataset.photos], stage.manifest, []
    lora = replace(method.record(), step=steps, usual_expression=usual_expression(captions))
    facts = {"base": lora.base, "method": lora.method, "token": lora.token, "class_word": lora.class_word,
             "steps": lora.step, "rank": lora.rank, "alpha": lora.alpha, "captions": json.dumps(captions),
             "config": json.dumps(made["config"]), "changes": json.dumps(made["changes"]),
             "fingerprint": made["fingerprint"], "version": made["headshotkit"]}  # fmt: skip
    header = {f"headshotkit.{name}": str(value) for name, value in facts.items()}  # safetensors needs strings
    for name, content in method.files(header):
        checkpoints.write(stage.folder / name, content)
        files.append(Path(name))
    return replace(lora, path=files[0], files=tuple(files))


def usual_expression(captions: Sequence[str]) -> str:
    """Return the expression that more than three quarters of the captions name; empty if there is none.

    >>> usual_expression(["photo of ohwx man, smiling"] * 4 + ["photo of ohwx man"])
    'smiling'
    """
    named = {words: sum(words in caption for caption in captions) for words in EXPRESSIONS}
    return next((words for words, count in named.items() if count > ONE_SIDED * len(captions)), "")
