"""Restore the faces of a run's headshots, and keep a restored one only where it harms nothing.

CodeFormer is opt-in, because its licence is non-commercial; the embedded base has a restorer of its own. If there is
none, the headshots are copied unchanged, and the manifest lists what is missing and how to get it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from headshotkit.config import GenerateConfig, RestoreConfig
from headshotkit.config.bases import find_base
from headshotkit.core import locks, runtime
from headshotkit.core.errors import BadWeights, BrokenPackage, CannotRestore, NotFinite, NothingToShow
from headshotkit.core.results import HeadshotsResult, PhotosResult, RestoredFace, RestoredResult, TriedFidelity
from headshotkit.core.run import Run, Stage, write_atomic
from headshotkit.faces import recognition
from headshotkit.faces.recognition import Face
from headshotkit.photos.files import png_bytes
from headshotkit.photos.kept import kept_faces
from headshotkit.restoration import embedded
from headshotkit.restoration.background import change_backgrounds
from headshotkit.restoration.codeformer import WEIGHTS_SHA256, CodeFormer, find_codeformer, load_codeformer
from headshotkit.restoration.harm import Known, Look, harms, known_looks, look_at, sharpness_of
from headshotkit.restoration.printing import print_copies, upscaler_digest
from headshotkit.restoration.reference import photo_of
from headshotkit.scoring.identity import held_out_of
from headshotkit.scoring.ranking import after_restoring


@locks.writes("restore")
@runtime.frees_memory
def restore_headshots(run: Run, config: RestoreConfig | None = None) -> dict:
    """Restore the faces of the delivered headshots.

    Writes `restored/`: a PNG a headshot, manifest.json. An interrupted restoration goes on with the next headshot.

    Returns: the manifest. `restored` has a row for each file: what was kept and why, its fidelity, identity by both
        recognisers before and after, and what was measured at each fidelity that was tried: the sharpest first, up
        to the first that harms nothing.
    Raises:
        StageMissing: no headshots have been generated.
        DamagedRun: one is missing or changed.
        CannotRestore: the restorer or the weights that the user chose can't be used; the stage is finished
            nevertheless.
    """
    config = config or RestoreConfig()
    generated = HeadshotsResult.load(run)
    files = list(generated.delivered)
    run.files("headshots", files)
    weights, digest, missing = choose_restorer(run, config)
    inputs = run.inputs_from("headshots") | {"codeformer": digest or "missing"}
    if config.print_px and config.upscaler_weights:
        inputs["upscaler"] = upscaler_digest(config) or "missing"
    stage = run.begin("restored", config, inputs)
    if stage.done:
        return _demand_asked(config, stage.manifest)
    restorer = None
    if weights:
        try:
            restorer, known = open_restorer(run, weights)
        except (BadWeights, BrokenPackage) as error:
            missing = (error.happened.rstrip("."), error.next_step)
    if restorer is None:
        return _demand_asked(config, _copied(run, stage, files, missing, config))
    changes = stage.manifest.setdefault("memory_changes", [])
    there = [row for row in stage.manifest.get("restored", ()) if (stage.folder / row["file"]).is_file()]
    rows = {row["file"]: row for row in there if row["file"] not in stage.spoilt}
    for file in runtime.progress([file for file in files if file not in rows], "restoring faces"):
        row = _restore_one(run.path("headshots") / file, stage.folder / file, restorer, known, config, changes)
        rows[file] = {"file": file, **row}
        stage.manifest["restored"] = [rows[done] for done in files if done in rows]
        stage.note_seconds()
    kept = sum(row["kept"] == "restored" for row in rows.values())
    shots = after_restoring(generated, [RestoredFace.from_dict(row) for row in rows.values()])
    passed = len({shot.prompt_id for shot in shots if shot.accepted})
    manifest = stage.finish(
        f"restored {kept} of {len(files)} faces"
        + (f"; {len(files) - kept} stay as drawn" if kept < len(files) else "")
        + f"; {passed} of {len({shot.prompt_id for shot in shots})} prompts have an accepted headshot now",
        weights={"sha256": digest, "published": digest == WEIGHTS_SHA256},
        restorer=restorer.name,
        **change_backgrounds(stage.folder, files, config),
        **print_copies(run, stage.folder, files, config),
    )
    return _demand_asked(config, manifest)


def open_restorer(run: Run, weights: Path) -> tuple[CodeFormer | embedded.Embedded, Known]:
    """Load a restorer, and measure the person's own photos, with which restored faces are compared.

    Args:
        weights: CodeFormer's file, or the folder of an embedded base's own restorer.
    Raises:
        BadWeights, BrokenPackage: the weights or CodeFormer's package can't be used.
    """
    net = load_codeformer(weights) if weights.is_file() else _load_embedded(weights)
    generated, photos = HeadshotsResult.load(run), list(kept_faces(run, "for the restorer"))
    known = known_looks(photos, generated.threshold.value, GenerateConfig.from_dict(generated.config))
    if weights.is_file():
        return CodeFormer(net), known
    from headshotkit.restoration.embedded_net import person_vector  # not above: it loads torch

    unseen = held_out_of(run)  # what is made is compared with these photos, so nothing of them may go into it
    names = [verdict.photo for verdict in PhotosResult.load(run).kept]
    seen = [n for n, name in enumerate(names) if name not in unseen]
    person = person_vector([photos[n][0] for n in seen], known.embeddings[seen])
    shown = [photo_of(*photos[n], names[n]) for n in seen]
    return embedded.Embedded(net, person, shown, known.photos_eyes), known


def _load_embedded(folder: Path):
    from headshotkit.restoration.embedded_net import load_restorer  # not above: it loads torch

    return load_restorer(folder)


def choose_restorer(run: Run, config: RestoreConfig) -> tuple[Path | None, str, tuple[str, ...]]:
    """Return the weights to restore with and their sha256, or what is missing: (None, "", (what, how, ...)).

    CodeFormer's weights are a file, a base's own restorer is a folder.
    """
    base = HeadshotsResult.load(run).config["base"]
    own = find_base(base).restorer
    folder, digest = (
        embedded.weights_of(runtime.data_path(*own.removeprefix("data:").split("/"))) if own else (None, "")
    )
    match config.restorer:
        case "none":
            return None, "", ("restoring is switched off", "Choose a restorer: --restorer auto")
        case "embedded":
            lacking = (f"base {base!r} has no restorer of its own", "Choose another one: --restorer codeformer")
            return (folder, digest, ()) if folder else (None, "", lacking)
    weights, found, missing = find_codeformer(config)
    if missing and config.restorer == "auto" and folder and not config.codeformer_weights:
        return folder, digest, ()
    return weights, found, missing


def _copied(run: Run, stage: Stage, files: list[str], missing: tuple[str, ...], config: RestoreConfig) -> dict:
    """Finish the stage with the headshots unchanged."""
    for file in files:
        write_atomic(stage.folder / file, (run.path("headshots") / file).read_bytes())
    return stage.finish(
        f"skipped, {len(files)} headshots copied unchanged: {missing[0]}",
        missing=list(missing),
        restored=[{"file": f, "kept": "unrestored"} for f in files],
        **change_backgrounds(stage.folder, files, config),
        **print_copies(run, stage.folder, files, config),
    )


def _demand_asked(config: RestoreConfig, manifest: dict) -> dict:
    """Return the finished stage's manifest, unless what the user chose could not be used.

    Raises:
        CannotRestore: the user's restorer or weights could not be used.
    """
    missing = manifest.get("missing")
    chosen = config.codeformer_weights or config.accept_licence or config.restorer in ("codeformer", "embedded")
    if missing and chosen:
        raise CannotRestore(
            f"no face was restored as asked: {missing[0]}.",
            f"The {len(manifest['restored'])} headshots were copied unchanged, and later stages can use them.",
            "; ".join(missing[1:]),
        )
    if lacking := manifest.get("background_missing"):
        raise CannotRestore(
            f"no background was changed: {lacking[0]}.",
            f"The {len(manifest['background'])} headshots keep theirs, and later stages can use them.",
            lacking[1],
        )
    if lacking := manifest.get("upscaler_missing"):
        raise CannotRestore(
            f"no headshot was enlarged by the network: {lacking[0]}.",
            f"The {len(manifest['print'])} copies for print were enlarged by Lanczos.",
            lacking[1],
        )
    return manifest


def _restore_one(source: Path, target: Path, restorer, known: Known, config: RestoreConfig, changes: list) -> dict:
    """Restore one headshot, write what is kept, and return its row of the manifest.

    Args:
        changes: of the memory; when a GPU's gives out, the rest is restored on the CPU, and this says why.
    """
    with Image.open(source, formats=("PNG",)) as picture:
        original, texts = np.asarray(picture.convert("RGB")), dict(getattr(picture, "text", {}))
    device = "cpu" if changes else runtime.choose_device()[0]
    work = partial(best_of, original, restorer, known, config)
    made, said = runtime.within_memory(lambda: (restorer.to(device), work())[1])
    if said:
        if not changes:
            changes.append({"device": "cpu", "why": said})
            runtime.say(f"restoration continues on the CPU: {said}")
        restorer.to("cpu")
        made = work()
    result, row = made
    if row["kept"] == "restored":
        lent = ", with detail of a photo" if "photo" in row else ""
        texts["Restored"] = f"{restorer.name}, fidelity {row['fidelity']}{lent}"
    elif result.shape != original.shape:
        texts["Enlarged"] = f"bicubic, to {result.shape[1]} px"
    changed = result is not original
    write_atomic(target, png_bytes(Image.fromarray(result), **texts) if changed else source.read_bytes())
    return row


def best_of(image: np.ndarray, restorer, known: Known, config: RestoreConfig) -> tuple[np.ndarray, dict]:
    """Return the sharpest restored picture that harms nothing, or the unrestored one, and a row of facts.

    A restorer that enlarges also enlarges what it does not restore.

    Args:
        image: RGB, uint8, shape (H, W, 3).
        restorer: `CodeFormer` or `Embedded`.
    """
    if isinstance(restorer, embedded.Embedded) and image.shape[:2] != (embedded.GIVEN_PX,) * 2:
        return image, {"kept": "unrestored", "why": f"the restorer takes {embedded.GIVEN_PX} px squares"}
    faces = _of_the_person(image, known)
    unrestored = embedded.enlarged(image) if isinstance(restorer, embedded.Embedded) else image
    if not faces:
        return unrestored, {"kept": "unrestored", "why": "no face is the person's"}
    before = look_at(image, faces[0], known)
    row = {"kept": "unrestored", **_identities("before", before), "sharpness_before": round(before.sharpness, 2)}
    tried, best = [], None
    try:
        for attempt in attempts(image, faces, before, restorer, known, config):
            tried.append(attempt.to_dict())
            if not attempt.harm:
                best = attempt
                break
    except NotFinite as error:
        return unrestored, row | {"why": error.happened}
    if best is None:
        return unrestored, row | {"why": "every fidelity that was tried harms the face", "tried": tried}
    row |= {"kept": "restored", "fidelity": best.fidelity, **_identities("after", best.look), "tried": tried}
    if isinstance(restorer, embedded.Embedded):
        row["photo"] = restorer.photo_for(image, faces[0]).name
    return best.picture, row


@dataclass(frozen=True)
class Attempt:
    """A headshot restored with one fidelity. harm: the codes of `harms`; empty: it may be kept."""

    fidelity: float
    picture: np.ndarray
    look: Look
    harm: tuple[str, ...]

    def to_dict(self) -> dict:
        """Return the measures as JSON types, for the manifest."""
        look = self.look
        return TriedFidelity(
            self.fidelity, self.harm, round(look.identity["arcface"], 4), round(look.sharpness, 2),
            round(look.identity["dlib"], 4) if "dlib" in look.identity else None,
            None if look.eyes is None else tuple(round(float(v), 1) for v in look.eyes),
            tuple(round(float(v), 1) for v in look.tone),
            {band: round(energy, 3) for band, energy in look.texture.items()},
            look.sound.artefacts,
        ).to_dict()  # fmt: skip


def attempts(
    image: np.ndarray, faces: list[Face], before: Look, restorer, known: Known, config: RestoreConfig
) -> Iterator[Attempt]:
    """Yield a headshot restored with each fidelity of the settings, the sharpest first.

    Sharpness costs little to measure and harm a lot, so who takes the first harmless one saves the rest.

    Args:
        image: RGB, uint8, shape (H, W, 3). faces: the person's; the first is measured. before: of the first one.
    """
    restored, made = restorer.of(image, faces), []
    for fidelity in config.fidelities if config.fidelity == "auto" else (config.fidelity,):
        picture = restored(fidelity)
        scale = picture.shape[1] / image.shape[1]
        face = replace(faces[0], box=faces[0].box * scale, points=faces[0].points * scale)
        made.append((sharpness_of(picture, face), fidelity, picture, face))
    for _, fidelity, picture, face in sorted(made, key=lambda one: -one[0]):
        look = look_at(picture, face, known)
        yield Attempt(fidelity, picture, look, harms(before, look, known, config))


def sweep(run: Run, file: str = "", config: RestoreConfig | None = None) -> tuple[np.ndarray, list[Attempt]]:
    """Return a delivered headshot of a run as it was drawn, and restored with each fidelity, for a look at them.

    Args:
        file: its name; empty: the first one in which a face was restored, or the first.
    Raises:
        StageMissing: the headshots have not been restored.
        NothingToShow: there is no restorer, or no face of the person in that headshot.
    """
    result = RestoredResult.load(run)
    config = config or RestoreConfig.from_dict(result.config)
    weights, _, missing = choose_restorer(run, config)
    if not weights or not result.faces:
        missing = missing or ("no headshot was delivered",)
        raise NothingToShow(f"no face was restored: {missing[0]}.", "", "; ".join(missing[1:]))
    restorer, known = open_restorer(run, weights)
    file = file or min(result.faces, key=lambda face: face.kept != "restored").file
    with Image.open(run.path("headshots") / file, formats=("PNG",)) as picture:
        image = np.asarray(picture.convert("RGB"))
    faces = _of_the_person(image, known)
    if not faces:
        raise NothingToShow(f"{file} holds no face of the person.", "", "Name another headshot.")
    all_of_them = config.replace(fidelity="auto")
    tried = attempts(image, faces, look_at(image, faces[0], known), restorer, known, all_of_them)
    return image, sorted(tried, key=lambda attempt: attempt.fidelity)


def _of_the_person(image: np.ndarray, known: Known) -> list[Face]:
    """Return the faces that are the person: the only one, or of several those that reach the identity threshold."""
    found = recognition.detect_faces(image)
    if len(found) < 2:
        return found
    model = recognition.load_recogniser("arcface")
    alike = {
        n: float(model.similarity(model.embed(image, f), known.centres["arcface"])[0]) for n, f in enumerate(found)
    }
    return [found[n] for n in sorted(alike, key=alike.get, reverse=True) if alike[n] >= known.threshold]


def _identities(when: str, look: Look) -> dict[str, float]:
    """Return identity by recogniser as a row's facts: identity_before, dlib_before."""
    return {f"{'identity' if n == 'arcface' else n}_{when}": round(value, 4) for n, value in look.identity.items()}
