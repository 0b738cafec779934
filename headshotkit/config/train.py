"""Settings of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from headshotkit.config.base import Batch, Config, Minutes, OneOf, Range, Seed, demand
from headshotkit.config.bases import find_base

OPTIMIZERS = ("auto", "adamw", "adamw8bit", "prodigy")
TARGETS = ("attention", "all")
METHODS = ("lora", "dreambooth", "textual-inversion", "pivotal")
UNUSED = {
    "lora": ("token_vectors", "token_factor"),
    "dreambooth": ("rank", "alpha", "targets", "token_vectors", "token_factor"),
    "textual-inversion": ("rank", "alpha", "targets", "token_factor"),
    "pivotal": (),
}
"""Method -> the settings of TrainConfig that it does not use."""

TrainSteps = Annotated[int, Range(1, 1_000_000)]
TrainSize = Annotated[int, Range(32, 4096, "Autoencoder and denoiser halve a picture several times.", multiple=32)]
Rank = Annotated[int, Range(1, 1024, "A layer of SDXL's is 640 to 2048 wide, so a larger one adds nothing.")]


@dataclass(frozen=True)
class TrainConfig(Config):
    """Settings of training."""

    base: str = "sdxl"
    """The base to train on."""
    method: Annotated[str, OneOf(METHODS)] = "lora"
    """What is trained: lora (small matrices next to the frozen base), dreambooth (all weights of the denoiser),
    textual-inversion (embeddings of new tokens only) or pivotal (new tokens and a LoRA together)."""
    token_vectors: Annotated[int, Range(1, 32, "A prompt holds 75 tokens, and says more than who it is.")] = 4
    """Number of new tokens for the person, with textual-inversion and pivotal; a prompt holds 75 in all.
    They start as the class word's embedding. Captions and prompts keep the dataset's token."""
    token_factor: Annotated[float, Range(0, 1000, "At 0 nothing would be learnt.", open="low")] = 3.0
    """With pivotal: learning rate of the new tokens relative to the LoRA's. cog-sdxl uses 3e-4 and 1e-4."""
    rank: Rank = 32
    """Rank of the LoRA's two matrices."""
    alpha: Annotated[int, Range(1, 4096)] = 32
    """Scale numerator of the LoRA: its weight in the base is alpha / rank."""
    targets: Annotated[str, OneOf(TARGETS)] = "attention"
    """Which layers get a LoRA: attention (query, key, value, out) or all (also feed-forward and convolutions)."""
    steps: TrainSteps = 1000
    """Number of optimizer updates."""
    schedule: tuple[tuple[TrainSize, TrainSteps], ...] = ()
    """(side px, steps) in sequence, such as ((768, 700), (1024, 300)); empty: the dataset's size throughout.
    A step at 3/4 of the side takes about half the time. Each side is a multiple of 32."""
    batch: Batch = 1
    """Pictures per step."""
    learning_rate: Annotated[float, Range(0, 2, open="low")] = 1e-4
    """Peak learning rate; cosine to zero after the warm-up. Prodigy's is 1, because it adapts its own step size."""
    warmup: Annotated[float, Range(0, 1)] = 0.05
    """Fraction of the steps in which the learning rate rises."""
    optimizer: Annotated[str, OneOf(OPTIMIZERS)] = "auto"
    """adamw8bit (a quarter of AdamW's state), adamw, prodigy (arXiv:2306.06101), or auto: fused adamw if the GPU has
    room for its state, else adamw8bit."""
    min_snr_gamma: Annotated[float, Range(0, 1000)] = 5.0
    """Cap of the signal-to-noise weight (min-SNR, arXiv:2303.09556); 0 is off."""
    noise_offset: Annotated[float, Range(0, 1)] = 0.0
    """Strength of the per-channel offset added to the noise."""
    caption_dropout: Annotated[float, Range(0, 1)] = 0.05
    """Fraction of the captions replaced by the empty one."""
    face_weight: Annotated[float, Range(1, 20, "Below 1 the person would not be learnt.")] = 1.0
    """Weight of the face in the loss relative to the rest, 1 to 20; 1 is off. A picture's mean weight is 1."""
    prior_weight: Annotated[float, Range(0, 100)] = 1.0
    """Weight of the loss over class images, if the dataset has any (DreamBooth's lambda)."""
    checkpointing: bool = False
    """Gradient checkpointing: less memory, about 1.35 times the time."""
    checkpoint_every_steps: Annotated[int, Range(1, 1_000_000)] = 100
    """Steps between checkpoints that an interrupted training resumes from."""
    checkpoint_every_minutes: Minutes = 5.0
    """Most minutes between checkpoints; 0 is off, then only steps count."""
    keep_checkpoints: Annotated[int, Range(1, 1000)] = 3
    """Number of newest checkpoints to keep; if one is damaged, the one before it is used."""
    snapshots: Annotated[int, Range(0, 1000)] = 0
    """Number of LoRA files to save in lora/previews/, evenly spread, the last at the end of the training; 0 is none."""
    ema: Annotated[float, Range(0, 1, "At 1 nothing would be learnt.", open="high")] = 0.0
    """Decay of a moving average of the LoRA, which is saved instead; 0 is off. 0.99 averages about 100 steps."""
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
        method = given.get("method", cls.method)
        unused = [name for name in UNUSED.get(method, ()) if name in given]
        demand(
            not unused,
            "; ".join(f"{name} is {given[name]}" for name in unused) + f", and method is {method!r}.",
            "That method does not use it.",
            "Leave it out, or choose another TrainConfig.method.",
        )
        return super().for_base(base, **find_base(base).presets.get(f"{cls.__name__}.{method}", {}) | given)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._demand_a_sound_optimizer()
        self._demand_a_sound_schedule()
        self._demand_sound_snapshots()

    def _demand_a_sound_optimizer(self) -> None:
        """Refuse rates that the optimizer can't learn with."""
        demand(
            self.optimizer == "prodigy" or 0 < self.learning_rate < 1,
            f"learning_rate is {self.learning_rate}.",
            "LoRAs are trained with 1e-5 to 5e-3, a whole U-Net with less, embeddings with more.",
            "Set TrainConfig.learning_rate, for example 1e-4.",
        )
        demand(
            self.optimizer != "prodigy" or 0.1 <= self.learning_rate <= 2,
            f"learning_rate is {self.learning_rate}, optimizer is 'prodigy'.",
            "Prodigy finds the size of its steps; the learning rate only scales it.",
            "Set TrainConfig.learning_rate to 1, or TrainConfig.optimizer to adamw.",
        )
        demand(
            self.optimizer != "prodigy" or self.method != "pivotal" or self.token_factor == 1,
            f"optimizer is 'prodigy', method is 'pivotal', token_factor is {self.token_factor:g}.",
            "Prodigy wants one learning rate for all that is trained.",
            "Set TrainConfig.token_factor to 1, or TrainConfig.optimizer to adamw.",
        )

    def _demand_sound_snapshots(self) -> None:
        """Refuse snapshots of other methods than a LoRA, and more snapshots than steps."""
        demand(
            not self.snapshots or self.method == "lora",
            f"snapshots is {self.snapshots}, method is {self.method!r}.",
            "A snapshot is a LoRA file.",
            "Set TrainConfig.snapshots to 0 or TrainConfig.method to lora.",
        )
        demand(
            self.snapshots <= self.steps,
            f"snapshots is {self.snapshots}, steps is {self.steps}.",
            "A snapshot is taken after a step, so there are at most as many.",
            "Lower TrainConfig.snapshots or raise TrainConfig.steps.",
        )

    def _demand_a_sound_schedule(self) -> None:
        """Refuse a schedule with another number of steps than `steps`."""
        total = sum(steps for _, steps in self.schedule)
        demand(
            not self.schedule or total == self.steps,
            f"schedule has {total} steps, steps is {self.steps}.",
            "The schedule says at which size each of the steps is made.",
            f"Set TrainConfig.steps to {total}, or change TrainConfig.schedule.",
        )
