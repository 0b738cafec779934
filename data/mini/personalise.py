"""Does a LoRA on the base become a person? By the package itself, with this base in place of the embedded one.

    nice -n 19 python personalise.py --people p1 p2 p3        # 5 minutes each on two cores

Wants headshotkit with its demo extra in the environment. Prints, for each person and both recognisers, the median
similarity of headshots to the person's photos, on first attempts, with the base alone and with the LoRA, its share of
the photos' own, and how far the same pictures rise towards the other people. Leaves HOME/personalise/<person>/, a run.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from obedience import Judge, judge_obedience
from store import HOME, SHARED
from training import Faces

import headshotkit.config.bases
from headshotkit.config import GenerateConfig, RunSettings
from headshotkit.core.records import Lora
from headshotkit.core.run import Run
from headshotkit.delivery.gallery import build_gallery
from headshotkit.evaluation.evaluate import rise_of, score_files
from headshotkit.families import Sampling, load_family
from headshotkit.families.methods import use_trained
from headshotkit.generation.headshots import generate_headshots
from headshotkit.pipeline import config_for, do_stage
from headshotkit.scoring.identity import known_faces

CLASS_WORD = {"p1": "man", "p2": "woman", "p3": "man"}
RECOGNISERS = ("arcface", "dlib")


def options_of(name: str, steps: int | None = None, guidance: float | None = None) -> RunSettings:
    photos, word = SHARED / "assets/people" / name, CLASS_WORD[name]
    return RunSettings(photos=photos, base="mini", class_word=word, steps=steps, guidance=guidance, max_attempts=1)


def personalise(name: str, steps: int | None, guidance: float | None, keep_lora: bool) -> Run:
    """A new run of one person, from photos to report; `guidance` None is the preset's."""
    run, options = Run(HOME / "personalise" / name), options_of(name, steps, guidance)
    keep_lora = keep_lora and run.has("lora")
    for stage in ("headshots", "restored", "report", "gallery") if keep_lora else ("",):
        shutil.rmtree(run.folder / stage, ignore_errors=True)
    for stage in () if keep_lora else ("photos", "dataset", "lora"):
        do_stage(stage, run, options)
    generate_headshots(run, config_for(GenerateConfig, "mini", options))
    for stage in ("restored", "report"):
        do_stage(stage, run, options)
    build_gallery(run)
    return run


def first_attempts(run: Run) -> tuple[list[Path], list[Path]]:
    """The same prompts and seeds, drawn by the base alone and with the LoRA."""
    files = [h["file"] for h in run.manifest("headshots")["headshots"] if h["attempt"] == 1]
    return [run.path("report") / "base" / f for f in files], [run.path("headshots") / f for f in files]


def show_obedience(run: Run, images: int, judge) -> None:
    """Prints how often the person's headshots show what was asked, drawn by the preset of mini."""
    config, lora = GenerateConfig.for_base("mini"), Lora.from_dict(run.manifest("lora")["lora"])
    family, size = load_family("mini"), (config.size_px, config.size_px)
    use_trained(family, run.path("lora"), lora, 1.0)

    def draw(prompts: list[str], seed: int) -> np.ndarray:
        seeds = [seed + number for number in range(len(prompts))]
        sampling = Sampling.of(config, size, lora.names)
        return np.stack([np.asarray(made) for made in family.render(prompts, [""] * len(prompts), seeds, sampling)])

    judge_obedience(draw, judge, images, f"{lora.token} {lora.class_word}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--people", nargs="+", default=["p1"], choices=sorted(CLASS_WORD))
    parser.add_argument("--base", type=Path, default=HOME / "base_256")
    parser.add_argument("--steps", type=int, help="of training; default: as the preset of mini says")
    parser.add_argument("--guidance", type=float, help="default: as the preset of mini says")
    parser.add_argument("--keep-lora", action="store_true", help="draw again with a LoRA that is there already")
    parser.add_argument("--obedience", type=int, default=0, help="images of the prompt grid, judged by obedience.py")
    args = parser.parse_args()
    bases = headshotkit.config.bases.BASES
    bases["mini"] = replace(bases["mini"], source=str(args.base.resolve()))

    judge = Judge(Faces(), GenerateConfig.for_base("mini").size_px) if args.obedience else None
    known = {}
    for name in CLASS_WORD:
        judged = Run(HOME / "personalise" / f"photos_of_{name}")
        do_stage("photos", judged, options_of(name))
        known[name] = {recogniser: known_faces(judged, recogniser) for recogniser in RECOGNISERS}
    for name in args.people:
        run = personalise(name, args.steps, args.guidance, args.keep_lora)
        print(f"{name}: trained in {run.manifest('lora')['seconds']:.0f} s", flush=True)
        metrics = run.manifest("report")["metrics"]["identity"]
        for recogniser in RECOGNISERS:
            m = metrics[recogniser]
            print(
                f"  {recogniser}: {m['base_median']:.3f} -> {m['lora_median']:.3f}, "
                f"{m['lora_median'] / m['own_photos_median']:.2f} of the photos' {m['own_photos_median']:.3f}; rise {m['rise']}",
                flush=True,
            )
        for other in [o for o in CLASS_WORD if o != name]:
            base, lora = (score_files(files, known[other]) for files in first_attempts(run))
            for recogniser in RECOGNISERS:
                rise = rise_of(*([getattr(score, recogniser) for score in scores] for scores in (base, lora)))
                print(f"  towards {other}, {recogniser}: {rise}", flush=True)
        if judge:
            show_obedience(run, args.obedience, judge)


if __name__ == "__main__":
    main()
