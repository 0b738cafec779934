"""Pick the checkpoint and the LoRA scale: identity against prompt adherence, on a few fixed prompts.

A LoRA learns the person during its training and loses prompt adherence; its scale trades the same two. Likeness
fluctuates and the loss does not show it, so pictures decide. First the snapshots of the training are compared at the
usual scale, then the scales with the chosen snapshot.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from headshotkit.config import GenerateConfig, PickConfig
from headshotkit.core import hub, locks, runtime
from headshotkit.core.errors import BadConfig, BadPromptBank
from headshotkit.core.records import Headshot, Lora, Pick
from headshotkit.core.results import LoraResult, PickedResult
from headshotkit.core.run import Run, Stage, settings_of, sha256_of, write_atomic
from headshotkit.families import CHANGES, Family, Sampling, load_family
from headshotkit.families.jobs import draw
from headshotkit.families.methods import use_trained
from headshotkit.generation.prompts import BANK, Prompt, load_prompts
from headshotkit.generation.session import Task, png_with_origin
from headshotkit.planning.forecast import say_drawing
from headshotkit.scoring.adherence import asked_of
from headshotkit.scoring.identity import Person, judge_headshot, known_person
from headshotkit.training.snapshots import snapshot_file, snapshots_in

OF_ONE_PICTURE = ("count", "max_attempts", "minutes", "other_scales", "packs", "lora_scale", "use_pick", "seed")
"""Settings of GenerateConfig that do not affect how one picture is drawn or judged."""


@locks.writes("pick")
@runtime.frees_memory
def pick_lora(run: Run, config: PickConfig, rendering: GenerateConfig | None = None) -> Pick:
    """Choose checkpoint and LoRA scale, which `generate_headshots` then uses.

    Writes `picked/`: a PNG a picture, and manifest.json: `candidates` with their likeness and prompt adherence,
    `chosen`, and every picture. What an interrupted call drew is kept.

    Args:
        rendering: how pictures are drawn and judged; None: the base's preset.
    Raises:
        StageMissing: the LoRA has not been trained.
        BadConfig: another method than a LoRA was trained, which has neither snapshots nor scales.
        BadPromptBank: the bank has too few prompts with a measurable request.
    """
    lora = LoraResult.load(run).lora
    if lora.method != "lora":
        raise BadConfig(
            f"the run was trained with method {lora.method!r}.",
            "Only a LoRA has snapshots and scales to choose from.",
            f"Generate without picking: headshotkit generate --out {run.folder}",
        )
    rendering = rendering or GenerateConfig.for_base(lora.base)
    bank = Path(rendering.prompts) if rendering.prompts else BANK
    prompts = prompts_that_differ(load_prompts(bank), config.pick_prompts)
    tasks = [Task.of(number, prompt.id, prompt, lora, rendering) for number, prompt in enumerate(prompts)]
    inputs = run.inputs_from("photos", "lora") | {"prompts": sha256_of(bank)}
    drawn_as = {name: value for name, value in settings_of(rendering).items() if name not in OF_ONE_PICTURE}
    run.files("lora", lora.files, thorough=True)
    stage = run.begin("picked", settings_of(config) | {"rendering": drawn_as}, inputs, seed=config.seed)
    if stage.done:
        return PickedResult.from_dict(stage.manifest).chosen
    person = known_person(run, rendering)
    steps = sorted({*snapshots_in(run.path("lora")), lora.step})
    pictures = len(tasks) * (len(steps) + len(set(config.scales)) - 1) - len(stage.manifest.get("pictures", ()))
    say_drawing("picking", max(pictures, 0), rendering)
    family = load_family(lora.base)
    family.changes = stage.manifest.setdefault(CHANGES, [])
    session = _Session(family, rendering, run.path("lora"), lora, tasks, stage, person, config.seed)
    chosen, tried = session.compare(steps, config)
    stage.finish(
        _outcome(chosen, tried, lora, config),
        chosen=chosen.to_dict(),
        candidates=[one.to_dict() for one in tried],
        pass_mark=person.threshold.to_dict(),
        weights=hub.commits_of(*session.family.base.sources),
    )
    return chosen


def _outcome(chosen: Pick, tried: list[Pick], lora: Lora, config: PickConfig) -> str:
    """Describe the chosen candidate, and what the LoRA as trained would have scored."""
    usual = next(one for one in tried if (one.step, one.scale) == (lora.step, config.usual_scale))
    words = f"of {len({p.step for p in tried})} checkpoints and {len({p.scale for p in tried})} scales: {chosen}"
    return words if chosen == usual else f"{words}; as trained: {usual}"


# --- the choice ---------------------------------------------------------------------------------------------------


def choose_pick(tried: Sequence[Pick]) -> Pick:
    """Return the best trade-off among the candidates that pass the gate about as often as the best.

    A candidate is dropped if its pass rate is more than one standard error below the best one's: adherence is worth
    nothing in a picture of somebody else. Of the rest `best_trade_off` chooses; if no picture passes, likeness does.
    Likeness is `Pick.decisive`.
    """
    best = max(one.passed for one in tried)
    if not best:
        return max(tried, key=lambda one: (one.decisive, one.adherence))
    pictures = tried[0].pictures
    smooth = (best * pictures + 1) / (pictures + 2)
    enough = best - (smooth * (1 - smooth) / pictures) ** 0.5
    able = [one for one in tried if one.passed >= enough]
    return able[best_trade_off([(one.adherence, one.decisive) for one in able])]


def best_trade_off(points: Sequence[tuple[float, float]]) -> int:
    """Return the index of the point (adherence, likeness) with the largest sum; ties go to likeness.

    It is the curve's point of slope -1: beyond it a step gains less of one than it loses of the other. Both are
    absolute shares, so they are not scaled to each other's range, which would magnify small differences between
    similar candidates.

    >>> best_trade_off([(1.0, 0.3), (0.95, 0.7), (0.6, 0.75), (0.5, 0.2)])
    1
    """
    return max(range(len(points)), key=lambda n: (round(sum(points[n]), 9), points[n][1]))


# --- the pictures -------------------------------------------------------------------------------------------------


def prompts_that_differ(bank: Sequence[Prompt], count: int) -> list[Prompt]:
    """Return `count` prompts that together ask for each direction, expression and background about as often.

    Raises:
        BadPromptBank: fewer have a measurable request.
    """
    left = [prompt for prompt in bank if asked_of(prompt.brief)]
    if len(left) < count:
        raise BadPromptBank(
            f"{len(left)} prompts of the bank request something measurable, {count} are needed.",
            "Measurable are: looking left, right or at the camera, a smile or none, a white, grey or dark background.",
            "Use such words in the prompts' brief form, or use fewer prompts: --pick-prompts 2",
        )
    chosen: list[Prompt] = []
    used: Counter[tuple[str, str]] = Counter()
    while len(chosen) < count:
        one = min(left, key=lambda p: (-len(asked_of(p.brief)), sum(used[pair] for pair in asked_of(p.brief).items())))
        used.update(asked_of(one.brief).items())
        chosen.append(one)
        left.remove(one)
    return chosen


@dataclass
class _Session:
    """What drawing the candidates needs; `stage` keeps what was drawn."""

    family: Family
    config: GenerateConfig
    folder: Path
    lora: Lora
    tasks: list[Task]
    stage: Stage
    person: Person
    seed: int

    def compare(self, steps: Sequence[int], config: PickConfig) -> tuple[Pick, list[Pick]]:
        """Return the choice and every candidate: the checkpoints at the usual scale, then the best one's scales."""
        first = [self.candidate(step, config.usual_scale) for step in runtime.progress(steps, "checkpoints")]
        best = choose_pick(first)
        others = [scale for scale in config.scales if scale != config.usual_scale]
        second = [self.candidate(best.step, scale) for scale in runtime.progress(others, "LoRA scales")]
        return choose_pick([best, *second]), first + second

    def candidate(self, step: int, scale: float) -> Pick:
        """Return one candidate; draw, judge and write those of its pictures that are missing, batch by batch."""
        pictures = self.stage.manifest.setdefault("pictures", [])
        there = {shot["file"] for shot in pictures}
        batches = runtime.batches_of(self.tasks, self.config.batch, kind=lambda task: task.size_px)
        missing = [batch for batch in batches if _file(batch[0], step, scale) not in there]  # noted as a whole
        file = snapshot_file(Path(), step) if step != self.lora.step else self.lora.path
        if missing:
            self.family.encode_prompts([text for task in self.tasks for text in (task.text, task.negative)])
            use_trained(self.family, self.folder, replace(self.lora, path=file), scale)
        for batch in missing:
            jobs, shots = [task.job(self.seed, attempt=0) for task in batch], []
            drawn = draw(self.family, jobs, Sampling.of(self.config, names=self.lora.names), len(jobs))
            for task, (job, image) in zip(batch, drawn, strict=True):
                judged = judge_headshot(np.asarray(image), self.person, self.config, task.asked)
                shot = Headshot(_file(task, step, scale), task.id, job.prompt, job.negative, job.seed, 1, scale,
                                size_px=job.size_px, **asdict(judged))  # fmt: skip
                write_atomic(self.stage.folder / shot.file, png_with_origin(image, shot, self.config))
                shots.append(shot)
            pictures += [shot.to_dict() for shot in shots]
            self.stage.note_seconds()
        names = {_file(task, step, scale) for task in self.tasks}
        own = [Headshot.from_dict(shot) for shot in pictures if shot["file"] in names]
        return _candidate(own, step, scale, file.as_posix(), self.person.held_out_median)


def _file(task: Task, step: int, scale: float) -> str:
    return f"{step:06d}_{scale:g}_{task.id}.png"


def _candidate(shots: list[Headshot], step: int, scale: float, file: str, unseen: float) -> Pick:
    """Return a candidate's averages; likeness above a photo's counts as a photo's, no face as 0.

    Args:
        unseen: median similarity of the trained photos to those held out; 0 without any.
    """
    likeness = [min(shot.likeness or 0.0, 1.0) for shot in shots]
    held_out = [min(max(shot.held_out or 0.0, 0.0) / unseen, 1.0) for shot in shots] if unseen > 0 else []
    return Pick(
        step, scale, file, len(shots), round(statistics.fmean(likeness), 4),
        round(statistics.fmean(shot.adherence or 0.0 for shot in shots), 4),
        round(statistics.fmean(shot.accepted for shot in shots), 4),
        round(statistics.fmean(held_out), 4) if held_out else None,
    )  # fmt: skip
