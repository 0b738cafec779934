"""Renders headshots: prompts + LoRA + seeds, each compared with the person, with a new seed when it isn't them."""

from __future__ import annotations

import statistics
from collections import Counter
from pathlib import Path

from headshotkit.bases import find_base
from headshotkit.config import RenderConfig
from headshotkit.errors import BadLora
from headshotkit.families import load_family
from headshotkit.identity import known_person
from headshotkit.prompts import BANK, Prompt, choose_prompts, load_prompts
from headshotkit.records import Headshot, Lora
from headshotkit.run import Run, sha256_of
from headshotkit.session import Session, Task


def render_headshots(run: Run, config: RenderConfig) -> list[Headshot]:
    """Renders the headshots of a run and judges each; refused ones are tried again from new noise.

    Writes `headshots/`: a PNG an attempt (it says how it was made), manifest.json with every attempt in `headshots`,
    the best of each prompt in `delivered`, and rows that the denoiser computed for a picture in
    `forwards_per_headshot`.

    Raises:
        StageMissing: the LoRA has not been trained.
        BadLora: it was trained on another base.
        BadPromptBank: the prompt bank can't be used, or has no prompt in one of the packs.
    """
    lora = Lora.from_dict(run.manifest("lora")["lora"])
    if lora.base != config.base:
        raise BadLora(
            f"the LoRA was trained on base {lora.base!r}, the headshots are asked of {config.base!r}.",
            "A LoRA only fits the base it was trained on.",
            f"Generate with --base {lora.base}, or train again with --base {config.base}.",
        )
    bank = Path(config.prompts) if config.prompts else BANK
    tasks = _tasks(load_prompts(bank), lora, config)
    inputs = run.inputs_from("photos", "lora") | {"prompts": sha256_of(bank)}
    stage = run.begin("headshots", config, inputs, seed=config.seed)
    if stage.done:
        return [Headshot.from_dict(h) for h in stage.manifest["headshots"]]
    person = known_person(run, config)
    family = load_family(config.base)
    family.use_lora(run.path("lora") / lora.path, config.lora_scale)
    headshots = Session(family, tasks, config, stage, person).run()
    best = best_of_each(headshots)
    accepted = sum(h.accepted for h in headshots)
    stage.finish(
        f"accepted {accepted} of {len(headshots)} attempted; {sum(h.accepted for h in best)} of {len(tasks)} prompts "
        f"have a headshot at or above the pass mark {person.mark.mark:.2f}{_likeness(best)}",
        headshots=[h.to_dict() for h in headshots],
        delivered=[h.file for h in best],
        pass_mark=person.mark.to_dict(),
        shapes=_shapes(tasks, config),
        refused=dict(Counter(h.reasons[0] for h in headshots if h.reasons).most_common()),
        decoding=family.decoding,
        forwards_per_headshot=round(stage.manifest["forwards"] / len(headshots), 2),
    )
    return headshots


def _tasks(bank: list[Prompt], lora: Lora, config: RenderConfig) -> list[Task]:
    """The run's prompts, with the person named."""
    brief = find_base(config.base).brief_prompts
    instance = f"{lora.token} {lora.class_word}"
    return [
        Task(
            number, name, prompt.for_person(instance, brief), "" if brief else prompt.negative, prompt.aspect,
            config.size_for(prompt.aspect),
        )
        for number, (name, prompt) in enumerate(choose_prompts(bank, config.count, config.packs, config.seed))
    ]  # fmt: skip


def _likeness(best: list[Headshot]) -> str:
    """How much like the person those are that passed, in words."""
    passed = [h.likeness for h in best if h.accepted]
    return f"; {statistics.median(passed):.0%} as much like you as your own photos are" if passed else ""


def _shapes(tasks: list[Task], config: RenderConfig) -> str:
    """How many headshots have which shape, and whether that is what the bank meant."""
    meant = Counter(task.aspect for task in tasks)
    words = ", ".join(f"{count} of {aspect}" for aspect, count in meant.most_common())
    if find_base(config.base).square_only and set(meant) != {"1:1"}:
        return f"all square, for base {config.base!r} was trained on squares alone; the prompts are meant for {words}"
    return words


def best_of_each(headshots: list[Headshot]) -> list[Headshot]:
    """The best attempt of each prompt: an accepted one before any other, then the higher identity; best first."""
    best: dict[str, Headshot] = {}
    for shot in headshots:
        if shot.prompt_id not in best or _rank(shot) > _rank(best[shot.prompt_id]):
            best[shot.prompt_id] = shot
    return sorted(best.values(), key=_rank, reverse=True)


def _rank(shot: Headshot) -> tuple[bool, float]:
    return shot.accepted, -2.0 if shot.identity is None else shot.identity
