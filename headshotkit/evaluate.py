"""Evaluates a run: identity of the base's and the LoRA's headshots by both recognisers, restored or not, sharpness.

The rise is measured on the first attempts alone, same prompts and seeds with and without the LoRA, so that choosing
the best attempts can't flatter it.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from headshotkit import faces, locks, measures, runtime
from headshotkit.config import RenderConfig
from headshotkit.errors import DamagedRun
from headshotkit.families import Sampling, load_family
from headshotkit.few_steps import FEW_STEPS, drawn_in_few
from headshotkit.identity import identity_of, known_faces
from headshotkit.intervals import rise_of
from headshotkit.photos import png_bytes
from headshotkit.plots import plot_identity, plot_losses
from headshotkit.records import Headshot, Lora, Score
from headshotkit.run import STAGES, Run, Stage, write_atomic, write_json

RECOGNISERS = ("arcface", "dlib")


@locks.writes("evaluate")
@runtime.frees_memory
def evaluate_run(run: Run) -> dict:
    """Measures what the run has made.

    Writes `report/`: base/ (the bare base's pictures), metrics.json, identity.png, losses.png, manifest.json.
    Returns the metrics.

    Raises:
        StageMissing: headshots have not been generated and restored.
    """
    generated = run.manifest("headshots")
    first = [Headshot.from_dict(h) for h in generated["headshots"] if h["attempt"] == 1]
    files = {
        "lora": run.files("headshots", [h.file for h in first]),
        "delivered": run.files("headshots", generated["delivered"]),
        "restored": run.files("restored", generated["delivered"]),
    }
    stage = run.begin("report", {}, run.inputs_from("photos", "headshots", "restored"))
    if stage.done:
        return stage.manifest["metrics"]
    base_files = _render_base(run, first, generated, stage)
    known = {name: known_faces(run, name) for name in RECOGNISERS}
    files = {"base": base_files, **files}
    scores = {kind: score_files(some, known, f"measuring {kind}") for kind, some in files.items()}
    metrics = {
        "identity": {name: _identity(name, known[name], scores) for name in RECOGNISERS},
        "sharpness": {kind: _median([s.sharpness for s in rows]) for kind, rows in scores.items()},
        "accepted": sum(h["accepted"] for h in generated["headshots"]),
        "attempted": len(generated["headshots"]),
        "pass_mark": generated["pass_mark"],
        "seconds": {s: run.manifest(s)["seconds"] for s in STAGES if run.has(s) and s not in ("report", "gallery")},
    }
    table = {kind: [s.to_dict() for s in rows] for kind, rows in scores.items()}
    write_json(stage.folder / "metrics.json", metrics | {"scores": table})
    write_atomic(stage.folder / "identity.png", plot_identity(metrics, table).png())
    try:
        write_atomic(stage.folder / "losses.png", plot_losses(run).png())
        without = ""
    except DamagedRun:  # nothing else is made from the losses, and they can't be made again
        without = "; without losses.png, for lora/losses.json is missing or damaged"
    stage.finish(_outcome(metrics) + without, metrics=metrics)
    return metrics


def _outcome(metrics: dict) -> str:
    """Identity of base and LoRA by both recognisers, in one line."""
    parts = []
    for name in RECOGNISERS:
        m = metrics["identity"][name]
        rise = m["rise"]
        parts.append(
            f"{name} {_shown(m['base_median'])} -> {_shown(m['lora_median'])} of own photos' "
            f"{_shown(m['own_photos_median'])}, rise {rise['median']:+.3f} [{rise['low']:+.3f}, {rise['high']:+.3f}]"
        )
    return "identity base -> LoRA: " + "; ".join(parts)


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _render_base(run: Run, first: list[Headshot], generated: dict, stage: Stage) -> list[Path]:
    """The same prompts and seeds without the LoRA, all else as the headshots' manifest says that they were drawn.

    Pictures that exist are not made again.
    """
    config = RenderConfig(**generated["config"])
    files = [stage.folder / "base" / h.file for h in first]
    todo = [(h, f) for h, f in zip(first, files, strict=True) if not f.exists() or f"base/{h.file}" in stage.spoilt]
    if not todo:
        return files
    family, lora = load_family(config.base), Lora.from_dict(run.manifest("lora")["lora"])
    if generated.get("few_steps", {}).get("held"):
        family.use_few_steps(FEW_STEPS[config.few_steps])
        config = drawn_in_few(config)
    family.encode_prompts([text for h, _ in todo for text in (h.prompt, h.negative)])  # all before any is drawn
    batches = runtime.batches_of(todo, config.batch, kind=lambda pair: pair[0].size_px)
    for batch in runtime.progress(batches, "the bare base's headshots"):
        prompts, negatives = [h.prompt for h, _ in batch], [h.negative for h, _ in batch]
        seeds = [h.seed for h, _ in batch]
        sampling = Sampling.of(config, batch[0][0].size_px, lora.names)
        images = family.render(prompts, negatives, seeds, sampling)
        for (_, file), image in zip(batch, images, strict=True):
            write_atomic(file, png_bytes(image))
    return files


def score_files(files: list[Path], known: dict[str, np.ndarray], title: str = "measuring") -> list[Score]:
    """Identity and sharpness of pictures; None where a picture does not show exactly one face.

    Args:
        known: recogniser -> embeddings of the person's photos, shape (N, D).
    """
    return [_score(file, known) for file in runtime.progress(files, title)]


def _score(file: Path, known: dict[str, np.ndarray]) -> Score:
    image = np.asarray(Image.open(file, formats=("PNG", "JPEG")).convert("RGB"))
    found = faces.detect_faces(image)
    if len(found) != 1:
        return Score(file.name, None, None, None)
    identity = {name: identity_of(image, found[0], own.mean(0), name) for name, own in known.items()}
    aligned = faces.align_face(image, found[0].points, measures.FACE_PX)
    return Score(file.name, identity.get("arcface"), identity.get("dlib"), round(measures.sharpness(aligned), 2))


def _identity(name: str, known: np.ndarray, scores: dict[str, list[Score]]) -> dict:
    """One recogniser's medians, and the rise from base to LoRA."""
    own = faces.leave_one_out(known, faces.load_recogniser(name))
    values = {kind: [getattr(s, name) for s in rows] for kind, rows in scores.items()}
    return {
        "own_photos_median": round(float(np.median(own)), 4),
        "base_median": _median(values["base"]),
        "lora_median": _median(values["lora"]),
        "delivered_median": _median(values["delivered"]),
        "restored_median": _median(values["restored"]),
        "rise": asdict(rise_of(values["base"], values["lora"])),
    }


def _median(values: list[float | None]) -> float | None:
    """Median of the values that are there; None when there is none."""
    there = [v for v in values if v is not None]
    return round(float(np.median(there)), 4) if there else None
