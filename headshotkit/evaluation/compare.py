"""Put runs side by side: for each the baselines in one table, and what differs between them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from headshotkit.core import __version__, runtime
from headshotkit.core.errors import BadConfig
from headshotkit.core.pages import PAGE, template
from headshotkit.core.records import Headshot, Record
from headshotkit.core.results import DatasetResult, HeadshotsResult, LoraResult, PhotosResult, ReportResult
from headshotkit.core.run import Run, read_json, write_atomic, write_json
from headshotkit.evaluation.forgetting import FILE as LEAK_FILE
from headshotkit.evaluation.forgetting import FOLDER as LEAK_FOLDER
from headshotkit.faces import recognition
from headshotkit.scoring.bootstrap import BOOTSTRAPS
from headshotkit.scoring.identity import identity_of, known_faces

FILE = "compare.json"
ROWS = {
    "own_photos": "own photos, each to the others", "base": "bare base", "lora": "LoRA, first attempts",
    "delivered": "delivered", "restored": "restored",
}  # fmt: skip
"""Set of pictures in metrics.json -> its name in the table of baselines."""
MEASURES = {
    "arcface": "identity, ArcFace", "dlib": "identity, dlib", "held_out": "identity to photos not trained on",
    "sharpness": "sharpness", "adherence": "prompt adherence, mean",
}  # fmt: skip
STATISTICS = {"adherence": np.mean}
"""Measure -> its average, if that is not the median: most pictures follow their whole prompt."""


@dataclass(frozen=True)
class Value(Record):
    """A median or a mean with its 95 % percentile-bootstrap interval over `count` pictures."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}], {self.count}"


def value_of(values: Iterable[float | None], average: Callable = np.median, seed: int = 0) -> Value | None:
    """Return the average of the known values, np.median or np.mean; None if there are none.

    >>> value_of([0.5, None, 0.5])
    Value(value=0.5, low=0.5, high=0.5, count=2)
    """
    known = np.array([value for value in values if value is not None], float)
    if not len(known):
        return None
    picks = np.random.default_rng(seed).integers(0, len(known), (BOOTSTRAPS, len(known)))
    low, high = np.quantile(average(known[picks], axis=1), [0.025, 0.975])
    return Value(*(round(float(value), 4) for value in (average(known), low, high)), len(known))


def compare_runs(runs: Sequence[Run], out: Path | str) -> dict:
    """Compare evaluated runs with each other, and the headshots of each with every other run's person.

    Writes `out`/: compare.json and index.html, which holds the same tables. A run's leak.json is used if it is there.
    Nothing is written into the runs.

    Args:
        runs: one or more; two of the same folder name are told apart by their paths.
    Returns: the content of compare.json: `runs`, name -> facts, baselines, leak and honesty.
    Raises:
        BadConfig: no run is given, or one twice.
        StageMissing: a run has not been evaluated.
        DamagedRun: its metrics can't be used, or a headshot is missing or changed.
    """
    if not runs or len({run.folder.resolve() for run in runs}) < len(runs):
        raise BadConfig(
            f"{len(runs)} runs are given{', one of them twice' if runs else ''}.",
            "Each run is a column of the comparison.",
            "Give each run once: headshotkit compare runs/a runs/b",
        )
    named = dict(zip(_names(runs), runs, strict=True))
    compared = {name: facts_of(run) | {"baselines": baselines_of(run)} for name, run in named.items()}
    for name, run in named.items():
        known = known_faces(run, "arcface") if len(named) > 1 else None
        for other, theirs in named.items():
            if other != name:
                values = _similarity_to(known, theirs)
                compared[name]["baselines"][f"LoRA of {other}"] = {"arcface": _plain(value_of(values))}
    report = {"runs": compared, "headshotkit": __version__}
    folder = runtime.typed_path(out)
    write_json(folder / FILE, report)
    write_atomic(folder / PAGE, page_of(compared))
    return report


def facts_of(run: Run) -> dict:
    """Return how a run was made and what came of it, its leak if that was measured, and its sentences on honesty.

    Raises:
        StageMissing: the run has not been evaluated.
    """
    report, lora, dataset = ReportResult.load(run), LoraResult.load(run), DatasetResult.load(run)
    shots, kept = HeadshotsResult.load(run), PhotosResult.load(run).kept
    seconds = report.metrics["seconds"]
    command = f"headshotkit leak --out {run.folder}"
    leak = read_json(run.path(LEAK_FOLDER) / LEAK_FILE, {"made_from": dict}, command) or {}
    return {
        "facts": {
            "base": lora.lora.base,
            "method": lora.lora.method,
            "steps": lora.lora.step,
            "photos kept": len(kept),
            "photos held out": len(dataset.held_out),
            "class images": len(dataset.dataset.class_images),
            "accepted": report.metrics["accepted"],
            "attempted": report.metrics["attempted"],
            "identity threshold": shots.threshold.value,
            "seconds": round(sum(seconds.values()), 1),
        },
        "leak": leak if leak.get("groups") and leak["made_from"].get("lora") == run.content_of("lora") else {},
        "honesty": report.metrics.get("honesty", {}).get("sentences", []),
    }


def baselines_of(run: Run) -> dict[str, dict[str, dict | None]]:
    """Return set of pictures -> measure -> value, for every set that the run's evaluation measured.

    Raises:
        StageMissing: the run has not been evaluated.
        DamagedRun: metrics.json is missing or can't be used.
    """
    command = f"headshotkit evaluate --out {run.folder}"
    ReportResult.load(run)
    file = run.path("report") / "metrics.json"
    scores = (read_json(file, {"scores": dict}, command) or {"scores": {}})["scores"]
    shots = {shot.file: shot for shot in HeadshotsResult.load(run).headshots}
    found = {}
    for kind in (kind for kind in ROWS if kind in scores):
        rows = scores[kind]
        drawn = [shots.get(row.get("file")) for row in rows] if kind in ("lora", "delivered") else []
        columns = {name: [row.get(name) for row in rows] for name in ("arcface", "dlib", "sharpness")}
        for name in ("held_out", "adherence"):
            columns[name] = [getattr(shot, name) for shot in drawn if shot is not None]
        found[kind] = {name: _plain(value_of(columns[name], STATISTICS.get(name, np.median))) for name in MEASURES}
    return found


def _similarity_to(known: np.ndarray, theirs: Run) -> list[float]:
    """Return the identity of another run's first attempts to a person, for those with one face."""
    first = [shot for shot in HeadshotsResult.load(theirs).headshots if shot.attempt == 1 and shot.face_points_px]
    files = theirs.files("headshots", [shot.file for shot in first])
    centre, found = known.mean(0), []
    for shot, file in zip(first, runtime.progress(files, "another person's headshots"), strict=True):
        with Image.open(file, formats=("PNG",)) as picture:
            found.append(identity_of(np.asarray(picture.convert("RGB")), _face_of(shot), centre, "arcface"))
    return found


def _face_of(shot: Headshot) -> recognition.Face:
    """Return the face that was found when a headshot was judged."""
    return recognition.Face(np.zeros(4, np.float32), 1.0, np.array(shot.face_points_px, np.float32))


def _names(runs: Sequence[Run]) -> list[str]:
    """Return a name for each run: its folder's, or as much of its path as tells it from the others."""
    parts = [run.folder.resolve().parts[1:] for run in runs]
    deep = 1
    while len({part[-deep:] for part in parts}) < len(runs):
        deep += 1
    return [os.sep.join(part[-deep:]) for part in parts]


def _plain(value: Value | None) -> dict | None:
    return None if value is None else value.to_dict()


# --- the tables ---------------------------------------------------------------------------------------------------


def tables_of(compared: dict) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Return the tables of a comparison: (title, header, rows), with a column a run but for the baselines."""
    runs = tuple(compared)
    tables = []
    for name in runs:
        rows = [
            (ROWS.get(kind, kind), *(_shown(values.get(measure)) for measure in MEASURES))
            for kind, values in compared[name]["baselines"].items()
        ]
        tables.append((f"Baselines of {name}", ("pictures", *MEASURES.values()), rows))
    names = list(compared[runs[0]]["facts"])
    rows = [(fact, *(str(compared[run]["facts"][fact]) for run in runs)) for fact in names]
    tables.insert(0, ("The runs", ("", *runs), rows))
    if any(compared[run]["leak"] for run in runs):
        columns = [_leak_rows(compared[run]["leak"]) for run in runs]
        rows = [(row, *(column.get(row, "not measured") for column in columns)) for row in
                dict.fromkeys(row for column in columns for row in column)]  # fmt: skip
        images = ("class images (prior preservation)", *(str(compared[run]["facts"]["class images"]) for run in runs))
        tables.append(("Forgetting and identity leak", ("", *runs), [images, *rows]))
    return tables


def _leak_rows(leak: dict) -> dict[str, str]:
    """Return row -> words of a leak.json."""
    rows = {}
    for kind, group in leak.get("groups", {}).items():
        who = {"class": "same class word", "others": "other class words"}[kind]
        rows[f"{who}: rise of similarity to the person"] = _change(group["rise"])
        rows[f"{who}: share that reaches the identity threshold, without and with the LoRA"] = (
            f"{_share(group['as_person_off'])}, {_share(group['as_person_on'])}"
        )
        rows[f"{who}: change of prompt adherence"] = _change(group["adherence_change"])
        rows[f"{who}: change of the faces' similarity to each other"] = _change(group["alike_change"])
    for name, one in leak.get("memory", {}).items():
        rows[f"bare token: nearer to trained photos than to others, by {name}"] = _change(one["excess"])
    return rows


def _change(interval: dict) -> str:
    if interval["count"] < 2:
        return "not measured"
    return f"{interval['mean']:+.3f} [{interval['low']:+.3f}, {interval['high']:+.3f}], {interval['count']}"


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.0%}"


def _shown(value: dict | None) -> str:
    return "" if value is None else str(Value.from_dict(value))


def page_of(compared: dict) -> str:
    """Return the comparison as one HTML page."""
    tables = [{"title": title, "header": header, "rows": rows} for title, header, rows in tables_of(compared)]
    return template("compare.html").render(tables=tables, runs=compared)
