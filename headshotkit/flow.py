"""The whole run in one call: photos in, gallery out; each stage once, whatever was done before is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from headshotkit.bases import choose_base
from headshotkit.config import Config, DatasetConfig, GateConfig, RenderConfig, RestoreConfig, TrainConfig
from headshotkit.dataset import build_dataset
from headshotkit.errors import NoPhotos
from headshotkit.evaluate import evaluate_run
from headshotkit.gallery import build_gallery
from headshotkit.gate import judge_photos
from headshotkit.records import Verdict, kept_photos
from headshotkit.render import render_headshots
from headshotkit.restore import restore_headshots
from headshotkit.run import COMMANDS, STAGES, Run
from headshotkit.train import train_lora


@dataclass(frozen=True)
class Options:
    """What a person may set for a run; None leaves it to the preset of the base."""

    photos: Path | None = None
    base: str | None = None
    token: str | None = None
    class_word: str | None = None
    class_images: int | None = None
    aspect: str | None = None
    augment: str | None = None
    captioner: str | None = None
    min_photos: int | None = None
    method: str | None = None
    steps: int | None = None
    rank: int | None = None
    count: int | None = None
    max_attempts: int | None = None
    prompts: str | None = None
    packs: tuple[str, ...] | None = None
    fidelity: float | None = None
    codeformer_weights: str | None = None
    seed: int | None = None


CHOICES: dict[type[Config], tuple[str, ...]] = {
    DatasetConfig: ("token", "class_word", "class_images", "aspect", "augment", "captioner", "seed"),
    TrainConfig: ("method", "steps", "rank", "seed"),
    RenderConfig: ("count", "max_attempts", "prompts", "packs", "seed"),
}
"""Which of the options each stage's config takes."""


def make_headshots(
    photos: Path | str, out: Path | str, options: Options | None = None, tell: Callable[[str], None] = print
) -> Run:
    """Does every stage of a run that is not done yet, and tells a line a stage.

    Args:
        photos: folder with the person's photos.
        out: the run folder.
        options: settings; its `photos` is replaced by `photos`.
        tell: is given each line; `print` by default.
    Raises:
        HeadshotError: as the stages do; what was finished before stays.
    """
    run, options = Run(out), replace(options or Options(), photos=Path(photos))
    base, why = run_base(run, options)
    tell(f"base       {base}: {why}")
    for stage in STAGES:
        tell(line_of(do_stage(stage, run, options)))
    return run


def run_base(run: Run, options: Options) -> tuple[str, str]:
    """The base of a run and why: the one asked for, else the one it was begun with, else by device.

    Raises:
        UnknownBase: the one asked for does not exist.
    """
    begun = run.peek("dataset").get("config", {}).get("base")
    if begun and not options.base:
        return begun, "the run was begun with it"
    return choose_base(options.base)


def do_missing(stages: tuple[str, ...], run: Run, options: Options, tell: Callable[[str], None] = print) -> None:
    """Does those of the stages that the run does not have, whatever settings the others were made with.

    Raises:
        HeadshotError: as the stages do.
    """
    for stage in stages:
        if not run.has(stage):
            tell(line_of(do_stage(stage, run, options)))


def config_for(kind: type[Config], base: str, options: Options) -> Config:
    """A stage's config: the base's preset, with what the person set in its place."""
    chosen = {name: getattr(options, name) for name in CHOICES[kind]}
    if kind is TrainConfig:
        chosen["alpha"] = options.rank  # alpha / rank is the LoRA's weight, so it stays 1
    return kind.for_base(base, **chosen)


def do_stage(stage: str, run: Run, options: Options) -> dict:
    """Does one stage, unless it is done, and returns its manifest.

    Raises:
        HeadshotError: as the stage does.
    """
    base, _ = run_base(run, options)
    match stage:
        case "photos":
            _check(run, options)
        case "dataset":
            build_dataset(run, config_for(DatasetConfig, base, options))
        case "lora":
            train_lora(run, config_for(TrainConfig, base, options))
        case "headshots":
            render_headshots(run, config_for(RenderConfig, base, options))
        case "restored":
            chosen = {"fidelity": options.fidelity, "weights": options.codeformer_weights}
            restore_headshots(run, RestoreConfig.with_options(**chosen))
        case "report":
            evaluate_run(run)
        case "gallery":
            build_gallery(run)
    return run.manifest(stage)


def _check(run: Run, options: Options) -> None:
    """Judges the photos; too few good ones are an error here already, not only when training needs them."""
    config = GateConfig.with_options(min_photos=options.min_photos)
    if options.photos is None:
        raise NoPhotos("no photo folder was given.", "", f"Give one: headshotkit check PHOTOS --out {run.folder}")
    verdicts: list[Verdict] = judge_photos(options.photos, run, config)
    kept_photos(verdicts, config.min_photos, run.manifest("photos")["advice"])


def line_of(manifest: dict) -> str:
    """One line on a finished stage: its name, what came out, seconds; after the check another, with what is missing."""
    line = f"{COMMANDS[manifest['stage']]:<10} {manifest['outcome']} ({manifest['seconds']:.1f} s)"
    return line + (f"\n{'':<10} {manifest['advice']}" if "advice" in manifest else "")
