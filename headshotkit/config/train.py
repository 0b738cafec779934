"""Settings of training."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from headshotkit.config.base import BaseName, Batch, Config, Minutes, Seed
from headshotkit.config.bases import find_base
from headshotkit.core.errors import BadConfig

Optimizer = Literal["auto", "adamw", "adamw8bit", "prodigy"]
Method = Literal["lora", "dreambooth", "textual-inversion", "pivotal"]
METHODS = get_args(Method)
UNUSED = {
    "lora": ("token_vectors", "token_factor"),
    "dreambooth": ("rank", "alpha", "targets", "token_vectors", "token_factor"),
    "textual-inversion": ("rank", "alpha", "targets", "token_factor"),
    "pivotal": (),
}
"""Method -> the settings of TrainConfig that it does not use."""

TrainSteps = Annotated[int, Field(ge=1, le=1_000_000)]
TrainSize = Annotated[int, Field(ge=32, le=4096, multiple_of=32)]
Rank = Annotated[int, Field(ge=1, le=1024)]


class TrainConfig(Config):
    """Settings of training."""

    base: BaseName = "sdxl"
    """The base to train on."""
    method: Method = "lora"
    """What is trained: lora (small matrices next to the frozen base), dreambooth (all weights of the denoiser),
    textual-inversion (embeddings of new tokens only) or pivotal (new tokens and a LoRA together)."""
    token_vectors: Annotated[int, Field(ge=1, le=32)] = 4
    """Number of new tokens for the person, with textual-inversion and pivotal; a prompt holds 75 in all.
    They start as the class word's embedding. In captions and prompts the dataset's token stands for all of them."""
    token_factor: Annotated[float, Field(gt=0, le=1000)] = 3.0
    """With pivotal: learning rate of the new tokens relative to the LoRA's. cog-sdxl uses 3e-4 and 1e-4."""
    rank: Rank = 32
    """Rank of the LoRA's two matrices."""
    alpha: Annotated[int, Field(ge=1, le=4096)] = 32
    """Scale numerator of the LoRA: its weight in the base is alpha / rank."""
    targets: Literal["attention", "all"] = "attention"
    """Which layers get a LoRA: attention (query, key, value, out) or all (also feed-forward and convolutions)."""
    steps: TrainSteps = 1000
    """Number of optimizer updates."""
    schedule: tuple[tuple[TrainSize, TrainSteps], ...] = ()
    """Pairs of side (px) and steps in order: 768 700 1024 300 trains 700 steps at 768 px, then 300 at 1024 px; in
    Python, ((768, 700), (1024, 300)). Empty: the dataset's size throughout. A step at 3/4 of the side takes about half
    the time. Each side is a multiple of 32."""
    batch: Batch = 1
    """Pictures per step."""
    learning_rate: Annotated[float, Field(gt=0, le=2)] = 1e-4
    """Peak learning rate; cosine to zero after the warm-up. Prodigy's is 1, because it adapts its own step size."""
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Fraction of the steps in which the learning rate rises."""
    optimizer: Optimizer = "auto"
    """adamw8bit (a quarter of AdamW's state), adamw, prodigy (arXiv:2306.06101), or auto: fused adamw if the GPU has
    room for its state, else adamw8bit."""
    min_snr_gamma: Annotated[float, Field(ge=0, le=1000)] = 5.0
    """Cap of the signal-to-noise weight (min-SNR, arXiv:2303.09556); 0 turns this off."""
    noise_offset: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Strength of the per-channel offset added to the noise."""
    caption_dropout: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Fraction of the captions replaced by the empty one."""
    face_weight: Annotated[float, Field(ge=1, le=20)] = 1.0
    """Weight of the face in the loss relative to the rest; 1 turns this off. A picture's mean weight is 1."""
    prior_weight: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Weight of the loss over class images, if the dataset has any (DreamBooth's lambda)."""
    checkpointing: bool = False
    """Gradient checkpointing: less memory, about 1.35 times the time."""
    checkpoint_every_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """Steps between checkpoints that an interrupted training resumes from."""
    checkpoint_every_minutes: Minutes = 5.0
    """Maximum number of minutes between checkpoints; 0 turns this off, then only steps count."""
    keep_checkpoints: Annotated[int, Field(ge=1, le=1000)] = 3
    """Number of newest checkpoints to keep; if one is damaged, the one before it is used."""
    snapshots: Annotated[int, Field(ge=0, le=1000)] = 0
    """Number of LoRA files to save in lora/previews/, evenly spread, the last at the end of the training; 0: none."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of a moving average of the LoRA, which is saved instead; 0 turns this off. 0.99 averages about 100
    steps."""
    seed: Seed = 0
    """Seed of LoRA initialisation, noise, timesteps and order."""

    @classmethod
    def for_base(cls, base: str, **overrides):
        """Return the settings as `Config.for_base`; the base's preset of the method overrides the base's.

        Raises:
            UnknownBase: no base has that name.
            BadConfig: a setting does not exist, contradicts another, or is not used by the method.
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        method = given.get("method", METHODS[0])
        unused = [name for name in UNUSED.get(method, ()) if name in given]
        if unused:
            raise BadConfig(
                "; ".join(f"{name} is {given[name]}" for name in unused) + f", and method is {method!r}.",
                "That method does not use it.",
                "Leave it out, or choose another TrainConfig.method.",
            )
        return cls.with_options(**{"base": base, **cls.preset(base, method=method)} | given)

    @classmethod
    def preset(cls, base: str, **chosen) -> dict:
        """Return the settings that a base presets, for the chosen method.

        Raises:
            UnknownBase: no base has that name.
        """
        method = chosen.get("method") or METHODS[0]
        return super().preset(base) | find_base(base).presets.get(f"{cls.__name__}.{method}", {})

    @classmethod
    def implied(cls, chosen: dict) -> dict:
        """Return alpha for a chosen rank, the optimizer's learning rate, and a schedule's steps."""
        found = {"alpha": chosen["rank"]} if "rank" in chosen else {}  # alpha / rank is the LoRA's weight: it stays 1
        if chosen.get("optimizer") == "prodigy":
            found["learning_rate"] = 1.0
        if chosen.get("schedule"):
            found["steps"] = sum(steps for _, steps in chosen["schedule"])
        return found

    @model_validator(mode="after")
    def _relations(self) -> Self:
        """Refuse settings that contradict each other."""
        self._demand_a_sound_optimizer()
        self._demand_a_sound_schedule()
        self._demand_sound_snapshots()
        return self

    def _demand_a_sound_optimizer(self) -> None:
        """Refuse rates that the optimizer can't learn with."""
        if self.optimizer != "prodigy" and self.learning_rate >= 1:
            raise BadConfig(
                f"learning_rate is {self.learning_rate}.",
                "LoRAs are trained with 1e-5 to 5e-3, a whole U-Net with less, embeddings with more.",
                "Set TrainConfig.learning_rate, for example 1e-4.",
            )
        if self.optimizer == "prodigy" and self.learning_rate < 0.1:
            raise BadConfig(
                f"learning_rate is {self.learning_rate}, optimizer is 'prodigy'.",
                "Prodigy finds the size of its steps; the learning rate only scales it.",
                "Set TrainConfig.learning_rate to 1, or TrainConfig.optimizer to adamw.",
            )
        if self.optimizer == "prodigy" and self.method == "pivotal" and self.token_factor != 1:
            raise BadConfig(
                f"optimizer is 'prodigy', method is 'pivotal', token_factor is {self.token_factor:g}.",
                "Prodigy wants one learning rate for all that is trained.",
                "Set TrainConfig.token_factor to 1, or TrainConfig.optimizer to adamw.",
            )

    def _demand_sound_snapshots(self) -> None:
        """Refuse snapshots of other methods than a LoRA, and more snapshots than steps."""
        if self.snapshots and self.method != "lora":
            raise BadConfig(
                f"snapshots is {self.snapshots}, method is {self.method!r}.",
                "A snapshot is a LoRA file.",
                "Set TrainConfig.snapshots to 0 or TrainConfig.method to lora.",
            )
        if self.snapshots > self.steps:
            raise BadConfig(
                f"snapshots is {self.snapshots}, steps is {self.steps}.",
                "A snapshot is taken after a step, so there are at most as many.",
                "Lower TrainConfig.snapshots or raise TrainConfig.steps.",
            )

    def _demand_a_sound_schedule(self) -> None:
        """Refuse a schedule with another number of steps than `steps`."""
        total = sum(steps for _, steps in self.schedule)
        if self.schedule and total != self.steps:
            raise BadConfig(
                f"schedule has {total} steps, steps is {self.steps}.",
                "The schedule says at which size each of the steps is made.",
                f"Set TrainConfig.steps to {total}, or change TrainConfig.schedule.",
            )
