"""Draw other people and the bare token with a run's LoRA, and say whether it leaks or repeats its photos."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from PIL import Image

from headshotkit.config import CLASS_WORDS, GenerateConfig, LeakConfig
from headshotkit.config.bases import find_base
from headshotkit.core import locks, runtime
from headshotkit.core.records import Lora
from headshotkit.core.results import DatasetResult, LoraResult, PhotosResult
from headshotkit.core.run import Run, read_json, write_atomic, write_json
from headshotkit.families import Sampling, load_family
from headshotkit.families.jobs import Job
from headshotkit.families.methods import use_trained
from headshotkit.generation.picking import prompts_that_differ
from headshotkit.generation.prompts import Prompt, load_prompts
from headshotkit.photos.files import png_bytes
from headshotkit.photos.kept import kept_faces
from headshotkit.photos.metadata import ORIGIN
from headshotkit.scoring import leak
from headshotkit.scoring.identity import held_out_of, known_person

FOLDER, FILE = "leak", "leak.json"


@locks.writes("leak")
@runtime.frees_memory
def measure_leak(run: Run, config: LeakConfig | None = None) -> dict:
    """Measure what a run's LoRA does to other people, and whether it repeats its photos.

    Writes `leak/`: a PNG a picture and leak.json, with the figures and a sentence about each. Pictures of an earlier
    call with the same LoRA and settings are used again.

    Raises:
        StageMissing: the LoRA has not been trained.
        DamagedRun: its file, or a kept photo, is missing or changed.
        BadPromptBank: the bank has too few prompts with a measurable request.
    """
    config = config or LeakConfig()
    lora = LoraResult.load(run).lora
    run.files("lora", lora.files, thorough=True)
    drawing = GenerateConfig.for_base(lora.base).without_base_guidance()
    prompts = prompts_that_differ(load_prompts(), config.pictures)
    jobs = jobs_of(prompts, lora, drawing, config)
    made_from = {"lora": run.content_of("lora"), "settings": config.to_dict(), "drawing": drawing.to_dict()}
    folder = run.path(FOLDER)
    before = read_json(folder / FILE, {"made_from": dict}, f"headshotkit leak --out {run.folder}") or {}
    if before.get("made_from") != json.loads(json.dumps(made_from)):
        for file in folder.glob("*.png"):
            file.unlink()
    write_json(folder / FILE, {"made_from": made_from})  # so that an interrupted call's pictures are known
    missing = [name for name in _names(jobs) if not (folder / name).is_file()]
    if missing:
        family = load_family(lora.base)
        sampling = Sampling.of(drawing, names=lora.names)
        use_lora = partial(use_trained, family, run.path("lora"), lora)
        drawn = leak.draw_both(family, use_lora, jobs, sampling, drawing.batch)
        total = len(_names(jobs))
        for kind, state, number, picture in runtime.progress(drawn, "pictures of other people", total=total):
            write_atomic(folder / _name(kind, state, number), png_bytes(picture, Software=ORIGIN))
    seen = {}
    for kind, some in jobs.items():
        for state in ("on",) if kind == "token" else ("off", "on"):
            files = [folder / _name(kind, state, number) for number in range(len(some))]
            seen[kind, state] = [_seen(file, job.prompt) for file, job in zip(files, some, strict=True)]
    person = known_person(run, drawing)
    groups = {
        kind: leak.compare_group(seen[kind, "off"], seen[kind, "on"], person.centre, person.threshold.value)
        for kind in ("class", "others")
    }
    trained, held_out = _photos(run)
    found = {name: leak.nearest_photos(seen["token", "on"], trained, held_out, of) for name, of in leak.MEMORY.items()}
    memory = {name: one for name, one in found.items() if one is not None}
    few = [] if held_out else ["without the memorisation test: no photo was held out of the training"]
    report = leak.to_json(groups, memory) | {
        "missing": few,
        "class_images": len(DatasetResult.load(run).dataset.class_images),
        "made_from": made_from,
    }
    write_json(folder / FILE, report)
    return report


def jobs_of(
    prompts: list[Prompt], lora: Lora, drawing: GenerateConfig, config: LeakConfig
) -> dict[str, list[Job]]:  # fmt: skip
    """Return the jobs of each of `leak.KINDS`; the class word and the other class words have the same prompts."""
    brief = find_base(lora.base).brief_prompts
    others = [f"a {word}" for word in CLASS_WORDS if word != lora.class_word]
    size = (drawing.size_px, drawing.size_px)

    def job(number: int, prompt: Prompt, who: str) -> Job:
        negative = "" if brief else prompt.negative
        return Job(prompt.for_person(who, brief), negative, runtime.seed_for(config.seed, number, 0), size)

    token = Prompt("token", "photo of {person}", "photo of {person}", "", ())
    return {
        "class": [job(number, prompt, lora.names.class_prompt) for number, prompt in enumerate(prompts)],
        "others": [job(number, prompt, others[number % len(others)]) for number, prompt in enumerate(prompts)],
        "token": [job(number, token, lora.names.person) for number in range(len(prompts))],
    }


def _name(kind: str, state: str, number: int) -> str:
    return f"{kind}_{state}_{number:02}.png"


def _names(jobs: dict[str, list[Job]]) -> list[str]:
    return [
        _name(kind, state, number)
        for kind, some in jobs.items()
        for state in (("on",) if kind == "token" else ("off", "on"))
        for number in range(len(some))
    ]


def _seen(file: Path, prompt: str) -> leak.Drawn:
    with Image.open(file, formats=("PNG",)) as picture:
        return leak.look_at(picture, prompt)


def _photos(run: Run) -> tuple[list[leak.Drawn], list[leak.Drawn]]:
    """Return the photos that were trained on, and those held out."""
    held, sets = held_out_of(run), ([], [])
    for verdict, (image, face) in zip(PhotosResult.load(run).kept, kept_faces(run, "memorisation"), strict=True):
        sets[verdict.photo in held].append(leak.own_photo(image, face))
    return sets
