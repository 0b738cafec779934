"""Hold everything that a training step changes, which is what a checkpoint saves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

import torch

from headshotkit.config import TrainConfig
from headshotkit.families import Family
from headshotkit.families.methods import Method
from headshotkit.training.checkpoints import random_states, set_random_states
from headshotkit.training.optimizers import make_optimizer


@dataclass
class TrainState:
    """Everything that a step changes.

    method: holds the trained weights, in the base · parameters: these weights, float32 · average: their moving
    average, empty without one · optimizer_reason: the optimizer's name and why it was chosen · losses: of each step
    that is done · skipped: those steps, from 0, whose numbers were not finite · updating: whether the weights are being
    changed, so that an error leaves some of them changed.
    """

    method: Method
    parameters: list[torch.nn.Parameter]
    average: list[torch.Tensor]
    optimizer: torch.optim.Optimizer
    optimizer_reason: str
    scaler: torch.amp.GradScaler
    losses: list[float] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    updating: bool = False

    @classmethod
    def begin(cls, method: Method, config: TrainConfig, prior: bool, begun_with: str) -> Self:
        """Return the state before the first step; the method's weights are in the base then.

        Args:
            prior, begun_with: as for `make_optimizer`.
        """
        groups = method.add()
        parameters = [parameter for group in groups for parameter in group["params"]]
        average = [parameter.detach().clone() for parameter in parameters] if config.ema else []
        optimizer = make_optimizer(groups, config, method.family.device, prior, begun_with)
        return cls(method, parameters, average, *optimizer, cls.new_scaler(method.family))

    @staticmethod
    def new_scaler(family: Family) -> torch.amp.GradScaler:
        """Return a scaler: float16 gradients would underflow without it; for other dtypes it does nothing."""
        return torch.amp.GradScaler(family.device, enabled=family.dtype == torch.float16)

    @property
    def family(self) -> Family:
        """Return the base that is trained."""
        return self.method.family

    @property
    def step(self) -> int:
        """Return the number of steps done, which is the next step's number from 0."""
        return len(self.losses)

    @property
    def optimizer_name(self) -> str:
        """Return the optimizer's name, such as "adamw8bit"; "auto" resolves differently on other machines."""
        return self.optimizer_reason.partition(":")[0]

    @property
    def bad_in_a_row(self) -> int:
        """Return the number of latest consecutive steps without finite numbers."""
        bad, step = set(self.skipped), self.step - 1
        while step in bad:
            step -= 1
        return self.step - 1 - step

    def recent_loss(self, count: int) -> float:
        """Return the mean of the last `count` losses that are finite; NaN if none is."""
        recent = [loss for loss in self.losses[-count:] if math.isfinite(loss)]
        return sum(recent) / len(recent) if recent else math.nan

    def state_dict(self) -> dict:
        """Return what a checkpoint holds: tensors on the CPU and plain values.

        The number of losses is the sampler's position, because all randomness of a step comes from (seed, step).
        """
        return {
            "lora": self.method.state(),
            "average": [tensor.cpu() for tensor in self.average],
            "optimizer": self.optimizer.state_dict(),
            "optimizer_name": self.optimizer_name,
            "scaler": self.scaler.state_dict(),
            "random": random_states(),
            "losses": self.losses,
            "skipped": self.skipped,
        }

    def load_state_dict(self, saved: dict) -> None:
        """Load what `state_dict` returned.

        Another optimizer, on another machine or installation, can't use the saved one's averages and begins anew. The
        scaler is loaded if there was one: this machine's dtype may differ.
        """
        self.method.load_state(saved["lora"])
        for average, before in zip(self.average, saved["average"], strict=True):
            average.copy_(before)
        if saved.get("optimizer_name", self.optimizer_name) == self.optimizer_name:
            self.optimizer.load_state_dict(saved["optimizer"])
        else:
            self.optimizer.state.clear()  # incomplete if memory ran out during its first update
        if saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        set_random_states(saved["random"])
        self.losses, self.skipped = list(saved["losses"]), list(saved.get("skipped", []))

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the average into the weights for good, if there is one."""
        for parameter, average in zip(self.parameters, self.average, strict=False):
            parameter.copy_(average)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the average into the weights temporarily, if there is one."""
        own = [parameter.detach().clone() for parameter in self.parameters] if self.average else []
        try:
            self.use_average()
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, own, strict=False):
                    parameter.copy_(value)
