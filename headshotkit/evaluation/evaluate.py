"""Evaluate a run: identity of the base's and the LoRA's headshots by both recognisers, restored or not, sharpness.

The rise is measured on first attempts only, same prompts and seeds with and without the LoRA, so that choosing the
best attempts can't flatter it. A few of them are enough, and each costs a picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from headshotkit.config import EvaluateConfig, GenerateConfig
from headshotkit.config.bases import find_base
from headshotkit.config.few_steps import FEW_STEPS
from headshotkit.core import locks, runtime
from headshotkit.core.budget import TimeBudget
from headshotkit.core.errors import BrokenPackage, DamagedRun, MissingModel, MissingPackage
from headshotkit.core.records import Headshot, Score
from headshotkit.core.results import HeadshotsResult, LoraResult, ReportResult, RestoredResult, Result
from headshotkit.core.run import BANKS, STAGES, Run, discard, sha256_of, write_atomic, write_json
from headshotkit.evaluation.plots import GOLDEN, plot_identity, plot_losses
from headshotkit.faces import measures, recognition
from headshotkit.families import CHANGES, Sampling, load_family
from headshotkit.families.jobs import Job, draw
from headshotkit.generation.few_steps import drawn_in_few
from headshotkit.generation.policy import Deadline, OutOfTime
from headshotkit.generation.prompts import BANK, choose_prompts, load_prompts
from headshotkit.photos.files import png_bytes
from headshotkit.planning.ladder import PAIRS
from headshotkit.scoring.adherence import asked_of
from headshotkit.scoring.bootstrap import rise_of
from headshotkit.scoring.honesty import measure_honesty
from headshotkit.scoring.identity import held_out_of, identity_of, known_faces
from headshotkit.scoring.metrics import METRICS, Sets, measure
from headshotkit.scoring.metrics_features import Features, picture_of_headshot, pictures_of_photos
from headshotkit.scoring.metrics_nets import WEIGHTS, is_here

RECOGNISERS = ("arcface", "dlib")
FEATURES = "features.npz"


@locks.writes("evaluate")
@runtime.frees_memory
def evaluate_run(
    run: Run, pairs: int = PAIRS, minutes: float = 0.0, budget: TimeBudget | None = None, keep: bool = True,
    download: bool = False,
) -> dict:  # fmt: skip
    """Measure what the run has made.

    Writes `report/`: base/ (the bare base's pictures), metrics.json, features.npz (what was measured on each picture),
    identity.png, losses.png, manifest.json. metrics.schema.json, beside this file, describes metrics.json.
    Returns the metrics.

    An evaluation that is finished is measured again if a net is here now that was missing, or a metric is new.

    Args:
        pairs: first attempts that are drawn without the LoRA as well, at most, spread over the prompts.
        minutes: time limit from now; if it is short, fewer pairs are drawn, even none; 0 is no limit.
        budget: the same as a time, in place of minutes.
        keep: an evaluation that began with another number of pairs keeps it.
        download: download the nets of metrics that are not here.
    Raises:
        StageMissing: headshots have not been generated and restored.
        DamagedRun: a headshot is missing or changed.
        MissingModel, MissingPackage: ArcFace is not available; dlib may be missing, which is reported.
    """
    EvaluateConfig(pairs=pairs, minutes=minutes, download=download)
    deadline = Deadline(budget or TimeBudget.of(minutes))
    generated = HeadshotsResult.load(run)
    shots, delivered = list(generated.headshots), list(generated.delivered)
    first = [shot for shot in shots if shot.attempt == 1]
    run.files("headshots", dict.fromkeys([*(shot.file for shot in first), *delivered]))
    run.files("restored", delivered)
    deadline.note(1, _picture_s(generated))
    inputs = run.inputs_from("photos", "headshots", "restored")
    wanted = min(pairs, len(first))
    room = deadline.room_for(wanted)
    settings = {"pairs": _begun_pairs(run, inputs, room) if keep or room < wanted else wanted}
    if deadline.room_for(1) and (why := _outdated(run, download)):
        runtime.say(f"{'evaluate':<10} measuring again: {why}")
        write_json(run.path("report") / "manifest.json", run.peek("report") | {"status": "started"})
    stage = run.begin("report", settings, inputs)
    if stage.done:
        return ReportResult.from_dict(stage.manifest).metrics
    known, missing = _known(run)
    scores = _scores_of(run, shots, delivered, known)
    paired = [first[place] for place in spread(len(first))[: settings["pairs"]]]
    for file in (stage.folder / "base" / shot.file for shot in paired if f"base/{shot.file}" in stage.spoilt):
        discard(file)
    changes = stage.manifest.setdefault(CHANGES, [])
    base = render_base(run, paired, generated, stage.folder / "base", deadline, changes)
    scores = {"base": score_files(base, known, "measuring base")} | scores
    metrics = {
        "identity": {name: _identity(name, known[name], scores) for name in known},
        "sharpness": {kind: _median([s.sharpness for s in rows]) for kind, rows in scores.items()},
        "pairs": {"drawn": len(base), "wanted": wanted, "of": len(first)},
        "honesty": measure_honesty(run, [run.path("restored") / file for file in delivered]),
        "missing": missing,
        "accepted": sum(shot.accepted for shot in shots),
        "attempted": len(shots),
        "pass_mark": generated.threshold.to_dict(),
        "seconds": {
            s: Result.of(run.manifest(s)).seconds for s in STAGES if run.has(s) and s not in ("report", "gallery")
        },
    }
    if deadline.room_for(1):
        metrics |= _measured(run, generated, base, stage.folder, download)
    table = {kind: [s.to_dict() for s in rows] for kind, rows in scores.items()}
    own = {name: recognition.leave_one_out(known[name], recognition.load_recogniser(name)).tolist() for name in known}
    table["own_photos"] = [dict(zip(own, values, strict=True)) for values in zip(*own.values(), strict=True)]
    write_json(stage.folder / "metrics.json", metrics | {"scores": table})
    write_atomic(stage.folder / "identity.png", plot_identity(metrics, table).png())
    try:
        write_atomic(stage.folder / "losses.png", plot_losses(run).png())
        without = ""
    except DamagedRun:  # nothing else needs the losses, and they can't be remade
        without = "; no losses.png, because lora/losses.json is missing or damaged"
    stage.finish(_outcome(metrics) + without, metrics=metrics)
    return metrics


def _measured(run: Run, generated: HeadshotsResult, base: list[Path], folder: Path, download: bool) -> dict:
    """Return every metric of every set of pictures, and the nets that they were measured with; write features.npz.

    Args:
        base: the bare base's pictures.
    """
    names, asked = LoraResult.load(run).lora.names, _asked(run, generated)
    shots = {shot.file: shot for shot in generated.headshots}
    first = [shot.file for shot in generated.headshots if shot.attempt == 1]
    files = {
        "base": base,
        "lora": [run.path("headshots") / file for file in first],
        "delivered": [run.path("headshots") / file for file in generated.delivered],
        "restored": [run.path("restored") / file for file in generated.delivered],
    }
    caches = [folder / FEATURES, *(place / FEATURES for place in reversed(run.earlier()))]
    features = Features(next((file for file in caches if file.is_file()), None), download)
    photos, held_out = pictures_of_photos(run), held_out_of(run)
    unseen = [photo for photo in photos if photo.name in held_out]
    trained = [photo for photo in photos if photo.name not in held_out]
    sets = {
        kind: Sets([picture_of_headshot(file, shots[file.name], names, asked(shots[file.name])) for file in of],
                   trained, features, unseen)
        for kind, of in files.items()
    } | {"own_photos": Sets(trained, trained, features, unseen)}  # fmt: skip
    measured = measure(sets)
    write_atomic(folder / FEATURES, features.to_bytes())
    nets = {name: features.weights.get(name, "") if is_here(name) else None for name in WEIGHTS}
    return {"measured": measured, "nets": nets}


def _asked(run: Run, generated: HeadshotsResult) -> Callable[[Headshot], dict[str, str]]:
    """Return the function that returns a headshot's measurable requests; none if the run's prompt bank is gone.

    A small base's prompts say it in the words that are measured; others are looked up in the bank.
    """
    if find_base(generated.config["base"]).brief_prompts:
        return lambda shot: asked_of(shot.prompt)
    config = GenerateConfig.from_dict(generated.config)
    bank = run.folder / BANKS / config.prompts if config.prompts else BANK
    if not bank.is_file() or sha256_of(bank) != generated.inputs.get("prompts"):
        return lambda shot: {}
    chosen = choose_prompts(load_prompts(bank), config.count, config.packs, config.seed)
    asked = {name: asked_of(prompt.brief) for name, prompt in chosen}
    return lambda shot: asked.get(shot.prompt_id, {})


def _outdated(run: Run, download: bool) -> str:
    """Return why a finished evaluation is to be measured again; empty if it is not."""
    before = run.peek("report")
    if before.get("status") != "done":
        return ""
    made = before.get("metrics", {})
    if lacking := sum(metric.name not in made.get("measured", {}) for metric in METRICS):
        return f"{lacking} of {len(METRICS)} metrics are new"
    came = [WEIGHTS[name].title for name, sha256 in made.get("nets", {}).items()
            if name in WEIGHTS and sha256 is None and (download or is_here(name))]  # fmt: skip
    return f"{', '.join(came)} can be used now" if came else ""


def _begun_pairs(run: Run, inputs: dict[str, str], room: int) -> int:
    """Return the pairs that the evaluation was begun with, or as many as fit now if it is new or was cut short."""
    before = run.peek("report")
    begun, made = before.get("config", {}).get("pairs", 0), before.get("metrics", {}).get("pairs")
    if not before or not run.is_begun("report", {"pairs": begun}, inputs):
        return room
    return max(room, begun) if made and made["drawn"] < made["wanted"] else begun


def _known(run: Run) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the photos' embeddings by each available recogniser, and why another one is missing."""
    known, missing = {"arcface": known_faces(run, "arcface")}, []
    try:
        known["dlib"] = known_faces(run, "dlib")
    except (BrokenPackage, MissingModel, MissingPackage) as error:
        missing.append(f"without dlib: {error.happened} {error.next_step}")
    return known, missing


def spread(count: int) -> list[int]:
    """Return the indices 0 to count - 1 in an order whose first few, however many, are spread evenly.

    Source: the three-gap theorem, on multiples of the golden ratio.

    >>> spread(24)[:4]
    [0, 13, 5, 18]
    """
    return sorted(range(count), key=lambda place: place * GOLDEN % 1)


def _outcome(metrics: dict) -> str:
    """Return the identity of base and LoRA by both recognisers, in one line."""
    parts = []
    for name, m in metrics["identity"].items():
        rise = m["rise"]
        parts.append(
            f"{name} {_shown(m['base_median'])} -> {_shown(m['lora_median'])} (own photos "
            f"{_shown(m['own_photos_median'])}), rise {rise['median']:+.3f} (95 %: {rise['low']:+.3f} to "
            f"{rise['high']:+.3f})"
        )
    pairs = metrics["pairs"]
    late = f" instead of {pairs['wanted']}, because time was short" if pairs["drawn"] < pairs["wanted"] else ""
    drawn = f"{pairs['drawn']} pair{'s' * (pairs['drawn'] != 1)}{late}"
    return "median identity: " + "; ".join([*parts, drawn, *metrics["missing"]])


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def render_base(
    run: Run,
    first: list[Headshot],
    generated: HeadshotsResult,
    folder: Path,
    deadline: Deadline | None = None,
    changes: list[dict] | None = None,
) -> list[Path]:
    """Draw the same prompts and seeds without the LoRA, with the settings in the headshots' manifest; return the files.

    Batches that exist are not drawn again; one that lacks a picture is drawn whole, because alone it would round
    differently. When the time is up, the rest are left out.
    """
    deadline = deadline or Deadline(TimeBudget())
    config = GenerateConfig.from_dict(generated.config)
    files = [folder / h.file for h in first]
    pairs = zip(first, files, strict=True)
    batches = runtime.batches_of(pairs, config.batch, kind=lambda pair: pair[0].size_px)
    todo = [batch for batch in batches if not all(file.exists() for _, file in batch)]
    room = deadline.room_for(sum(map(len, todo)))
    if room:
        minutes = room * _picture_s(generated) / 60
        runtime.say(
            f"{'evaluate':<10} generating {room} headshots without the LoRA to compare: about {minutes:.1f} minutes"
        )
        _draw_base(run, todo, generated, config, deadline, [] if changes is None else changes)
    return [file for file in files if file.exists()]


def _picture_s(generated: HeadshotsResult) -> float:
    """Return the seconds of drawing and judging a headshot; older manifests hold the whole stage's."""
    return (generated.drawing_seconds or generated.seconds) / max(len(generated.headshots), 1)


def _draw_base(
    run: Run,
    todo: list[list[tuple[Headshot, Path]]],
    generated: HeadshotsResult,
    config: GenerateConfig,
    deadline: Deadline,
    changes: list[dict],
) -> None:
    """Draw the bare base's pictures, batch by batch, until all are there or the time is up.

    The face models, which measured the headshots before, are freed to make room for the base.
    """
    recognition.forget_models()
    family, lora = load_family(config.base), LoraResult.load(run).lora
    family.changes = changes
    if generated.few_steps.get("held"):
        family.use_few_steps(FEW_STEPS[config.distilled_lora])
        config = drawn_in_few(config)
    family.encode_prompts([text for batch in todo for h, _ in batch for text in (h.prompt, h.negative)])
    for batch in runtime.progress(todo, "headshots without the LoRA"):
        batch, start = batch[: deadline.room_for(len(batch))], deadline.clock()
        if not batch:
            return
        jobs = [Job.of(headshot) for headshot, _ in batch]
        try:
            drawn = list(draw(family, jobs, Sampling.of(config, names=lora.names), len(jobs), deadline.check))
        except OutOfTime:
            return
        for (_, file), (_, image) in zip(batch, drawn, strict=True):
            if not file.exists():
                write_atomic(file, png_bytes(image))
        deadline.note(len(batch), deadline.clock() - start)


def _scores_of(
    run: Run, shots: list[Headshot], delivered: list[str], known: dict[str, np.ndarray]
) -> dict[str, list[Score]]:
    """Return the scores of first attempts, delivered and restored headshots; measure each picture once.

    Delivered headshots are attempts, and a headshot that was not restored is the same file again.
    """
    wanted = {shot.file: shot for shot in shots if shot.attempt == 1 or shot.file in delivered}
    made = {
        file: _score_of_shot(run.path("headshots") / file, shot, known)
        for file, shot in runtime.progress(wanted.items(), "measuring headshots")
    }
    changed = {face.file for face in RestoredResult.load(run).faces if face.kept == "restored"}
    restored = [file for file in delivered if file in changed]
    again = {s.file: s for s in score_files([run.path("restored") / f for f in restored], known, "measuring restored")}
    return {
        "lora": [made[shot.file] for shot in shots if shot.attempt == 1],
        "delivered": [made[file] for file in delivered],
        "restored": [again.get(file, made[file]) for file in delivered],
    }


def _score_of_shot(file: Path, shot: Headshot, known: dict[str, np.ndarray]) -> Score:
    """Return a headshot's score from the face found when it was judged; find it again if the manifest lacks it."""
    if shot.identity is not None and not shot.face_points_px:
        return _score(file, known)
    others = {name: own for name, own in known.items() if name != "arcface"}
    identity = {}
    if shot.identity is not None and others:
        face = recognition.Face(np.zeros(4, np.float32), 1.0, np.array(shot.face_points_px, np.float32))
        with Image.open(file, formats=("PNG",)) as picture:
            image = np.asarray(picture.convert("RGB"))
        identity = {name: identity_of(image, face, own.mean(0), name) for name, own in others.items()}
    return Score(file.name, shot.identity, identity.get("dlib"), shot.sharpness)


def score_files(files: list[Path], known: dict[str, np.ndarray], title: str = "measuring") -> list[Score]:
    """Return the identity and sharpness of pictures; None if a picture does not show exactly one face.

    Args:
        known: recogniser -> embeddings of the person's photos, shape (N, D).
    """
    return [_score(file, known) for file in runtime.progress(files, title)]


def _score(file: Path, known: dict[str, np.ndarray]) -> Score:
    image = np.asarray(Image.open(file, formats=("PNG", "JPEG")).convert("RGB"))
    found = recognition.detect_faces(image)
    if len(found) != 1:
        return Score(file.name, None, None, None)
    identity = {name: identity_of(image, found[0], own.mean(0), name) for name, own in known.items()}
    aligned = recognition.align_face(image, found[0].points, measures.FACE_PX)
    return Score(file.name, identity.get("arcface"), identity.get("dlib"), round(measures.sharpness(aligned), 2))


def _identity(name: str, known: np.ndarray, scores: dict[str, list[Score]]) -> dict:
    """Return one recogniser's medians, and the rise from base to LoRA."""
    own = recognition.leave_one_out(known, recognition.load_recogniser(name))
    values = {kind: [getattr(s, name) for s in rows] for kind, rows in scores.items()}
    first = {s.file: getattr(s, name) for s in scores["lora"]}
    with_lora = [first[s.file] for s in scores["base"]]
    return {
        "own_photos_median": round(float(np.median(own)), 4),
        "base_median": _median(values["base"]),
        "lora_median": _median(values["lora"]),
        "delivered_median": _median(values["delivered"]),
        "restored_median": _median(values["restored"]),
        "rise": asdict(rise_of(values["base"], with_lora)),
    }


def _median(values: list[float | None]) -> float | None:
    """Return the median of the values that are not None; None if there is none."""
    there = [v for v in values if v is not None]
    return round(float(np.median(there)), 4) if there else None
