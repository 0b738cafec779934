"""Keep a training going: save and resume it, make steps cheaper, go back from numbers that are not finite, keep time.

If memory runs out, it continues from its last checkpoint with gradient checkpointing, then with half of the batch, or
as the controller decides.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator

from headshotkit.config import TrainConfig
from headshotkit.core import runtime
from headshotkit.core.errors import DiskFull, NotFinite, OutOfMemory, RunFolderError
from headshotkit.core.finite import all_finite
from headshotkit.core.run import Stage
from headshotkit.families import weighing
from headshotkit.planning.forecast import expect_cost
from headshotkit.planning.schedule import Controller, Pacing, changing
from headshotkit.training.checkpoints import Checkpoints
from headshotkit.training.examples import TrainingSet
from headshotkit.training.snapshots import snapshot_steps
from headshotkit.training.state import TrainState

BAD_IN_A_ROW = 10
"""Consecutive steps without finite numbers that end a training; float16's loss scaling may cause a few at the start."""
SMALLER_SCALE = 1 / 16
"""Factor on float16's loss scale after such steps."""
NEEDED = ("lora", "average", "optimizer", "scaler", "random", "losses")
"""Keys that a checkpoint must hold to resume."""


class Recovery:
    """What keeps one training going.

    Args:
        state: of the training; `resume` and the returns to a checkpoint load it.
        pacing: its settings, step by step; cheaper ones are put there.
        stage: the training's; its manifest notes what happened.
        controller: decides about settings, for time or memory; None without a time limit.
    """

    def __init__(self, state: TrainState, pacing: Pacing, stage: Stage, controller: Controller | None) -> None:
        self.state, self.pacing, self.stage, self.controller = state, pacing, stage, controller
        self.checkpoints = Checkpoints(stage.folder, pacing.begun.keep_checkpoints)
        self.saved_s = time.monotonic()

    @property
    def settings(self) -> TrainConfig:
        """Return the settings of the next step."""
        return self.pacing.at(self.state.step)

    def begin(self, data: TrainingSet) -> None:
        """Tell what the training is expected to cost, resume it, and see that a step fits into the memory.

        If a step is expected to need more of the GPU than is available, the training begins with checkpointing.

        Raises:
            NotEnoughMemory: a step needs more of the host's memory than is available.
        """
        state, stage, family = self.state, self.stage, self.state.family
        groups, device = state.optimizer.param_groups, runtime.choose_device()
        cost = expect_cost(state.method, groups, state.optimizer_name, device, data.class_count)
        stage.manifest |= {"optimizer": state.optimizer_reason, "cost": cost.to_dict()}
        stage.note_seconds()
        runtime.tell(cost.line())
        self.resume()
        if family.device == "cpu":
            largest_px, losses = max(data.person), 2 if data.class_count else 1
            itemsize = family.dtype.itemsize
            weighing.demand_room_for_step(self.settings, family.base.family, largest_px, itemsize, losses)
        if self.controller:
            self.controller.start_training(changing(self.settings), state.step)
            return
        peak, usable = cost.peak_gib, runtime.usable_gpu_gib()
        if not state.losses and peak and usable and peak > usable and not self.settings.checkpointing:
            why = f"without checkpointing a step needs {peak:.1f} GiB, {usable:.1f} are available"
            self._change(changing(self.settings) | {"checkpointing": True}, why)
            runtime.say(f"training with gradient checkpointing: {why}")

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def save(self, must: bool = False) -> None:
        """Save a checkpoint of the state.

        Nothing is saved if the latest step or the weights are not finite: it could not be resumed from. If a checkpoint
        can't be written, older ones stay, and the next one is tried when it is due.

        Raises:
            DiskFull, RunFolderError: it can't be written, and `must` is set, because the training ends with it.
        """
        state = self.state
        if state.bad_in_a_row or not all_finite([*state.parameters, *state.average]):
            return
        saved = state.state_dict() | {"fingerprint": self.stage.manifest["fingerprint"]}
        self.saved_s = time.monotonic()
        with contextlib.nullcontext() if must else self.optional(f"the checkpoint of step {state.step}"):
            self.checkpoints.save(state.step, saved)
            self.stage.note_seconds()

    @property
    def is_due(self) -> bool:
        """Return whether a checkpoint is due now; after the last step the LoRA itself is written."""
        minutes, config = (time.monotonic() - self.saved_s) / 60, self.pacing.begun
        late = 0 < config.checkpoint_every_minutes <= minutes
        done = self.state.step
        return done < self.settings.steps and (late or done % config.checkpoint_every_steps == 0)

    @contextlib.contextmanager
    def optional(self, what: str) -> Iterator[None]:
        """Go on training if an optional file can't be written; report it and note it in the manifest."""
        try:
            yield
        except (DiskFull, RunFolderError) as error:
            self.stage.manifest.setdefault("not_written", []).append(f"{what}: {error.happened}")
            runtime.say(f"{what} can't be written; the training continues.\n{error}")

    def resume(self) -> bool:
        """Resume from the newest good checkpoint and return whether there is one; report and note damaged ones."""
        state, manifest = self.state, self.stage.manifest
        saved, problems = self.checkpoints.newest(NEEDED, fingerprint=manifest["fingerprint"])
        state.updating = False
        done = len(saved["losses"]) if saved else 0
        if problems:
            noted = manifest.setdefault("damaged_checkpoints", [])
            noted += [f"{problem}; continued from step {done}" for problem in problems]
            self.stage.note_seconds()
            warnings.warn(f"damaged checkpoint {problems[0]}. Training continues from step {done}.", stacklevel=4)
        if self.pacing.at(done).checkpointing:
            state.family.use_checkpointing()
        if saved is None:
            return False
        state.load_state_dict(saved)
        before = saved.get("optimizer_name", state.optimizer_name)
        if before != state.optimizer_name:
            words = f"from step {done} on, {state.optimizer_name} replaces {before}, whose averages are lost"
            noted = manifest.setdefault("other_optimizers", [])
            if words not in noted:
                noted.append(words)
                self.stage.note_seconds()
                warnings.warn(f"{words} ({state.optimizer_reason}).", stacklevel=4)
        self._lower_the_scale()
        return True

    # --- a step, within memory and with finite numbers ---------------------------------------------------------------

    def attempt(self, make_step: Callable[[], None]) -> bool:
        """Make a step and return whether the training goes on from it; if not, it goes on from a checkpoint.

        Raises:
            OutOfMemory, NotEnoughMemory: the step needs more memory than there is, and nothing cheaper is left.
            NotFinite: ten steps in a row gave no finite numbers, twice, or the weights are not finite.
        """
        _, problem = runtime.within_memory(make_step)
        if problem:
            self._go_on_cheaper(problem)
        elif reason := self._not_finite():
            self._go_back(reason)
        else:
            return True
        return False

    def _go_on_cheaper(self, problem: str) -> None:
        """Resume from the last checkpoint with settings that need less memory, and note them in the manifest.

        That checkpoint is of the step before this one, unless memory ran out during the update itself. Without a
        controller it is checkpointing first, which changes nothing of the result, then half of the batch.

        Raises:
            OutOfMemory: there is no controller, and nothing cheaper.
            NotEnoughMemory: the controller has no cheaper settings.
        """
        state, step = self.state, self.state.step
        state.optimizer.zero_grad(set_to_none=True)
        runtime.free_memory()
        half_updated = state.updating
        if not half_updated:
            self.save()
        px, settings = self.pacing.px_at(step), self.settings
        state.scaler = state.new_scaler(state.family)  # the old one may be in the middle of an update
        if not self.resume() and half_updated:
            raise OutOfMemory(
                f"step {step + 1} at {px} px ran out of memory during its update, and there is no checkpoint to "
                "return to.",
                problem,
                "Free space where the run is, so that checkpoints can be written, and give the same command again.",
            )
        if self.controller:
            plan = self.controller.out_of_memory("train", steps_done=state.step)
            self._change(plan.training, self.controller.why)
            self.controller.start_training(changing(self.settings), state.step)
            return
        if settings.checkpointing and settings.batch == 1:
            raise OutOfMemory(
                f"step {step + 1} at {px} px, batch 1, with checkpointing, ran out of memory.",
                problem,
                "Close other programs that use the memory, or train at smaller sizes (--schedule 768 1000), with a "
                f"smaller --rank, or on a larger GPU. The checkpoint of step {state.step} is kept.",
            )
        cheaper = {"batch": settings.batch // 2} if settings.checkpointing else {"checkpointing": True}
        why = f"out of memory in step {step + 1}: {problem}"
        self._change(changing(settings) | cheaper, why)
        words = ", ".join(f"{name} {value}" for name, value in cheaper.items())
        runtime.say(f"training continues from step {state.step} with {words}: {why}")

    def _not_finite(self) -> str:
        """Return why the training can't go on after a step because numbers are not finite; else "".

        Weights are checked when they are about to be written, and so after the last step.
        """
        state, steps = self.state, self.settings.steps
        bad, at_end = state.bad_in_a_row, state.step == steps
        if bad >= BAD_IN_A_ROW or (at_end and bad == state.step and not math.isfinite(state.losses[-1])):
            return f"{bad} steps in a row gave no finite loss and gradients, the last loss {state.losses[-1]}"
        snapshot = state.step in snapshot_steps(steps, self.pacing.begun.snapshots)
        if not (self.is_due or snapshot or at_end):
            return ""
        return "" if all_finite([*state.parameters, *state.average]) else "the trained weights are not finite"

    def _go_back(self, reason: str) -> None:
        """Go back to the last checkpoint, once in a training; it was saved while all numbers were finite.

        Raises:
            NotFinite: it has gone back before.
        """
        state, reached = self.state, self.state.step
        went_back = self.stage.manifest.setdefault("went_back", [])
        if went_back:
            raise NotFinite(
                f"at step {reached} {reason}.",
                f"It happened again after a return to step {went_back[0]['to']}. The usual cause is a learning rate "
                "that "
                f"is too high (now {self.settings.learning_rate:g}); otherwise the base's weights are damaged.",
                "Train again with a lower TrainConfig.learning_rate, for example half of it. The last checkpoint, in "
                f"{self.checkpoints.folder}, is kept.",
            )
        state.optimizer.zero_grad(set_to_none=True)
        state.scaler = state.new_scaler(state.family)
        if not self.resume():
            raise NotFinite(
                f"at step {reached} {reason}.",
                "There is no checkpoint to return to: none could be written.",
                "Free space where the run is, then train with a lower TrainConfig.learning_rate, for example half.",
            )
        went_back.append({"from": reached, "to": state.step, "why": reason})
        self._lower_the_scale()
        self.stage.note_seconds()
        warnings.warn(f"at step {reached} {reason}. Training continues from step {state.step}.", stacklevel=5)
        if self.controller:
            self.controller.start_training(changing(self.settings), state.step)

    def _lower_the_scale(self) -> None:
        """Lower float16's loss scale after going back to this very step; it grows again by itself."""
        here = [note for note in self.stage.manifest.get("went_back", []) if note["to"] == self.state.step]
        if here and self.state.scaler.is_enabled():
            scaler = self.state.scaler.state_dict()
            self.state.scaler.load_state_dict(scaler | {"scale": scaler["scale"] * SMALLER_SCALE})

    # --- time --------------------------------------------------------------------------------------------------------

    def keep_time(self) -> None:
        """Report a step to the controller, if there is one; if its plan changes, apply that."""
        if not self.controller:
            return
        before = self.controller.plan.training
        after = self.controller.time_step().training
        if after != before:
            self._change(after, self.controller.why)

    def _change(self, settings: dict, why: str) -> None:
        """Use other settings from the next step on."""
        self.pacing.change(self.state.step, settings, why)
        with self.optional("the manifest"):
            self.stage.note_seconds()
        if settings["checkpointing"]:
            self.state.family.use_checkpointing()
