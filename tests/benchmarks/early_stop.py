"""Whether a look at a headshot half-way tells that it will be refused, and what stopping there would save.

    python tests/benchmarks/early_stop.py RUN [--count 24] [--steps 4,6,8,10,13,16] [--batch 4] [--out FILE]

RUN has a LoRA of the embedded base. Each first attempt is drawn to its end; on the way, after each of the steps, what
the sampler then takes for the clean latents is decoded and its face compared with the person. For each such step: the
correlation with the identity in the end; how many of the refused are stopped and of the accepted lost, first by the
threshold that loses at most 2 % of the accepted (in hindsight, so an upper bound), then by what a run could do: a line
through all other headshots says with 98 % that the mark is not reached; and the share of the time that each saves,
looks included. Seconds are the process's own. Rows are kept in --out, and the next call goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from headshotkit.config import GenerateConfig
from headshotkit.core import runtime
from headshotkit.core.records import Lora
from headshotkit.core.run import Run
from headshotkit.faces import recognition
from headshotkit.families import Sampling, load_family
from headshotkit.generation.headshots import tasks_of
from headshotkit.generation.prompts import load_prompts
from headshotkit.scoring.identity import identity_of, judge_headshot, known_person

LOST, SIGMAS = 0.02, 2.05
"""Share of the later accepted that may be lost, and how many standard deviations above the mean that is."""


def look(pictures: list, person) -> list[float | None]:
    """Identity of each, None without exactly one face."""
    seen = []
    for picture in pictures:
        image = np.asarray(picture)
        found = recognition.detect_faces(image)
        seen.append(identity_of(image, found[0], person.centre, "arcface") if len(found) == 1 else None)
    return seen


def clean_latents(before: torch.Tensor, after: torch.Tensor, sigma: float, next_sigma: float) -> torch.Tensor:
    """What an Euler step takes for the latents without noise: its straight line, gone on to noise level 0.

    Args:
        before, after: latents ahead of the step and behind it, noise added to them, shape (N, C, h, w).
        sigma, next_sigma: their noise levels.

    >>> clean_latents(torch.tensor(3.0), torch.tensor(2.0), 2.0, 1.0)
    tensor(1.)
    """
    return before - sigma * (after - before) / (next_sigma - sigma)


class Looks:
    """Follows a drawing, and looks after some of its steps."""

    def __init__(self, pipeline, person, steps: tuple[int, ...]) -> None:
        self.pipeline, self.person, self.steps = pipeline, person, steps
        self.before, self.done, self.seen, self.seconds = None, 0, {}, 0.0
        self.own_step = pipeline.scheduler.step

    def step(self, output, when, sample, **options):
        """The scheduler's own step; the latents before and after it tell what it takes for the clean ones."""
        result = self.own_step(output, when, sample, **options)
        self.done += 1
        if self.done in self.steps:
            start = time.process_time()
            sigmas = self.pipeline.scheduler.sigmas[self.done - 1 : self.done + 1]
            latents = clean_latents(sample, result[0], *sigmas.tolist())
            decoded = self.pipeline.vae.decode(latents / self.pipeline.vae.config.scaling_factor).sample
            pictures = self.pipeline.image_processor.postprocess(decoded, output_type="pil")
            self.seen[self.done] = look(pictures, self.person)
            self.seconds += time.process_time() - start
        return result


@torch.no_grad()
def measure(run: Run, count: int, steps: tuple[int, ...], batch: int, out: Path) -> list[dict]:
    """A row a headshot: identity in the end and on the way, accepted or not, and what drawing and looking took."""
    rows = json.loads(out.read_text()) if out.exists() else []
    if len(rows) >= count:
        return rows
    config = GenerateConfig.for_base("mini", count=count)
    lora, person = Lora.from_dict(run.peek("lora")["lora"]), known_person(run, config)
    tasks, family = tasks_of(load_prompts(), lora, config)[len(rows) :], load_family("mini")
    family.use_lora(run.path("lora") / lora.path, config.lora_scale)
    family.encode_prompts([task.text for task in tasks])
    for part in runtime.batches_of(tasks, batch, kind=lambda task: task.size_px):
        looks = Looks(family.pipeline, person, steps)
        family.pipeline.scheduler.step = looks.step
        start = time.process_time()
        seeds = [runtime.seed_for(config.seed, task.number, 1) for task in part]
        sampling = Sampling.of(config, part[0].size_px, part[0].names)
        made = family.render([t.text for t in part], [""] * len(part), seeds, sampling)
        drawn = time.process_time() - start - looks.seconds
        family.pipeline.scheduler.step = looks.own_step
        for place, (task, picture) in enumerate(zip(part, made, strict=True)):
            judged = judge_headshot(np.asarray(picture), person, config, task.asked)
            on_the_way = {step: values[place] for step, values in looks.seen.items()}
            rows.append({"prompt": task.id, "identity": judged.identity, "accepted": judged.accepted,
                         "way": on_the_way, "draw_s": drawn / len(part),
                         "look_s": looks.seconds / len(part) / len(steps)})  # fmt: skip
        out.write_text(json.dumps(rows))
        rows = json.loads(out.read_text())
    return rows


def foretold(way: np.ndarray, end: np.ndarray, mark: float) -> np.ndarray:
    """Which are sure to be refused, each by a line through all others: the mark lies LOST's quantile above its end."""
    sure = np.zeros(len(way), bool)
    for place in np.flatnonzero(way > -1):
        others = (way > -1) & (end > -1) & (np.arange(len(way)) != place)
        slope, base = np.polyfit(way[others], end[others], 1)
        spread = (end - slope * way - base)[others].std(ddof=2)
        sure[place] = mark - slope * way[place] - base > SIGMAS * spread
    return sure


def line_of(rows: list[dict], step: str, sampling: Sampling, mark: float) -> str:
    """What stopping after a step would do."""
    way = np.array([-1.0 if row["way"][step] is None else row["way"][step] for row in rows])
    end = np.array([-1.0 if row["identity"] is None else row["identity"] for row in rows])
    accepted = np.array([row["accepted"] for row in rows])
    both = (way > -1) & (end > -1)
    likeness = np.corrcoef(way[both], end[both])[0, 1] if both.sum() > 2 else float("nan")
    if not accepted.any():
        return f"{step:>4}  {likeness:6.2f}  none is accepted, so no threshold can be set"
    threshold = np.sort(way[accepted])[int(LOST * accepted.sum())]
    draw, look_s = (float(np.mean([row[name] for row in rows])) for name in ("draw_s", "look_s"))
    done = int(step) + min(int(step), sampling.guided_steps)  # rows of the U-Net, two in a guided step
    left = 1 - done / (sampling.steps + sampling.guided_steps)
    words = f"{step:>4}  {likeness:6.2f}"
    for stopped in (way < threshold, foretold(way, end, mark)):
        saved = stopped.mean() * (left * draw + look_s) - look_s  # a stopped one is not judged in the end
        words += (
            f"   {(stopped & ~accepted).sum():>3} of {(~accepted).sum()}, {(stopped & accepted).sum()} of "
            f"{accepted.sum()}, {saved / (draw + look_s):+6.1%}"
        )
    return words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--steps", default="4,6,8,10,13,16")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("/tmp/early_stop.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    steps = tuple(int(step) for step in args.steps.split(","))
    rows = measure(Run(args.run), args.count, steps, args.batch, args.out)
    draw, look_s = (1000 * float(np.mean([row[name] for row in rows])) for name in ("draw_s", "look_s"))
    accepted = sum(row["accepted"] for row in rows)
    print(f"{len(rows)} headshots, {accepted} accepted; {draw:.0f} ms to draw, {look_s:.0f} ms a look")
    print(
        "refused stopped, accepted lost, time saved: by the best threshold in hindsight, by a line through the others"
    )
    config = GenerateConfig.for_base("mini")
    sampling, threshold = (
        Sampling.of(config, (config.size_px,) * 2),
        known_person(Run(args.run), config).threshold.value,
    )
    for step in steps:
        print(line_of(rows, str(step), sampling, threshold))


if __name__ == "__main__":
    main()
