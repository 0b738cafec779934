"""Train the person: prepare, then step by step (`step.train_step`), then write the result.

This room holds no diffusion code: a `Family` adds the noise and predicts.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

from headshotkit.config import TrainConfig
from headshotkit.core import hub, locks, runtime
from headshotkit.core.records import Lora
from headshotkit.core.results import DatasetResult, LoraResult
from headshotkit.core.run import Run, Stage, discard, write_json
from headshotkit.dataset.captions import with_edits
from headshotkit.families import CHANGES, load_family
from headshotkit.families.methods import load_method
from headshotkit.planning.schedule import MAY_CHANGE, Controller, Pacing
from headshotkit.training.checkpoints import Checkpoints, Interruption
from headshotkit.training.examples import CACHE_FILE, TrainingSet, cached_examples
from headshotkit.training.onlookers import Onlooker, on_progress_bar, tell_time_left
from headshotkit.training.recovery import Recovery
from headshotkit.training.snapshots import Snapshots
from headshotkit.training.state import TrainState
from headshotkit.training.step import train_step
from headshotkit.training.trained import write_trained

LOSSES_FILE = "losses.json"


@locks.writes("train")
@runtime.frees_memory
def train_lora(
    run: Run, config: TrainConfig, controller: Controller | None = None, on_step: Onlooker | None = None
) -> Lora:
    """Train the person on the run's dataset by the config's method, or resume after an interruption.

    Writes `lora/`: person.safetensors (diffusers' naming, with metadata) or what else the method leaves, losses.json,
    manifest.json. While it works, `lora/` also holds checkpoints; Ctrl-C and SIGTERM take effect after the step's end,
    when it has been saved.

    If memory runs out, it resumes from its last checkpoint with gradient checkpointing, then with half of the batch,
    or as the controller decides. A step whose loss or gradients are not finite changes nothing; after ten in a row
    it goes back once to the last checkpoint before them. The manifest's `changes`, `went_back` and `skipped_steps` list
    these.

    Args:
        controller: may change the settings of steps during the training, for time or memory; each change is in the
            manifest, and an interrupted training resumes exactly.
        on_step: is called with the `TrainState` after each step; it changes nothing there.
    Raises:
        StageMissing: the dataset has not been built.
        DamagedRun: a training picture, or what was trained before, is missing or changed.
        BadConfig: the base's family does not support the method.
        BaseUnavailable: the base's weights are not available.
        OutOfMemory, NotEnoughMemory: a step needs more memory than there is, and nothing cheaper is left.
        NotFinite: ten steps in a row gave no finite numbers, twice, or the weights are not finite.
        DiskFull, RunFolderError: the result can't be written; the last checkpoint stays. A checkpoint that can't be
            written stops nothing: it is reported, noted in the manifest, and tried again when the next is due.
        KeyboardInterrupt: Ctrl-C; the same call resumes.
    """
    dataset = with_edits(run.path("dataset"), DatasetResult.load(run).dataset)
    run.files("dataset", [*(photo.file for photo in dataset.photos), *dataset.class_images])
    stage = run.begin("lora", config, run.inputs_from("dataset"), seed=config.seed)
    if stage.done:
        _tidy(stage)
        return LoraResult.from_dict(stage.manifest).lora
    family = load_family(config.base)
    family.changes = stage.manifest.setdefault(CHANGES, [])
    pacing = Pacing(config, dataset.size_px, stage.manifest.setdefault("changes", []))
    if controller:
        stage.manifest["planned"] = list(MAY_CHANGE)
        stage.note_seconds()
    method = load_method(family, config, dataset)
    cached = cached_examples(family, run.path("dataset"), dataset, stage.folder, pacing.sizes_px(controller))
    method.free_encoders()
    data = cached._replace(conditions=method.conditions(dataset.captions, cached.conditions))
    begun_with = stage.manifest.get("optimizer", "").partition(":")[0]
    state = TrainState.begin(method, pacing.begun, bool(data.class_count), begun_with)
    recovery = Recovery(state, pacing, stage, controller)
    recovery.begin(data)
    make_steps(state, data, recovery, [on_step] if on_step else [])
    lora = write_trained(method, recovery.checkpoints, stage, dataset, state.step)
    losses = [round(loss, 5) if math.isfinite(loss) else None for loss in state.losses]
    write_json(stage.folder / LOSSES_FILE, {"loss": losses})
    skipped = f", {len(state.skipped)} of them skipped, because their numbers were not finite" if state.skipped else ""
    stage.finish(
        f"{method.title} after {state.step} steps{skipped}, loss {state.recent_loss(50):.3f}",
        lora=lora.to_dict(),
        optimizer=state.optimizer_reason,
        skipped_steps=[step + 1 for step in state.skipped],
        dtype=family.dtype_reason,
        weights=hub.commits_of(*family.base.sources),
    )
    _tidy(stage)  # only now: a kill before would lose the whole training
    return lora


def make_steps(state: TrainState, data: TrainingSet, recovery: Recovery, onlookers: list[Onlooker]) -> None:
    """Make all remaining steps; the base then holds the LoRA to save.

    Args:
        recovery: wraps each step, for memory, finite numbers and time.
        onlookers: are called with the state after each step.
    Raises:
        OutOfMemory, NotEnoughMemory, NotFinite: as `Recovery.attempt`.
        KeyboardInterrupt: Ctrl-C, after a checkpoint.
    """
    pacing = recovery.pacing
    snapshots = Snapshots(recovery.stage.folder, pacing.begun, recovery.checkpoints.write)
    with Interruption() as interruption, runtime.progress((), "training", recovery.settings.steps) as bar:
        onlookers = [on_progress_bar(bar, pacing), *onlookers]
        if not recovery.controller:  # which shows its own plan
            onlookers.append(tell_time_left(pacing))
        if not state.losses:
            recovery.save(must=recovery.controller is not None)  # so that it can go back
        interruption.pass_on()
        for step in remaining_steps(state, pacing):
            if not recovery.attempt(lambda: train_step(state, data, pacing)):
                continue
            with recovery.optional(f"the snapshot after step {step + 1}"):
                snapshots.follow(state, recovery.settings.steps)
            recovery.keep_time()
            for onlooker in onlookers:
                onlooker(state)
            if interruption.signal is not None or recovery.is_due:
                recovery.save(must=interruption.signal is not None)
            interruption.pass_on()
    state.use_average()


def remaining_steps(state: TrainState, pacing: Pacing) -> Iterator[int]:
    """Yield each step to make next, from 0, until all are done; after a return to a checkpoint those from there on."""
    while state.step < pacing.at(state.step).steps:
        yield state.step


def _tidy(stage: Stage) -> None:
    """Remove what only an unfinished training needs."""
    Checkpoints(stage.folder, 1).clear()
    with contextlib.suppress(OSError):
        discard(stage.folder / CACHE_FILE)
