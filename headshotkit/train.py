"""The training loop: noise, loss, step, save, resume. It speaks to a `Family` and knows no diffusion itself.

Everything random in a step comes from (seed, step), so a killed training goes on to the very same LoRA on a CPU.
On CUDA it does so to rounding: the backward of attention and of upsampling adds in no fixed order there.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from headshotkit import hub, locks, runtime
from headshotkit.captions import with_edits
from headshotkit.checkpoints import (
    Checkpoints,
    Interruption,
    random_states,
    set_random_states,
)
from headshotkit.config import TrainConfig
from headshotkit.errors import DiskFull, OutOfMemory, RunFolderError
from headshotkit.examples import CACHE_FILE, Examples, cached_examples
from headshotkit.families import Condition, load_family
from headshotkit.families.methods import Method, load_method
from headshotkit.method_costs import expect_cost
from headshotkit.optimizers import learning_rate_at, make_optimizer
from headshotkit.pacing import MAY_CHANGE, Controller, Pacing, changing
from headshotkit.records import Dataset, Lora
from headshotkit.run import Run, Stage, discard, write_json
from headshotkit.snapshots import Snapshots
from headshotkit.trained import write_trained

LOSSES_FILE = "losses.json"
MAX_GRAD_NORM = 1.0
STATE = ("lora", "average", "optimizer", "scaler", "random", "losses")
"""What a checkpoint must hold to go on from."""
STEP, EPOCH = 1, 2
"""Places of the seed: all that is random in a step; the order of an epoch."""


@locks.writes("train")
@runtime.frees_memory
def train_lora(run: Run, config: TrainConfig, controller: Controller | None = None) -> Lora:
    """Trains the person on the run's dataset by the config's method, or goes on where it was interrupted.

    Writes `lora/`: person.safetensors (diffusers' naming, with metadata) or what else the method leaves, losses.json,
    manifest.json. While it works, `lora/` also holds checkpoints; Ctrl-C and SIGTERM take effect after the step's end,
    when it has been saved.

    Args:
        controller: may change how steps are made while they run, for time or memory; each change is in the manifest,
            and what was begun with one goes on exactly.
    Raises:
        StageMissing: the dataset has not been built.
        DamagedRun: a training picture, or what was trained before, is gone or changed.
        BadConfig: the base's family can't do the method.
        BaseUnavailable: the base's weights can't be had.
        OutOfMemory, NotEnoughMemory: a step needs more memory than there is, and no controller or no plan can help.
        DiskFull, RunFolderError: what the training leaves can't be written; the last checkpoint stays. One that can't
            be written stops nothing: it is said, noted in the manifest, and tried again when the next is due.
        KeyboardInterrupt: Ctrl-C; the same call goes on from where it came.
    """
    dataset = with_edits(run.path("dataset"), Dataset.from_dict(run.manifest("dataset")["dataset"]))
    run.files("dataset", [*(photo.file for photo in dataset.photos), *dataset.class_images])
    stage = run.begin("lora", config, run.inputs_from("dataset"), seed=config.seed)
    if stage.done:
        _tidy(stage)
        return Lora.from_dict(stage.manifest["lora"])
    family = load_family(config.base)
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
    write_json(stage.folder / LOSSES_FILE, {"loss": [round(x, 5) for x in loop.losses]})
    last = sum(loop.losses[-50:]) / len(loop.losses[-50:])
    stage.finish(
        f"{method.title} after {steps} steps, loss {last:.3f}",
        lora=lora.to_dict(),
        optimizer=loop.optimizer_reason,
        dtype=family.dtype_reason,
        weights=hub.commits_of(*family.base.sources),
    )
    _tidy(stage)  # only now: before, a kill would have cost the whole training
    return lora


def _tidy(stage: Stage) -> None:
    """Removes what only an unfinished training needs."""
    Checkpoints(stage.folder, 1).clear()
    with contextlib.suppress(OSError):
        discard(stage.folder / CACHE_FILE)


class _Loop:
    """The loop's state: what is trained, its average, optimizer, scaler, losses; what a checkpoint holds."""

    def __init__(self, method: Method, pacing: Pacing, stage: Stage, person: dict[int, Examples],
                 class_pictures: dict[int, Examples], conditions: Condition) -> None:  # fmt: skip
        self.method, self.family, self.pacing, self.stage = method, method.family, pacing, stage
        self.config = config = pacing.begun
        self.person, self.class_pictures, self.conditions = person, class_pictures, conditions
        groups = method.add()
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.average = [p.detach().clone() for p in self.parameters] if config.ema else []
        self.optimizer, self.optimizer_reason = make_optimizer(groups, config, self.family.device)
        self._tell_cost(groups)
        self.scaler = self._new_scaler()
        self.checkpoints = Checkpoints(stage.folder, config.keep_checkpoints)
        self.snapshots = Snapshots(stage.folder, config, self.family, self.checkpoints.write)
        self.losses: list[float] = []
        self.saved_s = time.monotonic()
        self.updating = False

    def _tell_cost(self, groups: list[dict]) -> None:
        """Says what the training will take and leave, and notes it in the manifest."""
        count = len(next(iter(self.class_pictures.values())).sizes)
        cost = expect_cost(self.method, groups, self.optimizer_name, runtime.choose_device()[1], count)
        self.stage.manifest["cost"] = cost.to_dict()
        self.stage.note_seconds()
        runtime.say(cost.line())

    def run(self, controller: Controller | None = None) -> None:
        """All steps that are still to do; the family then holds the LoRA that is to be saved."""
        self._resume()
        if controller:
            controller.start_training(changing(self.settings), len(self.losses))
            if not self.losses:
                self._save(must=True)  # so that there is always something to go back to
        with Interruption() as interruption, runtime.progress((), "training", self.settings.steps) as bar:
            while (step := len(self.losses)) < self.settings.steps:
                problem = self._try_step(step)
                if problem:
                    self._go_on_cheaper(step, problem, controller)
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

    def _new_scaler(self) -> torch.amp.GradScaler:
        """Float16 gradients would underflow without it; in other dtypes it does nothing."""
        return torch.amp.GradScaler(self.family.device, enabled=self.family.dtype == torch.float16)

    @property
    def optimizer_name(self) -> str:
        """Which optimizer it is, "adamw8bit" for example; "auto" leads to another one on another machine."""
        return self.optimizer_reason.partition(":")[0]

    @property
    def settings(self) -> TrainConfig:
        """Those of the next step."""
        return self.pacing.at(len(self.losses))

    def _show(self, bar) -> None:
        """Step, loss and GiB on the progress bar."""
        memory = {f"{place}_gib": size for place, size in runtime.peak_memory_gib().items()}
        if bar.total != self.settings.steps:
            bar.reset(self.settings.steps)  # a notebook's bar does not follow its `total`
            bar.initial = len(self.losses)
        bar.n = len(self.losses)
        bar.set_postfix(loss=f"{sum(self.losses[-20:]) / len(self.losses[-20:]):.3f}", **memory)

    def _try_step(self, step: int) -> str:
        """One step; where the memory doesn't suffice, the first line of what torch says of it, else nothing."""
        try:
            self.losses.append(self._step(step))
        except torch.OutOfMemoryError as error:
            return str(error).split("\n")[0]
        return ""

    def _go_on_cheaper(self, step: int, problem: str, controller: Controller | None) -> None:
        """Goes on from the last checkpoint with settings that need less memory, which is noted in the manifest.

        That checkpoint is of the step before this one, unless the memory gave out amid the update itself.

        Raises:
            OutOfMemory: there is no controller that knows such settings.
            NotEnoughMemory: it knows none.
        """
        self.optimizer.zero_grad(set_to_none=True)
        runtime.free_memory()
        if not self.updating:
            self._save()
        if controller is None:
            px, settings = self.pacing.px_at(step), self.settings
            raise OutOfMemory(
                f"step {step + 1} at {px} px, batch {settings.batch}, ran out of memory.",
                problem,
                "Give the same command with --minutes, such as --minutes 60: settings that fit are then found, "
                "and the training goes on from its last checkpoint.",
            )
        self.scaler = self._new_scaler()  # the old one may stand amid an update
        self._resume()
        plan = controller.out_of_memory("train", steps_done=len(self.losses))
        self._change(plan.training, controller.why)
        controller.start_training(changing(self.settings), len(self.losses))

    def _keep_time(self, controller: Controller) -> None:
        """Tells the controller of a step; where that leads to another plan, goes on with it."""
        before = controller.plan.training
        after = controller.time_step().training
        if after != before:
            self._change(after, controller.why)

    def _change(self, settings: dict, why: str) -> None:
        """From the next step on other settings hold."""
        self.pacing.change(len(self.losses), settings, why)
        with self._going_on("the manifest"):
            self.stage.note_seconds()
        if settings["checkpointing"]:
            self.family.use_checkpointing()

    def _is_due(self, done: int) -> bool:
        """Whether a checkpoint is wanted after so many steps; the last step is followed by the LoRA itself."""
        minutes, limit = (time.monotonic() - self.saved_s) / 60, self.config.checkpoint_every_minutes
        late = 0 < limit <= minutes
        return done < self.settings.steps and (late or done % self.config.checkpoint_every_steps == 0)

    def _step(self, step: int) -> float:
        """One optimizer update; returns the loss."""
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
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRAD_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.updating = False
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def _loss(self, examples: Examples, chosen: list[int], generator: torch.Generator, dropout: float) -> torch.Tensor:
        """Mean loss over the chosen pictures; some captions give way to the empty one."""
        empty = self.conditions.count - 1
        dropped = torch.rand(len(chosen), generator=generator) < dropout
        captions = [empty if d else examples.caption_ids[i] for i, d in zip(chosen, dropped, strict=True)]
        sizes = [examples.sizes[i] for i in chosen]
        weights = examples.weights(chosen, self.config.face_weight)
        condition = self.conditions.pick(captions)
        return self.family.loss(examples.latents[chosen], condition, sizes, self.config, generator, weights).mean()

    def _order(self, step: int) -> list[int]:
        """The pictures of a step: every picture once an epoch, in an order of the epoch's own."""
        n, chosen = len(self.person[self.pacing.px_at(step)].sizes), []
        for place in range(self.pacing.pictures_before(step), self.pacing.pictures_before(step + 1)):
            epoch, index = divmod(place, n)
            seed = runtime.seed_for(self.config.seed, EPOCH, epoch)
            chosen.append(int(torch.randperm(n, generator=torch.Generator().manual_seed(seed))[index]))
        return chosen

    def _follow(self, step: int) -> None:
        """Moves the average towards the LoRA; early on faster, so that the start soon counts for little."""
        if self.average:
            decay = min(self.config.ema, (1 + step) / (10 + step))
            get_ema_multi_avg_fn(decay)(self.average, [p.detach() for p in self.parameters], step)

    @contextlib.contextmanager
    def _going_on(self, what: str) -> Iterator[None]:
        """Go on training if a file that it can do without can't be written; say so and note it in the manifest."""
        try:
            yield
        except (DiskFull, RunFolderError) as error:
            self.stage.manifest.setdefault("not_written", []).append(f"{what}: {error.happened}")
            runtime.say(f"{what} can't be written; the training goes on.\n{error}")

    def _save(self, must: bool = False) -> None:
        """A checkpoint of everything that a step changes; the steps done are the sampler's place.

        Where it can't be written, older ones stay, and the next one is tried when it is due.

        Raises:
            DiskFull, RunFolderError: it can't be written, and must be, for the training ends with it.
        """
        state = {
            "lora": self.method.state(),
            "average": [tensor.cpu() for tensor in self.average],
            "optimizer": self.optimizer.state_dict(),
            "optimizer_name": self.optimizer_name,
            "scaler": self.scaler.state_dict(),
            "random": random_states(),
            "losses": self.losses,
            "fingerprint": self.stage.manifest["fingerprint"],
        }
        self.saved_s = time.monotonic()
        with contextlib.nullcontext() if must else self._going_on(f"the checkpoint of step {len(self.losses)}"):
            self.checkpoints.save(len(self.losses), state)
            self.stage.note_seconds()

    def _resume(self) -> None:
        """Goes on from the newest good checkpoint, if there is one; a damaged one is said and noted."""
        state, problems = self.checkpoints.newest(STATE, fingerprint=self.stage.manifest["fingerprint"])
        self.updating = False
        done = len(state["losses"]) if state else 0
        if problems:
            noted = self.stage.manifest.setdefault("damaged_checkpoints", [])
            noted += [f"{problem}; went on from step {done}" for problem in problems]
            self.stage.note_seconds()
            warnings.warn(f"damaged checkpoint {problems[0]}. Training goes on from step {done}.", stacklevel=5)
        if self.pacing.at(done).checkpointing:
            self.family.use_checkpointing()
        if state is None:
            return
        self.method.load_state(state["lora"])
        for average, saved in zip(self.average, state["average"], strict=True):
            average.copy_(saved)
        self._resume_optimizer(state, done)
        if state["scaler"]:  # empty where no float16 was trained; this machine's dtype may be another
            self.scaler.load_state_dict(state["scaler"])
        set_random_states(state["random"])
        self.losses = list(state["losses"])

    def _resume_optimizer(self, state: dict, done: int) -> None:
        """The optimizer's state; another machine's or a later installation's other optimizer can't take it over."""
        before = state.get("optimizer_name", self.optimizer_name)
        if before == self.optimizer_name:
            self.optimizer.load_state_dict(state["optimizer"])
            return
        self.optimizer.state.clear()  # half made, where the memory gave out amid its first update
        words = f"from step {done} on {self.optimizer_name} in place of {before}, whose averages are left behind"
        noted = self.stage.manifest.setdefault("other_optimizers", [])
        if words not in noted:
            noted.append(words)
            self.stage.note_seconds()
            warnings.warn(f"{words} ({self.optimizer_reason}).", stacklevel=6)
