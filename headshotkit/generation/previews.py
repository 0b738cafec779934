"""Draw previews: the same prompt and noise with the bare base and each snapshot of a training, with identity."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from headshotkit.config import GenerateConfig
from headshotkit.core import locks, runtime
from headshotkit.core.errors import StageMissing
from headshotkit.core.records import Headshot, Lora, Name, Record
from headshotkit.core.results import LoraResult
from headshotkit.core.run import Run, read_json, write_atomic, write_json
from headshotkit.families import CHANGES, Sampling, load_family
from headshotkit.families.jobs import Job, draw
from headshotkit.generation.session import png_with_origin
from headshotkit.scoring.identity import Person, judge_headshot, known_person
from headshotkit.training.snapshots import PREVIEWS, snapshot_file, snapshots_in

FACTS = "previews.json"


@dataclass(frozen=True)
class Preview(Record):
    """One picture of a snapshot: number of steps (0 is the bare base), seed, and identity.

    `identity` is None if it does not show exactly one face.
    """

    step: int
    seed: int
    file: Name
    identity: float | None


@locks.writes("render_previews")
@runtime.frees_memory
def render_previews(run: Run, pictures: int = 2, prompt: str = "photo of {person}") -> list[Preview]:
    """Draw one prompt with the bare base and with each snapshot, always from the same noise.

    Writes `lora/previews/`: a PNG a picture, and previews.json with their identity, the identity threshold and the own
    photos' median. What an interrupted call drew is kept.

    Args:
        pictures: number a snapshot, each from its own seed; a single one is noisy.
        prompt: the same for all; {person} becomes token and class word.
    Raises:
        StageMissing: the LoRA has not been trained, or without snapshots.
    """
    trained = LoraResult.load(run)
    lora, config = trained.lora, trained.config
    steps, folder = (0, *snapshots_in(run.path("lora"))), run.path("lora") / PREVIEWS
    text = prompt.format(person=f"{lora.token} {lora.class_word}")
    if len(steps) == 1:
        raise StageMissing(
            f"{folder} holds no snapshots.",
            f"The LoRA was trained with TrainConfig.snapshots = {config['snapshots']}.",
            f"Train with some: headshotkit train --snapshots 3 --out {run.folder}",
        )
    drawn = _read(run, text, pictures)
    missing = [step for step in steps if step not in {p.step for p in drawn}]
    if not missing:
        return drawn
    settings = GenerateConfig.for_base(lora.base)
    person = known_person(run, settings)
    family = load_family(lora.base)
    threshold, session = person.threshold, _Session(family, settings, run, person, lora)
    for step in runtime.progress(missing, "previews"):
        drawn += session.draw(step, text, [runtime.seed_for(config["seed"], n) for n in range(pictures)])
        facts = {"prompt": text, "pictures": pictures, "pass_mark": threshold.value, "own_median": threshold.own_median}
        facts[CHANGES] = family.changes
        write_json(folder / FACTS, facts | {"previews": [p.to_dict() for p in drawn]})
    return drawn


def read_previews(run: Run) -> dict:
    """Return what `render_previews` left: `previews`, `prompt`, `pictures`, `pass_mark`, `own_median`.

    Raises:
        StageMissing: none were drawn.
        DamagedRun: they can't be read.
    """
    path = run.path("lora") / PREVIEWS / FACTS
    shape = {"prompt": str, "pictures": int, "pass_mark": float, "own_median": float, "previews": tuple[Preview, ...]}
    found = read_json(path, shape)
    if found is None:
        raise StageMissing(
            f"{path.parent} holds no previews.", "They were never drawn.", "Draw them first: render_previews(run)"
        )
    return found


def _read(run: Run, prompt: str, pictures: int) -> list[Preview]:
    """Return what an earlier call drew of the same prompt."""
    try:
        found = read_previews(run)
    except StageMissing:
        return []
    same = (found["prompt"], found["pictures"]) == (prompt, pictures)
    return [Preview.from_dict(p) for p in found["previews"]] if same else []


@dataclass
class _Session:
    """What drawing needs: a base, the settings, and the person to compare with."""

    family: object
    config: GenerateConfig
    run: Run
    person: Person
    lora: Lora

    def draw(self, step: int, prompt: str, seeds: list[int]) -> list[Preview]:
        """Draw the pictures of one snapshot, one at a time, so that they take no more memory than a headshot."""
        folder, config, scale = self.run.path("lora"), self.config, 1.0 if step else 0.0
        self.family.use_lora(snapshot_file(folder, step), scale)
        sampling = Sampling.of(config, names=self.lora.names)
        jobs, drawn = [Job(prompt, "", seed, sampling.size_px) for seed in seeds], []
        for number, (job, image) in enumerate(draw(self.family, jobs, sampling)):
            judged, file = judge_headshot(np.asarray(image), self.person, config), f"{step:06d}_{number}.png"
            shot = Headshot(file, f"preview of step {step}", prompt, "", job.seed, 1, scale, size_px=job.size_px,
                            **asdict(judged))  # fmt: skip
            write_atomic(folder / PREVIEWS / shot.file, png_with_origin(image, shot, config))
            drawn.append(Preview(step, job.seed, shot.file, shot.identity))
        return drawn
