"""Renders a run's prompts as headshotkit does and as a loop over StableDiffusionXLPipeline does, in turns.

    python tests/benchmarks/speed_of_render.py RUN [--count 48] [--batch 8]

RUN is a run folder on the embedded base with photos and a LoRA; it is only read. The loop is what tools without a gate
do: the stock pipeline with the LoRA beside its weights, a picture a call, 30 steps, guidance 3 in each; headshotkit
draws by the base's preset. Both draw the same prompts; the same gate judges both, and its time counts for headshotkit
alone. Prints accepted headshots a minute, forwards of the U-Net a picture, and identity with the 95 % bootstrap
interval of the difference. Seconds are the process's own, so that other work on the machine does not count; the clock's
are beside them. One thread. About 3 s a picture of each on a core.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from headshotkit.config import GenerateConfig
from headshotkit.core import runtime
from headshotkit.core.records import Lora
from headshotkit.core.run import Run
from headshotkit.evaluation.evaluate import rise_of
from headshotkit.families import Sampling, load_family, weights_place
from headshotkit.generation.headshots import tasks_of
from headshotkit.generation.prompts import load_prompts
from headshotkit.generation.session import Task
from headshotkit.scoring.identity import Judgement, Person, judge_headshot, known_person

STEPS = 30
GUIDANCE = 3.0
"""Of the loop, in every step, as the embedded base's own benchmark has it; the preset guides in its own way."""


@dataclass
class Side:
    """What one of both did."""

    name: str
    judged: list[Judgement] = field(default_factory=list)
    process_s: float = 0.0
    clock_s: float = 0.0
    rows: int = 0

    def add(self, start: tuple[float, float]) -> None:
        self.process_s += time.process_time() - start[0]
        self.clock_s += time.monotonic() - start[1]

    def line(self) -> str:
        count, passed = len(self.judged), sum(j.accepted for j in self.judged)
        identity = statistics.median(j.identity for j in self.judged if j.identity is not None)
        return (
            f"{self.name:<12} {passed} of {count} accepted, {60 * passed / self.process_s:.2f} a minute "
            f"({60 * count / self.process_s:.1f} drawn), {self.rows / count:.1f} forwards a picture, median identity "
            f"{identity:.3f}, {self.process_s:.1f} s of the process, {self.clock_s:.1f} s by the clock"
        )


def now() -> tuple[float, float]:
    return time.process_time(), time.monotonic()


def stock_pipeline(family, lora: Path) -> StableDiffusionXLPipeline:
    pipeline = StableDiffusionXLPipeline.from_pretrained(weights_place(family.base), add_watermarker=False)
    pipeline.to(torch.float32).set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name)
    return pipeline


def draw_ours(side: Side, family, tasks: list[Task], config: GenerateConfig, person: Person) -> None:
    start, before = now(), family.forwards
    seeds = [runtime.seed_for(config.seed, task.number, 1) for task in tasks]
    prompts, negatives = [t.text for t in tasks], [t.negative for t in tasks]
    made = family.render(prompts, negatives, seeds, Sampling.of(config, tasks[0].size_px, tasks[0].names))
    side.judged += [judge_headshot(np.asarray(image), person, config) for image in made]
    side.add(start)
    side.rows += family.forwards - before


def draw_stock(side: Side, pipeline, tasks: list[Task], config: GenerateConfig, person: Person) -> None:
    made: list[Image.Image] = []
    counting = pipeline.unet.register_forward_pre_hook(
        lambda _, inputs: setattr(side, "rows", side.rows + len(inputs[0]))
    )
    start = now()
    for task in tasks:
        noise = torch.Generator().manual_seed(runtime.seed_for(config.seed, task.number, 1))
        made += pipeline(task.text, width=task.size_px[0], height=task.size_px[1], num_inference_steps=STEPS,
                         guidance_scale=GUIDANCE, generator=noise).images  # fmt: skip
    side.add(start)
    counting.remove()
    side.judged += [judge_headshot(np.asarray(image), person, config) for image in made]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    run, config = Run(args.run), GenerateConfig.for_base("mini", count=args.count, batch=args.batch)
    lora = Lora.from_dict(run.peek("lora")["lora"])
    file = (run.path("lora") / lora.path).resolve()
    tasks, person = tasks_of(load_prompts(), lora, config), known_person(run, config)
    family, ours, stock = load_family("mini"), Side("headshotkit"), Side("stock loop")
    family.use_lora(file, config.lora_scale)
    pipeline = stock_pipeline(family, file)
    for place in range(0, len(tasks), args.batch):
        batch = tasks[place : place + args.batch]
        draw_ours(ours, family, batch, config, person)
        draw_stock(stock, pipeline, batch, config, person)
        print(f"\n{report(ours, stock)}", flush=True)


def report(ours: Side, stock: Side) -> str:
    """Both sides so far, and how they compare."""
    identity = [[judged.identity for judged in side.judged] for side in (stock, ours)]
    difference = rise_of(*identity)
    rates = [sum(j.accepted for j in side.judged) / side.process_s for side in (ours, stock)]
    faster = f"{rates[0] / rates[1]:.2f} times" if rates[1] else "some against none"
    return (
        f"{stock.line()}\n{ours.line()}\naccepted a minute: {faster} the loop's (mark 1.45); drawn a minute: "
        f"{stock.process_s / ours.process_s:.2f} times; forwards a picture {ours.rows / len(ours.judged):.1f} (mark 40)"
        f"\nidentity against the loop's: {difference.median:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}] over "
        f"{difference.pairs} pairs"
    )


if __name__ == "__main__":
    main()
