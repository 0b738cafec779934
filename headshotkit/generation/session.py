"""Generate a run's prompts: draw pictures in batches, judge and write them, resume after a kill.

A picture depends only on its prompt, its attempt's seed and the LoRA scale. Without a clock batches depend only on
settings and results, so an interrupted run resumes to the same pictures even if batches round differently; on CUDA
to rounding, because its libraries choose their algorithms by free memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from PIL import Image

from headshotkit.config import GenerateConfig
from headshotkit.config.bases import find_base
from headshotkit.config.few_steps import FEW_STEPS
from headshotkit.core import runtime
from headshotkit.core.records import Headshot, Lora, Names
from headshotkit.core.run import Stage, write_atomic
from headshotkit.families import CHANGES, Family, Sampling
from headshotkit.families.jobs import Job, draw
from headshotkit.generation import policy
from headshotkit.generation.few_steps import PAIRS, compare_few, drawn_in_few
from headshotkit.generation.prompts import Prompt
from headshotkit.photos.files import png_bytes
from headshotkit.photos.metadata import ORIGIN
from headshotkit.scoring.adherence import asked_of
from headshotkit.scoring.identity import Judgement, Person, judge_headshot
from headshotkit.scoring.near_duplicates import Album


@dataclass(frozen=True)
class Task:
    """One prompt of the run: its number decides its seeds. `size_px` is (width, height).

    `names`: names of the person in the text and for the bare base, and how the photos look · `asked`: its measurable
    requests, by `adherence.asked_of`.
    """

    number: int
    id: str
    text: str
    negative: str
    aspect: str
    size_px: tuple[int, int]
    names: Names
    asked: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, number: int, name: str, prompt: Prompt, lora: Lora, config: GenerateConfig) -> Task:
        """Return a task for a prompt of the bank, with the person named; `name` is unique in the run."""
        brief = find_base(config.base).brief_prompts
        return cls(
            number, name, prompt.for_person(lora.names.person, brief), "" if brief else prompt.negative, prompt.aspect,
            config.size_for(prompt.aspect), lora.names, asked_of(prompt.brief),
        )  # fmt: skip

    def job(self, seed: int, attempt: int) -> Job:
        """Return the job of an attempt, whose noise depends on the run's seed, the prompt's number and the attempt."""
        return Job(self.text, self.negative, runtime.seed_for(seed, self.number, attempt), self.size_px)


class Session:
    """One generation of a run's prompts, batch by batch; what an interrupted one has made is kept.

    Args:
        use_lora: makes the family draw with the person's LoRA at a scale.
    """

    def __init__(self, family: Family, use_lora: Callable[[float], None], tasks: list[Task], config: GenerateConfig,
                 stage: Stage, person: Person, deadline: policy.Deadline) -> None:  # fmt: skip
        self.family, self.use_lora, self.tasks, self.config = family, use_lora, tasks, config
        self.stage, self.person, self.deadline = stage, person, deadline
        family.changes = stage.manifest.setdefault(CHANGES, [])
        self.headshots = [Headshot.from_dict(h) for h in stage.manifest.get("headshots", [])]
        self.album = Album()
        self.lost = [h for h in self.headshots if h.file in stage.spoilt or not (stage.folder / h.file).is_file()]
        for shot in (h for h in self.headshots if h.accepted and h not in self.lost):
            with Image.open(stage.folder / shot.file, formats=("PNG",)) as picture:
                self.album.add(shot.file, picture)
        self.scale: float | None = None

    def run(self) -> list[Headshot]:
        """Return every attempt, when all is done or the time is up."""
        self.family.encode_prompts([text for task in self.tasks for text in (task.text, task.negative)])
        if self.config.distilled_lora:
            self.config = in_few_steps(self)
        try:
            self._draw_lost()
            with runtime.progress((), "accepted headshots", total=self.config.count) as bar:
                self._show(bar)
                for batch in iter(self._next_batch, []):
                    if batch[0].scale != self.scale:
                        self.scale = batch[0].scale
                        self.use_lora(self.scale)
                    self._render(batch)
                    self._show(bar)
        except policy.OutOfTime:
            pass  # the current batch is lost, and its pictures are reported as missing
        return self.headshots

    def _show(self, bar) -> None:
        """Show on the progress bar how many prompts have an accepted headshot, the tries, and the minutes left."""
        left = self.minutes_left()
        known = {} if left is None else {"minutes_left": f"{left:.1f}"}
        bar.n = len({h.prompt_id for h in self.headshots if h.accepted})
        bar.set_postfix(tried=len(self.headshots), **known)

    def minutes_left(self) -> float | None:
        """Return about how many minutes the missing headshots take at the rates so far; None before the first one."""
        spent, tried = self.stage.manifest.get("drawing_seconds", 0.0), len(self.headshots)
        if not (spent and tried):
            return None
        accepted = {h.prompt_id for h in self.headshots if h.accepted}
        attempts = Counter(h.prompt_id for h in self.headshots)
        open_tasks = [task for task in self.tasks if task.id not in accepted]
        expected = len(open_tasks) * tried / max(len(accepted), 1)
        if not self.config.minutes:
            expected = min(expected, sum(max(self.config.max_attempts - attempts[task.id], 0) for task in open_tasks))
        return min(expected * spent / tried, self.deadline.seconds_left) / 60

    def _draw_lost(self) -> None:
        """Draw headshots again that were noted and are missing, each from its own seed, one at a time.

        Raises:
            OutOfTime: as `_render`.
        """
        for shot in runtime.progress(self.lost, "headshots again"):
            if shot.lora_scale != self.scale:
                self.scale = shot.lora_scale
                self.use_lora(self.scale)
            sampling = Sampling.of(self.config, names=self.tasks[0].names)
            for _, image in draw(self.family, [Job.of(shot)], sampling, on_step=self.deadline.check):
                write_atomic(self.stage.folder / shot.file, png_with_origin(image, shot, self.config))
                if shot.accepted:
                    self.album.add(shot.file, image)

    def _next_batch(self) -> list[policy.Try]:
        """Return the tries to make next, of one size and one scale; none at the end."""
        config, numbers = self.config, {task.id: task.number for task in self.tasks}
        tried = [policy.Tried(numbers[h.prompt_id], h.lora_scale, h.accepted) for h in self.headshots]
        if config.minutes:
            scales = tuple(dict.fromkeys((config.lora_scale, *config.other_scales)))  # a picked one may be both
            tries = policy.next_by_chance(
                tried, len(self.tasks), scales, config.count, config.seed, 2 * config.batch, self.deadline.tries_left
            )
        else:
            tries = policy.next_of_round(tried, len(self.tasks), config.lora_scale, config.max_attempts)
        if not tries:
            return []
        batch = runtime.batches_of(tries, config.batch, kind=lambda t: (self.tasks[t.number].size_px, t.scale))[0]
        made, numbered = Counter(t.number for t in tried), []
        for one in batch[: self.deadline.room_for(len(batch))]:  # tries before it may have been left out of the batch
            made[one.number] += 1
            numbered.append(replace(one, attempt=made[one.number]))
        return numbered

    def _render(self, batch: list[policy.Try]) -> None:
        """Draw and judge one batch, write its pictures, then note all of them at once.

        Raises:
            OutOfTime: the time was up before the pictures were drawn.
        """
        config, tasks = self.config, [self.tasks[one.number] for one in batch]
        start, before = self.deadline.clock(), self.family.forwards
        jobs = [task.job(config.seed, one.attempt) for task, one in zip(tasks, batch, strict=True)]
        sampling = Sampling.of(config, names=tasks[0].names)
        try:
            drawn = list(draw(self.family, jobs, sampling, len(jobs), self.deadline.check))
        finally:
            self.stage.manifest["forwards"] = self.stage.manifest.get("forwards", 0) + self.family.forwards - before
        for one, task, (job, image) in zip(batch, tasks, drawn, strict=True):
            file = f"{task.id}_{one.attempt}.png"
            judged = self._unless_near_duplicate(
                judge_headshot(np.asarray(image), self.person, config, task.asked), image, file
            )
            shot = Headshot(file, task.id, job.prompt, job.negative, job.seed, one.attempt, one.scale,
                            size_px=job.size_px, **asdict(judged))  # fmt: skip
            write_atomic(self.stage.folder / shot.file, png_with_origin(image, shot, config))
            self.headshots.append(shot)
        seconds = self.deadline.clock() - start
        self.stage.manifest["headshots"] = [h.to_dict() for h in self.headshots]
        self.stage.manifest["drawing_seconds"] = round(self.stage.manifest.get("drawing_seconds", 0.0) + seconds, 2)
        self.stage.note_seconds()
        self.deadline.note(len(batch), seconds)

    def _unless_near_duplicate(self, judged: Judgement, image: Image.Image, file: str) -> Judgement:
        """Return the gate's verdict, or a rejection if the picture is a near-duplicate of an accepted one."""
        if not judged.accepted:
            return judged
        if self.album.nearest(image)[0] > self.config.max_near_duplicate:
            return replace(judged, accepted=False, reasons=("near_twin",))
        self.album.add(file, image)
        return judged


def in_few_steps(session: Session) -> GenerateConfig:
    """Return a session's settings: with the distilled LoRA they name if identity holds, else without.

    The manifest's `few_steps` states which and why; an interrupted run resumes as it began.
    """
    config, family, manifest = session.config, session.family, session.stage.manifest
    tasks, few = session.tasks[:PAIRS], FEW_STEPS[session.config.distilled_lora]

    def identities(settings: GenerateConfig) -> list[float | None]:
        session.use_lora(settings.lora_scale)
        jobs, sampling = [task.job(settings.seed, 1) for task in tasks], Sampling.of(settings, names=tasks[0].names)
        drawn = draw(family, jobs, sampling, settings.batch, session.deadline.check)
        return [judge_headshot(np.asarray(image), session.person, settings).identity for _, image in drawn]

    before = manifest.get("few_steps")
    try:
        known = before or compare_few(identities, lambda: family.use_few_steps(few), config)
    except policy.OutOfTime:
        known = {"held": False, "words": f"{config.distilled_lora}: not used, because there is no time to compare"}
    if before and known["held"]:
        family.use_few_steps(few)
    if not before and not known["held"]:
        family.drop_few_steps()
    manifest["few_steps"] = known
    return drawn_in_few(config) if known["held"] else config


def png_with_origin(image: Image.Image, shot: Headshot, config: GenerateConfig) -> bytes:
    """Return a headshot as PNG whose text chunks state that it was generated, and how."""
    how = {name: getattr(shot, name) for name in ("prompt", "seed", "lora_scale", "identity", "likeness", "size_px")}
    drawn = ("base", "steps", "sampler", "guidance", "guidance_share", "word_guidance", "word_every")
    how |= {name: value for name, value in config.to_dict().items() if name in drawn}
    return png_bytes(image, Software=ORIGIN, headshotkit=json.dumps(how))
