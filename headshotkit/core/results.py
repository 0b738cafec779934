"""The manifest of each stage as a record: `PhotosResult.load(run)` reads a finished stage of a run, checked.

A field without a default is required. A field with one may be missing, as in runs of earlier versions, but has its type
if it is there. Keys that no field names stay in the file and are not read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from headshotkit.core.records import (
    Dataset,
    Headshot,
    IdentityThreshold,
    Lora,
    Name,
    Photo,
    Pick,
    Record,
    Verdict,
    stored_as,
)

if TYPE_CHECKING:
    from headshotkit.core.run import Run


@dataclass(frozen=True, kw_only=True)
class Begun(Record):
    """What every stage's manifest holds from the beginning.

    fingerprint: hash of settings and inputs · config: the settings · inputs: what the stage reads, name -> sha256 ·
    files: of the stage, with size and sha256 · seconds: so far · drawing_seconds: those of drawing and judging ·
    planned: settings that a plan decided · headshotkit: its version.
    """

    stage: str
    status: Literal["started", "done"]
    fingerprint: str
    config: dict
    inputs: dict
    started: str
    files: dict = field(default_factory=dict)
    seconds: float = 0.0
    drawing_seconds: float = 0.0
    planned: tuple[str, ...] = ()
    headshotkit: str = ""


@dataclass(frozen=True, kw_only=True)
class Result(Begun):
    """What every finished stage's manifest holds: the outcome in words, its seconds, and when it ended."""

    folder_name: ClassVar[str]
    outcome: str
    seconds: float = field()  # required now
    finished: str

    @classmethod
    def load(cls, run: Run) -> Self:
        """Return the result of a run's stage.

        Raises:
            StageMissing: the stage is not finished, or an earlier one has been redone since.
            DamagedRun: the manifest can't be used.
        """
        return cls.from_dict(run.manifest(cls.folder_name))

    @staticmethod
    def of(manifest: dict) -> Result:
        """Return a finished stage's manifest as the result of its stage."""
        return RESULTS.get(manifest["stage"], Result).from_dict(manifest)


@dataclass(frozen=True, kw_only=True)
class PhotosResult(Result):
    """What the check leaves.

    verdicts, photos: of every photo, in the same order · folder: the photos', by `Run.place_of` · advice: the coach's,
    in a sentence · left_out: what is in the folder and was not read · coverage, requests, chosen: what the kept photos
    show and lack, and the best of them.
    """

    folder_name = "photos"
    verdicts: tuple[Verdict, ...]
    photos: tuple[Photo, ...]
    folder: str
    advice: str
    left_out: str = ""
    coverage: dict = field(default_factory=dict)
    requests: tuple[dict, ...] = ()
    chosen: dict = field(default_factory=dict)

    @property
    def kept(self) -> list[Verdict]:
        """Return the verdicts on the kept photos."""
        return [verdict for verdict in self.verdicts if verdict.kept]

    @property
    def scenes(self) -> int:
        """Return the number of scenes that the kept photos show; 0 if the check did not count them."""
        return self.coverage.get("moments", 0)


@dataclass(frozen=True, kw_only=True)
class DatasetResult(Result):
    """What preparing leaves.

    digests: sha256 of each photo, by name · held_out: kept photos that are not trained on; none in older runs.
    """

    folder_name = "dataset"
    dataset: Dataset
    digests: dict = field(default_factory=dict)
    held_out: tuple[Name, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LoraResult(Result):
    """What a training leaves."""

    folder_name = "lora"
    lora: Lora


@dataclass(frozen=True, kw_only=True)
class PickedResult(Result):
    """What picking leaves: the candidates, and the chosen one."""

    folder_name = "picked"
    chosen: Pick
    candidates: tuple[Pick, ...]
    threshold: IdentityThreshold | None = stored_as("pass_mark", default=None)


@dataclass(frozen=True, kw_only=True)
class HeadshotsResult(Result):
    """What generating leaves.

    headshots: every attempt · delivered: files of the best, best first · missing: prompts without an accepted
    headshot · causes: why few were accepted, if few were · few_steps: whether the distilled LoRA was used, and why ·
    artefacts_not_rated: why the gate did not look for artefacts, empty if it did.
    """

    folder_name = "headshots"
    headshots: tuple[Headshot, ...]
    delivered: tuple[Name, ...]
    threshold: IdentityThreshold = stored_as("pass_mark")
    missing: tuple[str, ...] = ()
    causes: tuple[dict, ...] = ()
    few_steps: dict = field(default_factory=dict)
    artefacts_not_rated: str = ""

    @property
    def best(self) -> list[Headshot]:
        """Return the delivered headshots, best first."""
        shots = {shot.file: shot for shot in self.headshots}
        return [shots[file] for file in self.delivered]


@dataclass(frozen=True)
class TriedFidelity(Record):
    """A headshot restored with one fidelity. `harm`: codes of what it harmed; `dlib`: None without that recogniser.

    `eyes_lab`, `skin_lab`: CIELAB, `eyes_lab` None if they can't be measured. `texture`: band -> percent.
    `artefacts`: kind -> rating in [0, 1].
    """

    fidelity: float
    harm: tuple[str, ...]
    identity: float
    sharpness: float
    dlib: float | None = None
    eyes_lab: tuple[float, ...] | None = None
    skin_lab: tuple[float, ...] = ()
    texture: dict = field(default_factory=dict)
    artefacts: dict = field(default_factory=dict)


@dataclass(frozen=True)
class RestoredFace(Record):
    """One headshot after restoring: which picture was `kept`, "restored" or "unrestored", and what was measured.

    `why`: the reason for an unrestored one. `fidelity`: of the restored one. `dlib_before`, `dlib_after`: identity by
    the second recogniser. `tried`: the fidelities that were measured. `photo`: of the person, which lent detail to it.
    """

    file: Name
    kept: str
    identity_before: float | None = None
    identity_after: float | None = None
    why: str = ""
    fidelity: float | None = None
    dlib_before: float | None = None
    dlib_after: float | None = None
    sharpness_before: float | None = None
    tried: tuple[TriedFidelity, ...] = ()
    photo: str = ""


@dataclass(frozen=True, kw_only=True)
class RestoredResult(Result):
    """What restoring leaves. `missing`: what was missing to restore faces, and how to get it. `restorer`: its name."""

    folder_name = "restored"
    faces: tuple[RestoredFace, ...] = stored_as("restored")
    missing: tuple[str, ...] = ()
    restorer: str = ""


@dataclass(frozen=True, kw_only=True)
class ReportResult(Result):
    """What evaluating leaves: the measurements, as in report/metrics.json."""

    folder_name = "report"
    metrics: dict


@dataclass(frozen=True, kw_only=True)
class GalleryResult(Result):
    """What the gallery leaves: files only."""

    folder_name = "gallery"


RESULTS: dict[str, type[Result]] = {
    kind.folder_name: kind
    for kind in (PhotosResult, DatasetResult, LoraResult, PickedResult, HeadshotsResult, RestoredResult, ReportResult,
                 GalleryResult)
}  # fmt: skip
"""Stage -> the record of its finished manifest."""


def shape_of(manifest: dict, stage: str) -> dict[str, object]:
    """Return what a stage's manifest must hold, key -> type: required keys, and others if they are there."""
    kind = RESULTS.get(stage, Result) if manifest.get("status") == "done" else Begun
    return kind.shape(manifest)
