"""The training loop: noise, loss, step, save, resume. It speaks to a `Family` and knows no diffusion itself.

Everything random in a step comes from (seed, step), so a killed training goes on to the very same LoRA.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch.optim.swa_utils import get_ema_multi_avg_fn

from headshotkit import runtime
from headshotkit.captions import with_edits
from headshotkit.checkpoints import (
    DAMAGE,
    Checkpoints,
    Interruption,
    random_states,
    read_checked,
    set_random_states,
    to_bytes,
)
from headshotkit.config import TrainConfig
from headshotkit.families import Condition, Family, load_family
from headshotkit.families.methods import Method, load_method
from headshotkit.method_costs import expect_cost
from headshotkit.records import Dataset, Lora
from headshotkit.run import Run, Stage, write_atomic, write_json

CACHE_FILE = "cache.pt"
LOSSES_FILE = "losses.json"
WEIGHT_DECAY = 1e-2
MAX_GRAD_NORM = 1.0
STEP, EPOCH = 1, 2
"""Places of the seed: all that is random in a step; the order of an epoch."""


@dataclass
class Examples:
    """What the loop draws from: latents (N, C, h, w), an index of each one's caption, sizes for the U-Net."""

    latents: torch.Tensor
    caption_ids: list[int]
    sizes: list[tuple[int, ...]]


def train_lora(run: Run, config: TrainConfig) -> Lora:
    """Trains the person on the run's dataset by the config's method, or goes on where it was interrupted.

    Writes `lora/`: person.safetensors (diffusers' naming, with metadata) or what else the method leaves, losses.json,
    manifest.json. While it works, `lora/` also holds checkpoints; Ctrl-C and SIGTERM take effect after the step's end,
    when it has been saved.

    Raises:
        StageMissing: the dataset has not been built.
        BadConfig: the base's family can't do the method.
        BaseUnavailable: the base's weights can't be had.
        DiskFull, RunFolderError: a file can't be written; the last checkpoint stays.
        KeyboardInterrupt: Ctrl-C; the same call goes on from where it came.
    """
    dataset = with_edits(run.path("dataset"), Dataset.from_dict(run.manifest("dataset")["dataset"]))
    stage = run.begin("lora", config, run.inputs_from("dataset"), seed=config.seed)
    if stage.done:
        _tidy(stage)
        return Lora.from_dict(stage.manifest["lora"])
    family = load_family(config.base)
    method = load_method(family, config, dataset)
    person, class_pictures, cached = _cached_examples(family, run.path("dataset"), dataset, stage)
    method.free_encoders()
    loop = _Loop(method, config, stage, person, class_pictures, method.conditions(dataset.captions, cached))
    loop.run()
    lora = _write_trained(method, loop.checkpoints, stage, dataset)
    write_json(stage.folder / LOSSES_FILE, {"loss": [round(x, 5) for x in loop.losses]})
    last = sum(loop.losses[-50:]) / len(loop.losses[-50:])
    stage.finish(
        f"{method.title} after {config.steps} steps, loss {last:.3f}",
        lora=lora.to_dict(),
        optimizer=loop.optimizer_reason,
        dtype=family.dtype_reason,
    )
    _tidy(stage)  # only now: before, a kill would have cost the whole training
    return lora


def _write_trained(method: Method, checkpoints: Checkpoints, stage: Stage, dataset: Dataset) -> Lora:
    """Writes what the method leaves, file by file, each with how it was made."""
    lora, files = method.record(), []
    for name, content in method.files(_metadata(lora, stage, dataset)):
        checkpoints.write(stage.folder / name, content)
        files.append(Path(name))
    return replace(lora, path=files[0], files=tuple(files))


def _tidy(stage: Stage) -> None:
    """Removes what only an unfinished training needs."""
    Checkpoints(stage.folder, 1).clear()
    (stage.folder / CACHE_FILE).unlink(missing_ok=True)


def _metadata(lora: Lora, stage: Stage, dataset: Dataset) -> dict[str, str]:
    """How the LoRA was made, for the file's header: strings only, as safetensors wants."""
    facts = {"base": lora.base, "method": lora.method, "token": lora.token, "class_word": lora.class_word,
             "steps": lora.step, "rank": lora.rank, "alpha": lora.alpha,
             "captions": json.dumps([p.caption for p in dataset.photos]),
             "config": json.dumps(stage.manifest["config"]), "fingerprint": stage.manifest["fingerprint"],
             "version": stage.manifest["headshotkit"]}  # fmt: skip
    return {f"headshotkit.{name}": str(value) for name, value in facts.items()}


def _cached_examples(
    family: Family, folder: Path, dataset: Dataset, stage: Stage
) -> tuple[Examples, Examples, Condition]:
    """Latents and embeddings, encoded once and kept on disk: (person's Examples, class Examples, conditions).

    The last condition is the empty caption's, the one before it the class's.
    """
    captions = dataset.captions
    side = dataset.size_px
    person_sizes = [
        (*p.original_size_px[::-1], *p.crop_top_left_px, *(p.size_px[::-1] or (side, side))) for p in dataset.photos
    ]
    class_sizes = [(side, side, 0, 0, side, side)] * len(dataset.class_images)
    cache = stage.folder / CACHE_FILE
    try:
        kept = read_checked(cache)
    except DAMAGE:  # mostly: it is not there yet
        files = [p.file for p in dataset.photos] + list(dataset.class_images)
        images = runtime.progress([Image.open(folder / f).convert("RGB") for f in files], "encoding photos")
        latents = torch.cat([family.encode_images([image]) for image in images])
        condition = family.encode_prompts(captions)
        kept = {"latents": latents, "condition": dict(condition)}
        write_atomic(cache, to_bytes(kept))
    conditions = Condition(kept["condition"])
    n = len(dataset.photos)
    person = Examples(kept["latents"][:n], [captions.index(p.caption) for p in dataset.photos], person_sizes)
    pictures = Examples(kept["latents"][n:], [len(captions) - 2] * len(class_sizes), class_sizes)
    return person, pictures, conditions


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to zero.

    >>> config = TrainConfig(steps=100, warmup=0.1, learning_rate=1.0e-3)
    >>> [round(learning_rate_at(step, config), 6) for step in (0, 9, 55, 99)]
    [0.0001, 0.001, 0.0005, 0.0]
    """
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, config.steps - warm)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(parameters: list, config: TrainConfig, device: str) -> tuple[torch.optim.Optimizer, str]:
    """The optimizer and why it is this one: (optimizer, reason). 8-bit Adam's state takes a quarter of the memory.

    Raises:
        MissingPackage: adamw8bit was asked for, and bitsandbytes is not installed.
    """
    options = {"lr": config.learning_rate, "weight_decay": WEIGHT_DECAY}
    if config.optimizer == "adamw8bit":
        return runtime.require("bitsandbytes", "train").optim.AdamW8bit(parameters, **options), "adamw8bit: asked for"
    if config.optimizer == "auto" and device == "cuda":
        if runtime.has_module("bitsandbytes"):
            return runtime.require("bitsandbytes", "train").optim.AdamW8bit(parameters, **options), "adamw8bit: on CUDA"
        reason = "adamw: bitsandbytes is not installed; pip install 'headshotkit[train]' saves 0.26 GiB on SDXL"
        return torch.optim.AdamW(parameters, fused=True, **options), reason
    reason = "adamw: asked for" if config.optimizer == "adamw" else f"adamw: 8-bit Adam saves nothing on {device}"
    return torch.optim.AdamW(parameters, **options), reason


class _Loop:
    """The loop's state: what is trained, its average, optimizer, scaler, losses; what a checkpoint holds."""

    def __init__(self, method: Method, config: TrainConfig, stage: Stage, person: Examples, class_pictures: Examples,
                 conditions: Condition) -> None:  # fmt: skip
        self.method, self.family, self.config, self.stage = method, method.family, config, stage
        self.person, self.class_pictures, self.conditions = person, class_pictures, conditions
        groups = method.add()
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.average = [p.detach().clone() for p in self.parameters] if config.ema else []
        if config.checkpointing:
            self.family.use_checkpointing()
        self.optimizer, self.optimizer_reason = make_optimizer(groups, config, self.family.device)
        self._tell_cost(groups)
        self.scaler = torch.amp.GradScaler(self.family.device, enabled=self.family.dtype == torch.float16)
        self.checkpoints = Checkpoints(stage.folder, config.keep_checkpoints)
        self.losses: list[float] = []
        self.saved_s = time.monotonic()

    def _tell_cost(self, groups: list[dict]) -> None:
        """Says what the training will take and leave, and notes it in the manifest."""
        name, count = self.optimizer_reason.partition(":")[0], len(self.class_pictures.sizes)
        cost = expect_cost(self.method, groups, name, runtime.choose_device()[1], count)
        self.stage.manifest["cost"] = cost.to_dict()
        self.stage.note_seconds()
        runtime.say(cost.line())

    def run(self) -> None:
        """All steps that are still to do; the family then holds the LoRA that is to be saved."""
        self._resume()
        bar = runtime.progress(range(len(self.losses), self.config.steps), "training")
        with Interruption() as interruption:
            for step in bar:
                self.losses.append(self._step(step))
                self._follow(step)
                memory = {f"{place}_gib": size for place, size in runtime.peak_memory_gib().items()}
                bar.set_postfix(loss=f"{sum(self.losses[-20:]) / len(self.losses[-20:]):.3f}", **memory)
                if interruption.signal is not None or self._is_due(step + 1):
                    self._save()
                if interruption.signal is not None:
                    interruption.pass_on()
        for parameter, average in zip(self.parameters, self.average, strict=False):
            parameter.data.copy_(average)

    def _is_due(self, done: int) -> bool:
        """Whether a checkpoint is wanted after so many steps; the last step is followed by the LoRA itself."""
        minutes, limit = (time.monotonic() - self.saved_s) / 60, self.config.checkpoint_every_minutes
        late = 0 < limit <= minutes
        return done < self.config.steps and (late or done % self.config.checkpoint_every_steps == 0)

    def _step(self, step: int) -> float:
        """One optimizer update; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, self.config) * group.get("factor", 1.0)
        generator = torch.Generator().manual_seed(runtime.seed_for(self.config.seed, STEP, step))
        loss = self._loss(self.person, self._order(step), generator, self.config.caption_dropout)
        if len(self.class_pictures.sizes):
            chosen = torch.randint(len(self.class_pictures.sizes), (self.config.batch,), generator=generator).tolist()
            loss = loss + self.config.prior_weight * self._loss(self.class_pictures, chosen, generator, 0.0)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRAD_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def _loss(self, examples: Examples, chosen: list[int], generator: torch.Generator, dropout: float) -> torch.Tensor:
        """Mean loss over the chosen pictures; some captions give way to the empty one."""
        empty = self.conditions.count - 1
        dropped = torch.rand(len(chosen), generator=generator) < dropout
        captions = [empty if d else examples.caption_ids[i] for i, d in zip(chosen, dropped, strict=True)]
        sizes = [examples.sizes[i] for i in chosen]
        return self.family.loss(
            examples.latents[chosen], self.conditions.pick(captions), sizes, self.config, generator
        ).mean()

    def _order(self, step: int) -> list[int]:
        """The pictures of a step: every picture once an epoch, in an order of the epoch's own."""
        n, batch, chosen = len(self.person.sizes), self.config.batch, []
        for place in range(step * batch, (step + 1) * batch):
            epoch, index = divmod(place, n)
            seed = runtime.seed_for(self.config.seed, EPOCH, epoch)
            chosen.append(int(torch.randperm(n, generator=torch.Generator().manual_seed(seed))[index]))
        return chosen

    def _follow(self, step: int) -> None:
        """Moves the average towards the LoRA; early on faster, so that the start soon counts for little."""
        if self.average:
            decay = min(self.config.ema, (1 + step) / (10 + step))
            get_ema_multi_avg_fn(decay)(self.average, [p.detach() for p in self.parameters], step)

    def _save(self) -> None:
        """A checkpoint of everything that a step changes; the steps done are the sampler's place."""
        state = {
            "lora": self.method.state(),
            "average": [tensor.cpu() for tensor in self.average],
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": random_states(),
            "losses": self.losses,
        }
        self.checkpoints.save(len(self.losses), state)
        self.stage.note_seconds()
        self.saved_s = time.monotonic()

    def _resume(self) -> None:
        """Goes on from the newest good checkpoint, if there is one; a damaged one is said and noted."""
        state, problems = self.checkpoints.newest()
        done = len(state["losses"]) if state else 0
        if problems:
            noted = self.stage.manifest.setdefault("damaged_checkpoints", [])
            noted += [f"{problem}; went on from step {done}" for problem in problems]
            self.stage.note_seconds()
            warnings.warn(f"damaged checkpoint {problems[0]}. Training goes on from step {done}.", stacklevel=4)
        if state is None:
            return
        self.method.load_state(state["lora"])
        for average, saved in zip(self.average, state["average"], strict=True):
            average.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        set_random_states(state["random"])
        self.losses = list(state["losses"])
