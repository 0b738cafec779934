"""Generate headshots: prompts + LoRA + seeds, each compared with the person, with a new seed if it fails."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

from headshotkit.config import GenerateConfig
from headshotkit.config.bases import find_base
from headshotkit.config.few_steps import FEW_STEPS
from headshotkit.core import hub, locks, runtime
from headshotkit.core.budget import TimeBudget
from headshotkit.core.errors import BadConfig, BadLora
from headshotkit.core.records import Headshot, Lora, Pick
from headshotkit.core.results import HeadshotsResult, LoraResult, PhotosResult, PickedResult
from headshotkit.core.run import BANKS, Run, sha256_of, write_atomic
from headshotkit.faces import artefacts
from headshotkit.families import load_family
from headshotkit.families.methods import use_trained
from headshotkit.generation.policy import Deadline
from headshotkit.generation.prompts import BANK, Prompt, choose_prompts, load_prompts
from headshotkit.generation.session import Session, Task
from headshotkit.generation.shortfall import causes_of
from headshotkit.scoring.identity import Person, known_person
from headshotkit.scoring.ranking import choose_headshots


@locks.writes("generate")
@runtime.frees_memory
def generate_headshots(
    run: Run, config: GenerateConfig, budget: TimeBudget | None = None, planned: tuple[str, ...] = ()
) -> list[Headshot]:
    """Generate the headshots of a run and judge each; rejected ones are tried again from new noise.

    With `GenerateConfig.minutes` it ends in time, loading included, and lists what is missing.

    Writes `headshots/`: a PNG an attempt (with its settings as metadata) and manifest.json: every attempt in
    `headshots`, the best `count` in `delivered`, best first, prompts without an accepted one in `missing`, denoiser
    rows a picture in `forwards_per_headshot`, seconds of drawing and judging in `drawing_seconds`, the checkpoint and
    its scale in `lora`, in `causes` why few passed, if few did, and in `artefacts_not_rated` why no artefact was looked
    for, if so.

    Args:
        budget: a run's share for this stage; None: the config's minutes, from now.
        planned: names of the settings that a plan decided; noted, so that the run resumes with them.
    Raises:
        StageMissing: the LoRA has not been trained.
        BadLora: it was trained on another base.
        DamagedRun: its file, or a kept photo, is missing or changed.
        BadConfig: a distilled LoRA is set, and a whole U-Net was trained.
        BadWeights: the weights of the artefact detector are damaged.
        BadPromptBank: the prompt bank can't be used, or has no prompt in one of the packs.
    """
    lora = LoraResult.load(run).lora
    pick, picked = _picked(run, config)
    if lora.base != config.base:
        raise BadLora(
            f"the LoRA was trained on base {lora.base!r}, but the request uses base {config.base!r}.",
            "A LoRA only fits the base it was trained on.",
            f"Generate with --base {lora.base}, or train again with --base {config.base}.",
        )
    if config.distilled_lora and lora.method == "dreambooth":
        raise BadConfig(
            f"distilled_lora is {config.distilled_lora!r}, the run was trained with method 'dreambooth'.",
            "It replaces the base's U-Net, and with it the distilled LoRA.",
            "Leave out --distilled-lora, or train with --method lora.",
        )
    bank = runtime.typed_path(config.prompts) if config.prompts else BANK
    tasks = tasks_of(load_prompts(bank), lora, config)
    inputs = run.inputs_from("photos", "lora", *(("picked",) if pick else ())) | {"prompts": sha256_of(bank)}
    run.files("lora", [pick.file] if pick else lora.files, thorough=True)
    stage = run.begin("headshots", config, inputs, config.seed, grows=() if config.minutes else ("count",))
    if stage.done:
        return list(HeadshotsResult.from_dict(stage.manifest).headshots)
    if config.prompts:
        write_atomic(run.folder / BANKS / bank.name, bank.read_bytes())  # the next command won't name it
    if planned:
        stage.manifest["planned"] = list(planned)
    unrated = artefacts.not_rated() if config.max_artefact < 1 else ""
    if unrated:
        runtime.say(f"headshots are not checked for artefacts: {unrated}")
    deadline = Deadline(budget or TimeBudget.of(config.minutes))
    person, family = known_person(run, config), load_family(config.base)
    used = replace(lora, path=Path(pick.file), step=pick.step) if pick else lora
    use_lora = partial(use_trained, family, run.path("lora"), used)
    drawing = config.replace(lora_scale=pick.scale) if pick else config
    headshots = Session(family, use_lora, tasks, drawing, stage, person, deadline).run()
    best = choose_headshots(headshots, config.count)
    few = [FEW_STEPS[config.distilled_lora].source] if config.distilled_lora else []
    causes = causes_of(headshots, person.threshold.value, used, PhotosResult.load(run), drawing, bool(pick))
    hastened = f"; {stage.manifest['few_steps']['words']}" if "few_steps" in stage.manifest else ""
    advice = f". Why: {causes[0].why}. Next: {causes[0].next_step}" if causes else ""
    stage.finish(
        _outcome(headshots, best, person, config) + picked + hastened + advice,
        **_facts(headshots, best, tasks),
        pass_mark=person.threshold.to_dict(),
        causes=[cause.to_dict() for cause in causes],
        lora={"step": used.step, "scale": drawing.lora_scale, "picked": bool(pick)},
        shapes=shapes_of(tasks, config),
        decoding=family.decoding,
        weights=hub.commits_of(*family.base.sources, *few),
        **({"artefacts_not_rated": unrated} if unrated else {}),
        forwards_per_headshot=round(stage.manifest.get("forwards", 0) / max(len(headshots), 1), 2),
    )
    return headshots


def _picked(run: Run, config: GenerateConfig) -> tuple[Pick | None, str]:
    """Return the checkpoint and scale that were picked for this LoRA, if any, and words for the outcome."""
    if not config.use_pick or not run.peek("picked"):
        return None, ""
    if not run.has("picked"):
        return None, "; ignored picked/: unfinished, or made from another LoRA or other photos"
    pick = PickedResult.load(run).chosen
    return pick, f"; LoRA of step {pick.step} at lora_scale {pick.scale:g}, as picked"


def _facts(headshots: list[Headshot], best: list[Headshot], tasks: list[Task]) -> dict:
    """Return every attempt, what is delivered, prompts without an accepted one, and counts of first reasons."""
    return {
        "headshots": [h.to_dict() for h in headshots],
        "delivered": [h.file for h in best],
        "missing": sorted({task.id for task in tasks} - {h.prompt_id for h in headshots if h.accepted}),
        "refused": dict(Counter(h.reasons[0] for h in headshots if h.reasons).most_common()),
    }


def _outcome(headshots: list[Headshot], best: list[Headshot], person: Person, config: GenerateConfig) -> str:
    """Describe the outcome: how many passed, how similar they are, and what is missing when the time is up."""
    accepted, passed = sum(h.accepted for h in headshots), [h for h in best if h.accepted]
    prompts = len({h.prompt_id for h in passed})
    words = (
        f"accepted {accepted} of {len(headshots)} attempted; {prompts} of {config.count} prompts have a headshot at or "
        f"above the identity threshold {person.threshold.value:.2f}"
    )
    if passed:
        likeness = statistics.median(h.likeness for h in passed)
        words += f"; the median headshot is {likeness:.0%} as similar to you as your own photos are"
    if config.minutes and len(passed) < config.count:
        words += f"; {config.count - len(passed)} of {config.count} are missing: the {config.minutes:g} minutes ran out"
    return words


def tasks_of(bank: list[Prompt], lora: Lora, config: GenerateConfig) -> list[Task]:
    """Return the run's prompts, with the person named."""
    chosen = choose_prompts(bank, config.count, config.packs, config.seed)
    return [Task.of(number, name, prompt, lora, config) for number, (name, prompt) in enumerate(chosen)]


def shapes_of(tasks: list[Task], config: GenerateConfig) -> str:
    """Describe how many headshots have which shape, and whether it is the bank's."""
    meant = Counter(task.aspect for task in tasks)
    words = ", ".join(f"{count} of {aspect}" for aspect, count in meant.most_common())
    if find_base(config.base).square_only and set(meant) != {"1:1"}:
        return f"all square, because base {config.base!r} was trained on squares only; the prompts ask for {words}"
    return words
