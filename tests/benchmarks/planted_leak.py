"""Is a LoRA that turns other people into the person found? A real LoRA as it is, and with a planted leak.

    python tests/benchmarks/planted_leak.py RUN [--pictures 8]

RUN is a run with a trained LoRA, which is copied. First `headshotkit leak` measures it as it is. Then a leak is
planted: where the class word is drawn with the LoRA, the person's token is in the prompt as well, from the same noise,
as if the LoRA had learnt the person for everybody. The planted row must be surely above 0, and above the other. The
result is in tests/benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

from PIL import Image

from headshotkit.config import GenerateConfig, LeakConfig
from headshotkit.core.results import LoraResult
from headshotkit.core.run import Run
from headshotkit.evaluation.forgetting import jobs_of, measure_leak
from headshotkit.families import Sampling, load_family
from headshotkit.families.jobs import draw
from headshotkit.families.methods import use_trained
from headshotkit.generation.picking import prompts_that_differ
from headshotkit.generation.prompts import load_prompts
from headshotkit.scoring import leak
from headshotkit.scoring.identity import known_person


def row(name: str, group: dict) -> str:
    """A line of the table."""
    changes = [f"{c['mean']:+.3f} [{c['low']:+.3f}, {c['high']:+.3f}]" for c in
               (group["rise"], group["adherence_change"], group["alike_change"])]  # fmt: skip
    shares = (f"{group[key] or 0:.0%}" for key in ("as_person_off", "as_person_on"))
    return f"| {name} | {group['faces_off']}, {group['faces_on']} | {changes[0]} | {', '.join(shares)} | " + " | ".join(
        changes[1:]
    ) + " |"  # fmt: skip


def main() -> int:
    """Prints the table; returns the exit code."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--pictures", type=int, default=8)
    arguments.add_argument("--folder", type=Path)
    given = arguments.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp()) / "run"
    run = Run(folder if folder.exists() else shutil.copytree(given.run, folder))
    config, lora = LeakConfig(pictures=given.pictures), LoraResult.load(run).lora
    report = measure_leak(run, config)
    print("| drawn | faces, off and on | rise of similarity to the person | as the person, off and on | adherence | "
          "similarity of faces to each other |\n|---|---|---|---|---|---|")  # fmt: skip
    for kind, group in report["groups"].items():
        print(row(f"{kind}, as it is", group), flush=True)
    drawing = GenerateConfig.for_base(lora.base).without_base_guidance()
    jobs = jobs_of(prompts_that_differ(load_prompts(), config.pictures), lora, drawing, config)["class"]
    named = [
        type(job)(
            job.prompt.replace(lora.names.class_prompt, lora.names.person, 1), job.negative, job.seed, job.size_px
        )
        for job in jobs
    ]
    family = load_family(lora.base)
    family.encode_prompts([text for job in named for text in (job.prompt, job.negative)])
    partial(use_trained, family, run.path("lora"), lora)(1.0)
    drawn = draw(family, named, Sampling.of(drawing, names=lora.names), drawing.batch)
    on = [leak.look_at(picture, job.prompt) for job, picture in drawn]
    files = [run.path("leak") / f"class_off_{number:02}.png" for number in range(len(jobs))]
    off = [leak.look_at(Image.open(file), job.prompt) for file, job in zip(files, jobs, strict=True)]
    person = known_person(run, drawing)
    planted = leak.compare_group(off, on, person.centre, person.threshold.value)
    print(row("class, leak planted", leak.to_json({"class": planted}, {})["groups"]["class"]))
    for sentence in [*report["sentences"], *leak.sentences_of({"class": planted}, {})]:
        print(sentence)
    return 0


if __name__ == "__main__":
    sys.exit(main())
