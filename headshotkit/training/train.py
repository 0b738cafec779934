"""Run the training loop: noise, loss, step, save, resume. It calls a `Family` and holds no diffusion code itself.

All randomness of a step comes from (seed, step), so on a CPU a killed training resumes to the same LoRA.
On CUDA it does so to rounding: the backward of attention and of upsampling adds in no fixed order there.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import time
import warnings
from collections.abc import Iterator

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from headshotkit.config import TrainConfig
from headshotkit.core import hub, locks, runtime
from headshotkit.core.errors import DiskFull, NotFinite, OutOfMemory, RunFolderError
from headshotkit.core.finite import all_finite
from headshotkit.core.records import Dataset, Lora
from headshotkit.core.run import Run, Stage, discard, write_json
from headshotkit.dataset.captions import with_edits
from headshotkit.families import CHANGES, Condition, load_family, weighing
from headshotkit.families.methods import Method, load_method
from headshotkit.planning.forecast import expect_cost
from headshotkit.planning.schedule import MAY_CHANGE, Controller, Pacing, changing
from headshotkit.training.checkpoints import (
    Checkpoints,
    Interruption,
    random_states,
    set_random_states,
)
from headshotkit.training.examples import CACHE_FILE, Examples, cached_examples
from headshotkit.training.optimizers import learning_rate_at, make_optimizer
from headshotkit.training.snapshots import Snapshots, snapshot_steps
from headshotkit.training.trained import write_trained

LOSSES_FILE = "losses.json"
MAX_GRAD_NORM = 1.0
TIMED_STEPS = 20
"""Steps after which the remaining time is estimated."""
BAD_IN_A_ROW = 10
"""Consecutive steps without finite numbers that end a training; float16's loss scaling may cause a few at the start."""
SMALLER_SCALE = 1 / 16
"""Factor on float16's loss scale after such steps."""
STATE = ("lora", "average", "optimizer", "scaler", "random", "losses")
"""Keys that a checkpoint must hold to resume."""
STEP, EPOCH = 1, 2
"""Indices of the seed: one for all randomness in a step, one for the order of an epoch."""


@locks.writes("train")
@runtime.frees_memory
def train_lora(run: Run, config: TrainConfig, controller: Controller | None = None) -> Lora:
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
    dataset = with_edits(run.path("dataset"), Dataset.from_dict(run.manifest("dataset")["dataset"]))
    run.files("dataset", [*(photo.file for photo in dataset.photos), *dataset.class_images])
    stage = run.begin("lora", config, run.inputs_from("dataset"), seed=config.seed)
    if stage.done:
        _tidy(stage)
        return Lora.from_dict(stage.manifest["lora"])
    family = load_family(config.base)
    family.changes = stage.manifest.setdefault(CHANGES, [])
    pacing = Pacing(config, dataset.size_px, stage.manifest.setdefault("changes", []))
    if controller:
        stage.manifest["planned"] = list(MAY_CHANGE)
        stage.note_seconds()
    method = load_method(family, config, dataset)
    sizes = pacing.sizes_px(controller)
    person, class_pictures, cached = cached_examples(family, run.path("dataset"), dataset, stage.folder, sizes)
    method.free_encoders()
    loop = _Loop(method, pacing, stage, person, class_pictures, method.conditions(dataset.captions, cached))
    loop.run(controller)
    steps = len(loop.losses)
    lora = write_trained(method, loop.checkpoints, stage, dataset, steps)
    write_json(stage.folder / LOSSES_FILE, {"loss": [round(x, 5) if math.isfinite(x) else None for x in loop.losses]})
    skipped = f", {len(loop.skipped)} of them skipped, because their numbers were not finite" if loop.skipped else ""
    stage.finish(
        f"{method.title} after {steps} steps{skipped}, loss {loop.recent_loss(50):.3f}",
        lora=lora.to_dict(),
        optimizer=loop.optimizer_reason,
        skipped_steps=[step + 1 for step in loop.skipped],
        dtype=family.dtype_reason,
        weights=hub.commits_of(*family.base.sources),
    )
    _tidy(stage)  # only now: a kill before would lose the whole training
    return lora


def _tidy(stage: Stage) -> None:
    """Remove what only an unfinished training needs."""
    Checkpoints(stage.folder, 1).clear()
    with contextlib.suppress(OSError):
        discard(stage.folder / CACHE_FILE)


class _Loop:
    """The loop's state: trained parameters, their average, optimizer, scaler, losses; what a checkpoint holds."""

    def __init__(self, method: Method, pacing: Pacing, stage: Stage, person: dict[int, Examples],
                 class_pictures: dict[int, Examples], conditions: Condition) -> None:  # fmt: skip
        self.method, self.family, self.pacing, self.stage = method, method.family, pacing, stage
        self.config = config = pacing.begun
        self.person, self.class_pictures, self.conditions = person, class_pictures, conditions
        groups = method.add()
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.average = [p.detach().clone() for p in self.parameters] if config.ema else []
        prior = any(examples.sizes for examples in class_pictures.values())
        begun_with = stage.manifest.get("optimizer", "").partition(":")[0]
        self.optimizer, self.optimizer_reason = make_optimizer(groups, config, self.family.device, prior, begun_with)
        stage.manifest["optimizer"] = self.optimizer_reason
        self._tell_cost(groups)
        self.scaler = self._new_scaler()
        self.checkpoints = Checkpoints(stage.folder, config.keep_checkpoints)
        self.snapshots = Snapshots(stage.folder, config, self.family, self.checkpoints.write)
        self.losses: list[float] = []
        self.skipped: list[int] = []  # steps (from 0) whose numbers were not finite
        self.saved_s = time.monotonic()
        self.updating = False

    def _tell_cost(self, groups: list[dict]) -> None:
        """Show the training's expected time and memory, and note them in the manifest."""
        count = len(next(iter(self.class_pictures.values())).sizes)
        cost = expect_cost(self.method, groups, self.optimizer_name, runtime.choose_device(), count)
        self.stage.manifest["cost"] = cost.to_dict()
        self.stage.note_seconds()
        runtime.tell(cost.line())

    def run(self, controller: Controller | None = None) -> None:
        """Run all remaining steps; the family then holds the LoRA to save.

        Raises:
            NotEnoughMemory: a step needs more of the host's memory than is available.
        """
        self._resume()
        if self.family.device == "cpu":
            losses = 2 if any(examples.sizes for examples in self.class_pictures.values()) else 1
            family, itemsize = self.family.base.family, self.family.dtype.itemsize
            weighing.demand_room_for_step(self.settings, family, max(self.person), itemsize, losses)
        if controller:
            controller.start_training(changing(self.settings), len(self.losses))
        elif not self.losses:
            self._begin_within_memory()
        with Interruption() as interruption, runtime.progress((), "training", self.settings.steps) as bar:
            if not self.losses:
                self._save(must=controller is not None)  # so that it can go back
            if interruption.signal is not None:
                interruption.pass_on()
            marks: list[float] = []
            while (step := len(self.losses)) < self.settings.steps:
                marks.append(time.monotonic())
                if len(marks) == TIMED_STEPS + 1 and not controller:  # a controller shows its own plan
                    runtime.tell(self._time_left(marks))
                problem = self._try_step(step)
                if problem:
                    self._go_on_cheaper(step, problem, controller)
                    continue
                if reason := self._not_finite(step):
                    self._go_back(step, reason, controller)
                    continue
                self._follow(step)
                with self._going_on(f"the snapshot after step {step + 1}"):
                    self.snapshots.follow(step + 1, self.settings.steps, self.parameters, self.average)
                if controller:
                    self._keep_time(controller)
                self._show(bar)
                if interruption.signal is not None or self._is_due(step + 1):
                    self._save(must=interruption.signal is not None)
                if interruption.signal is not None:
                    interruption.pass_on()
        for parameter, average in zip(self.parameters, self.average, strict=False):
            parameter.data.copy_(average)

    def _time_left(self, marks: list[float]) -> str:
        """Return a sentence with the time at which the training ends, from the duration of its latest steps.

        Args:
            marks: start of each of these steps, seconds.
        """
        seconds = statistics.median(b - a for a, b in itertools.pairwise(marks))
        done, here = len(self.losses), self.pacing.px_at(len(self.losses) - 1)
        left = sum((self.pacing.px_at(step) / here) ** 2 for step in range(done, self.settings.steps))
        minutes = left * seconds / 60
        end = runtime.clock_in(minutes)
        return (
            f"A step takes {seconds:.2f} s: {minutes:.1f} minutes left for {self.settings.steps - done} steps, "
            f"until {end}."
        )

    def recent_loss(self, count: int) -> float:
        """Return the mean of the last `count` losses that are finite; NaN if none is."""
        recent = [loss for loss in self.losses[-count:] if math.isfinite(loss)]
        return sum(recent) / len(recent) if recent else math.nan

    def _new_scaler(self) -> torch.amp.GradScaler:
        """Return a scaler: float16 gradients would underflow without it; for other dtypes it does nothing."""
        return torch.amp.GradScaler(self.family.device, enabled=self.family.dtype == torch.float16)

    @property
    def optimizer_name(self) -> str:
        """Return the optimizer's name, such as "adamw8bit"; "auto" resolves differently on other machines."""
        return self.optimizer_reason.partition(":")[0]

    @property
    def settings(self) -> TrainConfig:
        """Return the settings of the next step."""
        return self.pacing.at(len(self.losses))

    def _show(self, bar) -> None:
        """Show step, loss and GiB on the progress bar."""
        memory = {f"{place}_gib": size for place, size in runtime.peak_memory_gib().items()}
        if bar.total != self.settings.steps:
            bar.reset(self.settings.steps)  # a notebook's bar does not follow its `total`
            bar.initial = len(self.losses)
        bar.n = len(self.losses)
        bar.set_postfix(loss=f"{self.recent_loss(20):.3f}", **memory)

    def _try_step(self, step: int) -> str:
        """Make one step; return the error's first line if memory runs out, else ""."""
        loss, problem = runtime.within_memory(lambda: self._step(step))
        if not problem:
            self.losses.append(loss)
        return problem

    def _begin_within_memory(self) -> None:
        """Begin with checkpointing if a step without it is expected to need more of the GPU than is available."""
        peak, usable = self.stage.manifest["cost"]["peak_gib"], runtime.usable_gpu_gib()
        if peak and usable and peak > usable and not self.settings.checkpointing:
            why = f"without checkpointing a step needs {peak:.1f} GiB, {usable:.1f} are available"
            self._change(changing(self.settings) | {"checkpointing": True}, why)
            runtime.say(f"training with gradient checkpointing: {why}")

    def _go_on_cheaper(self, step: int, problem: str, controller: Controller | None) -> None:
        """Resume from the last checkpoint with settings that need less memory, and note them in the manifest.

        That checkpoint is of the step before this one, unless memory ran out during the update itself. Without a
        controller it is checkpointing first, which changes nothing of the result, then half of the batch.

        Raises:
            OutOfMemory: there is no controller, and nothing cheaper.
            NotEnoughMemory: the controller has no cheaper settings.
        """
        self.optimizer.zero_grad(set_to_none=True)
        runtime.free_memory()
        half_updated = self.updating
        if not half_updated:
            self._save()
        px, settings = self.pacing.px_at(step), self.settings
        self.scaler = self._new_scaler()  # the old one may be in the middle of an update
        if not self._resume() and half_updated:
            raise OutOfMemory(
                f"step {step + 1} at {px} px ran out of memory during its update, and there is no checkpoint to "
                "return to.",
                problem,
                "Free space where the run is, so that checkpoints can be written, and give the same command again.",
            )
        if controller:
            plan = controller.out_of_memory("train", steps_done=len(self.losses))
            self._change(plan.training, controller.why)
            controller.start_training(changing(self.settings), len(self.losses))
            return
        if settings.checkpointing and settings.batch == 1:
            raise OutOfMemory(
                f"step {step + 1} at {px} px, batch 1, with checkpointing, ran out of memory.",
                problem,
                "Close other programs that use the memory, or train at smaller sizes (--schedule 768 1000), with a "
                f"smaller --rank, or on a larger GPU. The checkpoint of step {len(self.losses)} is kept.",
            )
        cheaper = {"batch": settings.batch // 2} if settings.checkpointing else {"checkpointing": True}
        why = f"out of memory in step {step + 1}: {problem}"
        self._change(changing(settings) | cheaper, why)
        words = ", ".join(f"{name} {value}" for name, value in cheaper.items())
        runtime.say(f"training continues from step {len(self.losses)} with {words}: {why}")

    def _not_finite(self, step: int) -> str:
        """Return why the training can't go on after a step because numbers are not finite; else "".

        Weights are checked when they are about to be written, and so after the last step.
        """
        done, streak, at_end = step + 1, self._streak, step + 1 == self.settings.steps
        if streak >= BAD_IN_A_ROW or (at_end and streak == done and not math.isfinite(self.losses[-1])):
            return f"{streak} steps in a row gave no finite loss and gradients, the last loss {self.losses[-1]}"
        snapshot = done in snapshot_steps(self.settings.steps, self.config.snapshots)
        if not (self._is_due(done) or snapshot or at_end):
            return ""
        return "" if all_finite([*self.parameters, *self.average]) else "the trained weights are not finite"

    @property
    def _streak(self) -> int:
        """Return the number of latest consecutive steps without finite numbers."""
        bad, step = set(self.skipped), len(self.losses) - 1
        while step in bad:
            step -= 1
        return len(self.losses) - 1 - step

    def _go_back(self, step: int, reason: str, controller: Controller | None) -> None:
        """Go back to the last checkpoint, once in a training; it was saved while all numbers were finite.

        Raises:
            NotFinite: it has gone back before.
        """
        went_back = self.stage.manifest.setdefault("went_back", [])
        if went_back:
            raise NotFinite(
                f"at step {step + 1} {reason}.",
                f"It happened again after a return to step {went_back[0]['to']}. The usual cause is a learning rate "
                "that "
                f"is too high (now {self.settings.learning_rate:g}); otherwise the base's weights are damaged.",
                "Train again with a lower TrainConfig.learning_rate, for example half of it. The last checkpoint, in "
                f"{self.checkpoints.folder}, is kept.",
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler = self._new_scaler()
        if not self._resume():
            raise NotFinite(
                f"at step {step + 1} {reason}.",
                "There is no checkpoint to return to: none could be written.",
                "Free space where the run is, then train with a lower TrainConfig.learning_rate, for example half.",
            )
        went_back.append({"from": step + 1, "to": len(self.losses), "why": reason})
        self._lower_the_scale()
        self.stage.note_seconds()
        warnings.warn(f"at step {step + 1} {reason}. Training continues from step {len(self.losses)}.", stacklevel=4)
        if controller:
            controller.start_training(changing(self.settings), len(self.losses))

    def _lower_the_scale(self) -> None:
        """Lower float16's loss scale after going back to this very step; it grows again by itself."""
        here = [note for note in self.stage.manifest.get("went_back", []) if note["to"] == len(self.losses)]
        if here and self.scaler.is_enabled():
            state = self.scaler.state_dict()
            self.scaler.load_state_dict(state | {"scale": state["scale"] * SMALLER_SCALE})

    def _keep_time(self, controller: Controller) -> None:
        """Report a step to the controller; if the plan changes, apply it."""
        before = controller.plan.training
        after = controller.time_step().training
        if after != before:
            self._change(after, controller.why)

    def _change(self, settings: dict, why: str) -> None:
        """Use other settings from the next step on."""
        self.pacing.change(len(self.losses), settings, why)
        with self._going_on("the manifest"):
            self.stage.note_seconds()
        if settings["checkpointing"]:
            self.family.use_checkpointing()

    def _is_due(self, done: int) -> bool:
        """Return whether a checkpoint is due after `done` steps; after the last step the LoRA itself is written."""
        minutes, limit = (time.monotonic() - self.saved_s) / 60, self.config.checkpoint_every_minutes
        late = 0 < limit <= minutes
        return done < self.settings.steps and (late or done % self.config.checkpoint_every_steps == 0)

    def _step(self, step: int) -> float:
        """Make one optimizer update; return the loss."""
        settings, px = self.pacing.at(step), self.pacing.px_at(step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, settings) * group.get("factor", 1.0)
        generator = torch.Generator().manual_seed(runtime.seed_for(self.config.seed, STEP, step))
        loss = self._loss(self.person[px], self._order(step), generator, self.config.caption_dropout)
        if count := len(self.class_pictures[px].sizes):
            chosen = torch.randint(count, (settings.batch,), generator=generator).tolist()
            loss = loss + self.config.prior_weight * self._loss(self.class_pictures[px], chosen, generator, 0.0)
        self.scaler.scale(loss).backward()
        self.updating = True
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRAD_NORM)
        finite = bool((norm + loss.detach()).isfinite())
        if finite or self.scaler.is_enabled():  # a scaler skips such a step, and lowers its scale
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if not finite:
            self.skipped.append(step)
        self.updating = False
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def _loss(self, examples: Examples, chosen: list[int], generator: torch.Generator, dropout: float) -> torch.Tensor:
        """Return the mean loss over the chosen pictures; some captions are replaced by the empty one."""
        empty = self.conditions.count - 1
        dropped = torch.rand(len(chosen), generator=generator) < dropout
        captions = [empty if d else examples.caption_ids[i] for i, d in zip(chosen, dropped, strict=True)]
        sizes = [examples.sizes[i] for i in chosen]
        weights = examples.weights(chosen, self.config.face_weight)
        condition = self.conditions.pick(captions)
        return self.family.loss(examples.latents[chosen], condition, sizes, self.config, generator, weights).mean()

    def _order(self, step: int) -> list[int]:
        """Return the indices of a step's pictures: each picture once an epoch, shuffled anew every epoch."""
        n, chosen = len(self.person[self.pacing.px_at(step)].sizes), []
        for place in range(self.pacing.pictures_before(step), self.pacing.pictures_before(step + 1)):
            epoch, index = divmod(place, n)
            seed = runtime.seed_for(self.config.seed, EPOCH, epoch)
            chosen.append(int(torch.randperm(n, generator=torch.Generator().manual_seed(seed))[index]))
        return chosen

    def _follow(self, step: int) -> None:
        """Update the LoRA's average; faster at first, so that the first steps soon count for little."""
        if self.average:
            decay = min(self.config.ema, (1 + step) / (10 + step))
            get_ema_multi_avg_fn(decay)(self.average, [p.detach() for p in self.parameters], step)

    @contextlib.contextmanager
    def _going_on(self, what: str) -> Iterator[None]:
        """Go on training if an optional file can't be written; report it and note it in the manifest."""
        try:
            yield
        except (DiskFull, RunFolderError) as error:
            self.stage.manifest.setdefault("not_written", []).append(f"{what}: {error.happened}")
            runtime.say(f"{what} can't be written; the training continues.\n{error}")

    def _save(self, must: bool = False) -> None:
        """Save a checkpoint of everything that a step changes; the number of steps is the sampler's position.

        Nothing is saved if the latest step or the weights are not finite: it could not be resumed from. If a checkpoint
        can't be written, older ones stay, and the next one is tried when it is due.

        Raises:
            DiskFull, RunFolderError: it can't be written, and `must` is set, because the training ends with it.
        """
        if self._streak or not all_finite([*self.parameters, *self.average]):
            return
        state = {
            "lora": self.method.state(),
            "average": [tensor.cpu() for tensor in self.average],
            "optimizer": self.optimizer.state_dict(),
            "optimizer_name": self.optimizer_name,
            "scaler": self.scaler.state_dict(),
            "random": random_states(),
            "losses": self.losses,
            "skipped": self.skipped,
            "fingerprint": self.stage.manifest["fingerprint"],
        }
        self.saved_s = time.monotonic()
        with contextlib.nullcontext() if must else self._going_on(f"the checkpoint of step {len(self.losses)}"):
            self.checkpoints.save(len(self.losses), state)
            self.stage.note_seconds()

    def _resume(self) -> bool:
        """Resume from the newest good checkpoint and return whether there is one; report and note damaged ones."""
        state, problems = self.checkpoints.newest(STATE, fingerprint=self.stage.manifest["fingerprint"])
        self.updating = False
        done = len(state["losses"]) if state else 0
        if problems:
            noted = self.stage.manifest.setdefault("damaged_checkpoints", [])
            noted += [f"{problem}; continued from step {done}" for problem in problems]
            self.stage.note_seconds()
            warnings.warn(f"damaged checkpoint {problems[0]}. Training continues from step {done}.", stacklevel=5)
        if self.pacing.at(done).checkpointing:
            self.family.use_checkpointing()
        if state is None:
            return False
        self.method.load_state(state["lora"])
        for average, saved in zip(self.average, state["average"], strict=True):
            average.copy_(saved)
        self._resume_optimizer(state, done)
        if state["scaler"]:  # empty if not trained in float16; this machine's dtype may differ
            self.scaler.load_state_dict(state["scaler"])
        set_random_states(state["random"])
        self.losses, self.skipped = list(state["losses"]), list(state.get("skipped", []))
        self._lower_the_scale()
        return True

    def _resume_optimizer(self, state: dict, done: int) -> None:
        """Load the optimizer's state; another optimizer, on another machine or installation, can't use it."""
        before = state.get("optimizer_name", self.optimizer_name)
        if before == self.optimizer_name:
            self.optimizer.load_state_dict(state["optimizer"])
            return
        self.optimizer.state.clear()  # incomplete if memory ran out during its first update
        words = f"from step {done} on, {self.optimizer_name} replaces {before}, whose averages are lost"
        noted = self.stage.manifest.setdefault("other_optimizers", [])
        if words not in noted:
            noted.append(words)
            self.stage.note_seconds()
            warnings.warn(f"{words} ({self.optimizer_reason}).", stacklevel=6)
