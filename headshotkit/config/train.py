"""How the person is trained."""

from __future__ import annotations

from dataclasses import dataclass

from headshotkit.bases import find_base
from headshotkit.config.base import Config, demand, demand_known, demand_seed

OPTIMIZERS = ("auto", "adamw", "adamw8bit", "prodigy")
TARGETS = ("attention", "all")
METHODS = ("lora", "dreambooth", "textual-inversion", "pivotal")
UNUSED = {
    "lora": ("token_vectors", "token_factor"),
    "dreambooth": ("rank", "alpha", "targets", "token_vectors", "token_factor"),
    "textual-inversion": ("rank", "alpha", "targets", "token_factor"),
    "pivotal": (),
}
"""Method -> the settings of TrainConfig that mean nothing to it."""


@dataclass(frozen=True)
class TrainConfig(Config):
    """How the person is trained."""

    base: str = "sdxl"
    """The base to train on."""
    method: str = "lora"
    """What is trained: lora (small matrices beside the frozen base), dreambooth (every weight of the denoiser),
    textual-inversion (embeddings of new tokens alone) or pivotal (new tokens and a LoRA together)."""
    token_vectors: int = 4
    """Number of new tokens that stand for the person, with textual-inversion and pivotal; a prompt holds 75 in all.
    They begin as the class word's embedding. Captions and prompts go on saying the dataset's token."""
    token_factor: float = 3.0
    """With pivotal: learning rate of the new tokens relative to the LoRA's. cog-sdxl has 3e-4 to 1e-4."""
    rank: int = 32
    """Rank of the LoRA's two matrices."""
    alpha: int = 32
    """Scale numerator of the LoRA: its weight in the base is alpha / rank."""
    targets: str = "attention"
    """Which layers get a LoRA: attention (query, key, value, out) or all (also feed-forward and convolutions)."""
    steps: int = 1000
    """Number of optimizer updates."""
    schedule: tuple[tuple[int, int], ...] = ()
    """(side px, steps) one after another, such as ((768, 700), (1024, 300)); empty: the dataset's size throughout.
    A step at 3/4 of the side takes about half the time. Each side is a multiple of 32."""
    batch: int = 1
    """Pictures a step."""
    learning_rate: float = 1e-4
    """Peak learning rate; cosine to zero after the warm-up. Prodigy's is 1, for it finds the size of its steps."""
    warmup: float = 0.05
    """Fraction of the steps in which the learning rate rises."""
    optimizer: str = "auto"
    """adamw8bit (a quarter of AdamW's state), adamw, prodigy (arXiv:2306.06101), or auto: adamw, fused, where the GPU
    has room for its state, else adamw8bit."""
    min_snr_gamma: float = 5.0
    """Cap of the signal-to-noise weight (min-SNR, arXiv:2303.09556); 0 is off."""
    noise_offset: float = 0.0
    """Strength of the per-channel offset added to the noise."""
    caption_dropout: float = 0.05
    """Fraction of the captions replaced by the empty one."""
    face_weight: float = 1.0
    """Weight of the face in the loss relative to what surrounds it, 1 to 20; 1 is off. A picture's mean weight is 1."""
    prior_weight: float = 1.0
    """Weight of the loss over class images, where the dataset has any (DreamBooth's lambda)."""
    checkpointing: bool = False
    """Gradient checkpointing: less memory, about 1.35 times the time."""
    checkpoint_every_steps: int = 100
    """Steps between checkpoints that a killed training goes on from."""
    checkpoint_every_minutes: float = 5.0
    """Most minutes between checkpoints; 0 is off, so steps alone count."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints are kept; should one be damaged, the one before it serves."""
    snapshots: int = 0
    """LoRA files to leave in lora/previews/, evenly spread over the training, the last one at its end; 0 is none."""
    ema: float = 0.0
    """Decay of a moving average of the LoRA, which then is what is saved; 0 is off. 0.99 averages about 100 steps."""
    seed: int = 0
    """Seed of LoRA initialisation, noise, timesteps and order."""

    @classmethod
    def for_base(cls, base: str, **overrides):
        """As `Config.for_base`; the method's own preset of the base comes before the base's.

        Raises:
            UnknownBase: no base has that name.
            BadConfig: a setting does not exist, contradicts another, or means nothing to the method.
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
        demand_seed(self)
        demand_known(self, method=METHODS, targets=TARGETS, optimizer=OPTIMIZERS)
        self._demand_sound_tokens()
        self._demand_a_sound_optimizer()
        self._demand_counts()
        self._demand_a_sound_schedule()
        self._demand_sound_snapshots()
        self._demand_shares()

    def _demand_sound_tokens(self) -> None:
        """A number that a prompt has room for, and a rate at which they are learnt."""
        demand(
            1 <= self.token_vectors <= 32,
            f"token_vectors is {self.token_vectors}.",
            "A prompt holds 75 tokens, and has to say more than who it is.",
            "Set TrainConfig.token_vectors from 1 to 32.",
        )
        demand(
            self.token_factor > 0,
            f"token_factor is {self.token_factor}.",
            "Without a learning rate the new tokens would stay the class word.",
            "Set TrainConfig.token_factor above 0, for example 3.",
        )

    def _demand_a_sound_optimizer(self) -> None:
        """Rates that the optimizer can learn with."""
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

    def _demand_counts(self) -> None:
        """At least 1 of everything that is counted."""
        counts = ("rank", "alpha", "steps", "batch", "checkpoint_every_steps", "keep_checkpoints")
        positive = {n: getattr(self, n) for n in counts}
        demand(
            all(v >= 1 for v in positive.values()),
            "; ".join(f"{n} is {v}" for n, v in positive.items() if v < 1) + ".",
            "Each is a count of at least 1.",
            "Raise it in TrainConfig.",
        )

    def _demand_sound_snapshots(self) -> None:
        """Snapshots of a LoRA, and no more than steps."""
        demand(
            not self.snapshots or self.method == "lora",
            f"snapshots is {self.snapshots}, method is {self.method!r}.",
            "A snapshot is a LoRA file.",
            "Set TrainConfig.snapshots to 0 or TrainConfig.method to lora.",
        )
        demand(
            0 <= self.snapshots <= self.steps,
            f"snapshots is {self.snapshots}, steps is {self.steps}.",
            "A snapshot is taken after a step, so there are at most as many.",
            "Lower TrainConfig.snapshots or raise TrainConfig.steps.",
        )

    def _demand_shares(self) -> None:
        """Weights, shares and times within their ranges."""
        demand(
            1 <= self.face_weight <= 20,
            f"face_weight is {self.face_weight}.",
            "It is the face's weight relative to what surrounds it; below 1 the person would not be learnt.",
            "Set TrainConfig.face_weight in [1, 20], for example 3, or 1 for none.",
        )
        demand(
            0 <= self.ema < 1,
            f"ema is {self.ema}.",
            "It is the share of the earlier average that each step keeps, in [0, 1); at 1 nothing would be learnt.",
            "Set TrainConfig.ema, for example 0.99, or 0 for none.",
        )
        demand(
            self.checkpoint_every_minutes >= 0,
            f"checkpoint_every_minutes is {self.checkpoint_every_minutes}.",
            "It is a time, and 0 stands for none.",
            "Set TrainConfig.checkpoint_every_minutes, for example 5.",
        )

    def _demand_a_sound_schedule(self) -> None:
        """Sizes that the bases can make, counts of steps, and as many of them as `steps` says."""
        for px, steps in self.schedule:
            demand(
                px % 32 == 0 and px > 0 and steps >= 1,
                f"schedule has {steps} steps at {px} px.",
                "The autoencoder and the denoiser halve a picture several times, and each part has a step at least.",
                f"Set the size in TrainConfig.schedule to {max(32, round(px / 32) * 32)}, and 1 step or more.",
            )
        total = sum(steps for _, steps in self.schedule)
        demand(
            not self.schedule or total == self.steps,
            f"schedule has {total} steps, steps is {self.steps}.",
            "The schedule says at which size each of the steps is made.",
            f"Set TrainConfig.steps to {total}, or change TrainConfig.schedule.",
        )
