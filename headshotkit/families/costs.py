"""The costs of the families, SDXL's here, and the speeds of machines: the planner's figures, each with its source.

Costs were counted by `tests/benchmarks/counting.py`, rates were calibrated from public measurements. Nothing here was
measured on a T4.
"""

from __future__ import annotations

from dataclasses import dataclass

from headshotkit.config import METHODS
from headshotkit.config.families import FAMILIES
from headshotkit.core.errors import BadConfig
from headshotkit.families.places import code_at

GIB = 2**30
STEPS = tuple(f"{step}{how}" for step in ("step", *METHODS[1:]) for how in ("", "_checkpointed"))
"""A step of each method: "step" is a LoRA's (rank 32); with gradient checkpointing, or without. Text encoders are
counted where new tokens need them."""
KINDS = ("forward", "decode", "encode", "text", "step_half_norms", *STEPS, *(f"mini_{step}" for step in STEPS))
"""One pass of the U-Net; one picture through the autoencoder; one prompt through both text encoders; SDXL's training
steps (LoRA: attention), a LoRA's also with norms in float16; those of the embedded base (LoRA: all layers, float32)."""
SIZES_PX = (512, 768, 1024)
SIZES_OF = {"text": (1024,), **{f"mini_{step}": (192, 256) for step in STEPS}}
"""Sizes that a kind was counted at, if not SIZES_PX."""


@dataclass(frozen=True)
class Cost:
    """TFLOP of one call, peak GiB of its live tensors (weights included), GiB of its weights."""

    tflop: float
    peak_gib: float
    weights_gib: float


Figures = dict[tuple[str, int], tuple[float, float, float]]
"""(kind, px) -> TFLOP, peak GiB, weights GiB of one call, batch 1."""


@dataclass(frozen=True)
class FamilyCosts:
    """What a family costs, and how its parts work together.

    `guided_passes`: denoiser passes of a sampler step; 0: two in a guided step, one in another. `together`: passes that
    are one batch, so in memory together. `in_turn`: text encoders are dropped before the denoiser is loaded, else all
    parts are loaded at once. `slower`: time relative to SDXL's rates, central and pessimistic.
    """

    counted: Figures
    guided_passes: int = 0
    together: int = 2
    in_turn: bool = False
    slower: tuple[float, float] = (1.0, 1.0)


def costs_of(family: str) -> FamilyCosts | None:
    """Return a family's costs; None if none were counted."""
    place = FAMILIES[family].costs
    return code_at(place) if place else None


# (TFLOP, peak GiB, weights GiB) of batch 1, by `python tests/benchmarks/counting.py`, with
# torch 2.13.0, diffusers 0.42.1, peft 0.21.2, transformers 5.23.0; tests/planning/test_plan.py counts them again.
COUNTED: Figures = {
    ("forward", 512): (1.589, 4.821, 4.782),
    ("forward", 768): (3.641, 4.869, 4.782),
    ("forward", 1024): (6.761, 4.936, 4.782),
    ("step", 512): (3.226, 6.905, 4.955),
    ("step", 768): (7.648, 9.149, 4.955),
    ("step", 1024): (14.703, 12.290, 4.955),
    ("step_checkpointed", 512): (4.423, 5.190, 4.955),
    ("step_checkpointed", 768): (10.406, 5.365, 4.955),
    ("step_checkpointed", 1024): (19.892, 5.627, 4.955),
    ("step_half_norms", 512): (3.226, 6.622, 4.955),
    ("step_half_norms", 768): (7.648, 8.514, 4.955),
    ("step_half_norms", 1024): (14.703, 11.163, 4.955),
    ("decode", 512): (2.515, 0.531, 0.156),
    ("decode", 768): (5.754, 1.000, 0.156),
    ("decode", 1024): (10.470, 1.656, 0.156),
    ("encode", 512): (1.117, 0.468, 0.156),
    ("encode", 768): (2.609, 0.859, 0.156),
    ("encode", 1024): (4.879, 1.406, 0.156),
    ("text", 1024): (0.111, 1.531, 1.523),
    ("mini_step", 192): (0.003739, 0.07946, 0.06914),
    ("mini_step", 256): (0.006617, 0.08453, 0.06914),
    ("mini_step_checkpointed", 192): (0.005169, 0.07918, 0.06914),
    ("mini_step_checkpointed", 256): (0.00913, 0.08049, 0.06914),
    ("mini_dreambooth", 192): (0.004497, 0.119, 0.05948),
    ("mini_dreambooth", 256): (0.007967, 0.119, 0.05948),
    ("mini_dreambooth_checkpointed", 192): (0.005489, 0.119, 0.05948),
    ("mini_dreambooth_checkpointed", 256): (0.009713, 0.119, 0.05948),
    ("mini_textual-inversion", 192): (0.003061, 0.08112, 0.07326),
    ("mini_textual-inversion", 256): (0.005364, 0.08617, 0.07326),
    ("mini_textual-inversion_checkpointed", 192): (0.004054, 0.07629, 0.07326),
    ("mini_textual-inversion_checkpointed", 256): (0.00711, 0.07799, 0.07326),
    ("mini_pivotal", 192): (0.003844, 0.09393, 0.08292),
    ("mini_pivotal", 256): (0.006722, 0.09898, 0.08292),
    ("mini_pivotal_checkpointed", 192): (0.005274, 0.09363, 0.08292),
    ("mini_pivotal_checkpointed", 256): (0.009235, 0.09496, 0.08292),
    ("dreambooth", 512): (4.741, 19.26, 9.565),
    ("dreambooth", 768): (11, 19.6, 9.565),
    ("dreambooth", 1024): (20.62, 22.43, 9.565),
    ("dreambooth_checkpointed", 512): (5.943, 19.14, 9.565),
    ("dreambooth_checkpointed", 768): (13.77, 19.24, 9.565),
    ("dreambooth_checkpointed", 1024): (25.83, 19.39, 9.565),
    ("textual-inversion", 512): (3.475, 7.974, 6.305),
    ("textual-inversion", 768): (7.872, 9.905, 6.305),
    ("textual-inversion", 1024): (14.89, 12.61, 6.305),
    ("textual-inversion_checkpointed", 512): (4.677, 6.581, 6.305),
    ("textual-inversion_checkpointed", 768): (10.64, 6.81, 6.305),
    ("textual-inversion_checkpointed", 1024): (20.1, 7.13, 6.305),
    ("pivotal", 512): (3.543, 8.249, 6.479),
    ("pivotal", 768): (8.015, 10.18, 6.479),
    ("pivotal", 1024): (15.14, 12.87, 6.479),
    ("pivotal_checkpointed", 512): (4.766, 6.829, 6.479),
    ("pivotal_checkpointed", 768): (10.83, 6.993, 6.479),
    ("pivotal_checkpointed", 1024): (20.43, 7.303, 6.479),
}
SDXL = FamilyCosts(COUNTED)


def step_kind(method: str, checkpointing: bool, family: str = "sdxl", mini: bool = False) -> str:
    """Return the kind of cost that a training step of a family, or of the embedded base, is, as `families` runs it.

    Checkpointed ones were counted with norms in float32, so they take a little less.

    >>> step_kind("lora", False), step_kind("lora", False, "flux"), step_kind("pivotal", True, mini=True)
    ('step_half_norms', 'step', 'mini_pivotal_checkpointed')
    """
    name = ("mini_" if mini else "") + ("step" if method == "lora" else method)
    if checkpointing:
        return f"{name}_checkpointed"
    costs = costs_of(family)
    half = f"{name}_half_norms"
    return half if costs and (half, SIZES_PX[-1]) in costs.counted else name


def cost(kind: str, px: int = 1024, batch: int = 1, family: str = "sdxl") -> Cost:
    """Return a counted cost; FLOPs and the memory beyond weights and DreamBooth's gradients grow with the batch.

    Args:
        kind: one of KINDS for SDXL; of `costs_flow.FLOW_KINDS` for the flow-matching families.
        px: side of the square picture, one of SIZES_PX, or of SIZES_OF for some kinds.
        batch: pictures at once.
        family: one of `config.families.FAMILIES`.
    Raises:
        BadConfig: that size was not counted, or nothing of that family.

    >>> cost("forward", 1024, batch=2).tflop
    13.522
    """
    costs = costs_of(family)
    if costs is None:
        raise BadConfig(
            f"the cost of {kind} is not known.", f"No costs were counted for family {family}.", "Go on without a plan."
        )
    counted = costs.counted.get((kind, px))
    if counted is None:
        raise BadConfig(
            f"the cost of {kind} at {px} px is not known.",
            f"It was counted at {', '.join(str(size) for size in SIZES_OF.get(kind, SIZES_PX))} px.",
            "Train at one of these sizes, or without a plan.",
        )
    tflop, peak, weights = counted
    fixed = min(peak, 2 * weights if "dreambooth" in kind else weights)  # a gradient of each weight, in float32 too
    return Cost(tflop * batch, fixed + (peak - fixed) * batch, weights)


@dataclass(frozen=True)
class Rates:
    """The speed and the memory of a machine. A pair is (central, pessimistic).

    `memory_gib`: available to a process; 0 is unknown, so not checked. `render_tflops`, `train_tflops`: TFLOP/s that
    SDXL's U-Net reaches. `fixed_s`: seconds a picture outside the U-Net with a float16 VAE; `fixed_fp32_s`: with the
    float32 one, as in the public measurement. `setup`: whether packages and weights have to be fetched first.
    """

    name: str
    memory_gib: float
    render_tflops: tuple[float, float]
    train_tflops: tuple[float, float]
    fixed_s: tuple[float, float]
    fixed_fp32_s: float
    source: str
    setup: bool = True

    def seconds(self, stage: str, tflop: float) -> tuple[float, float]:
        """Return the seconds of U-Net work, central and pessimistic; stage is "train" or "generate"."""
        rates = self.train_tflops if stage == "train" else self.render_tflops
        return tuple(tflop / rate for rate in rates)


def public_seconds(rates: Rates, steps: int, guided: bool, px: int = 1024) -> float:
    """Return the seconds of a picture in the public benchmark's setting: stock pipeline, float32 VAE, batch 1."""
    tflop = steps * cost("forward", px, batch=2 if guided else 1).tflop
    return rates.seconds("generate", tflop)[0] + rates.fixed_fp32_s


BLOG = "huggingface.co/blog/lcm_lora, SDXL 25 steps and LCM 4 steps, batch 1"
OVERHEAD_S = 0.5
"""Seconds a picture for the loop and the PNG; estimate."""
PESSIMISTIC = 0.8
"""Pessimistic rate relative to the central one; estimate after a T4's 8 of 10 TFLOP/s in training."""
TRAIN_SHARE = 10 / 17.2
"""Training's TFLOP/s relative to rendering's where only rendering was measured; estimate after the T4."""
GUIDED_25_STEPS, LCM_4_STEPS = 50, 4
"""U-Net passes of the benchmark's two pictures."""


def calibrate(name: str, memory_gib: float, seconds_25: float, seconds_lcm: float) -> Rates:
    """Compute rates from the two public measurements of one machine: two equations, two unknowns.

    The T4's come out as 17.2 TFLOP/s and 6.8 s; training there reaches about 10 (8 to 13).
    """
    passes = GUIDED_25_STEPS - LCM_4_STEPS
    tflops = passes * cost("forward").tflop / (seconds_25 - seconds_lcm)
    fixed_fp32 = seconds_lcm - LCM_4_STEPS * cost("forward").tflop / tflops
    fixed = cost("decode").tflop / tflops + OVERHEAD_S
    training = tflops * TRAIN_SHARE
    source = f"{BLOG}: {seconds_25} s, {seconds_lcm} s; training estimated as {TRAIN_SHARE:.2f} of rendering"
    return Rates(
        name, memory_gib, (tflops, PESSIMISTIC * tflops), (training, PESSIMISTIC * training),
        (fixed, 2 * fixed), fixed_fp32, source,
    )  # fmt: skip


GPUS = {
    rates.name: rates
    for rates in (
        # 14.7 of 16 GB are usable on Colab's T4; of the other GPUs' memory 92 %, an estimate.
        calibrate("t4", 14.7, 26.5, 8.4),
        calibrate("a100", 74.0, 3.8, 1.2),
        calibrate("rtx3090", 22.0, 7.0, 1.4),
        calibrate("rtx4090", 22.0, 3.4, 0.7),
        Rates("cpu", 0.0, (0.0, 0.0), (0.0, 0.0), (0.0, 0.0), 0.0,
              "`make demo` on two cores of an AMD EPYC (tests/benchmarks/README.md)", setup=False),
    )
}  # fmt: skip


def gpu_named(name: str) -> tuple[str, str]:
    """Return the one of GPUS that fits the name that CUDA gives a GPU, and why: (one of GPUS, reason).

    >>> gpu_named("Tesla T4")[0], gpu_named("NVIDIA A100-SXM4-40GB")[0], gpu_named("NVIDIA GeForce RTX 3090")[0]
    ('t4', 'a100', 'rtx3090')
    >>> gpu_named("NVIDIA L4")
    ('t4', "no speeds are known for NVIDIA L4; a T4's are used until steps have been timed")
    """
    rates = rates_of(name)
    if rates is None:
        return "t4", f"no speeds are known for {name}; a T4's are used until steps have been timed"
    return rates.name, f"the GPU is a {name}"


def rates_of(name: str) -> Rates | None:
    """Return the rates of a GPU whose CUDA name a text holds; None if no rates are known.

    >>> rates_of("found CUDA GPU Tesla T4").name, rates_of("found no GPU")
    ('t4', None)
    """
    words = name.lower().replace("-", " ").split()
    plain = "".join(words)  # a short name must be a whole word: it may be part of another name
    fits = {known: known.removeprefix("rtx") in words or (len(known) > 3 and known in plain) for known in GPUS}
    return next((GPUS[known] for known, is_it in fits.items() if is_it), None)


MINI_STEP_S = {256: (0.26, 0.40), 192: (0.17, 0.26)}
"""Seconds of a LoRA step of the embedded base, batch 4, on two cores, by size in px. Measured at 256 px: 257 s for
1,000. At 3/4 of the size a step takes 0.66 of that by process time (0.162 and 0.246 s on one core)."""
MINI_STEP_FIXED = {256: 0.2, 192: 0.31}
"""Share of such a step that a smaller batch does not save: hundreds of small operations. It follows from the two sizes
of MINI_STEP_S, whose FLOPs are 1.77 to 1."""
MINI_METHOD_STEP_S = {"lora": 0.26, "dreambooth": 0.32, "textual-inversion": 0.21, "pivotal": 0.31}
"""Method -> seconds of a step there, batch 4. Processor time of one thread, median of 8 steps: 0.263, 0.322, 0.213,
0.308; the LoRA's is that of MINI_STEP_S, which was measured by the clock on free cores."""
MINI_STEP_PICTURES = 4
MINI_HEADSHOT_S = (1.0, 1.8)
"""Seconds of a 256 px headshot of 20 sampler steps there, batch 8, base-model guidance in every third step, judging
included: by the clock 33 and 35 s for 35 headshots on free cores. Pessimistic: process time of one thread, 1.77 s for
each of 24."""
MINI_DRAWING_GIB, MINI_STEP_GIB = 0.9, 0.25
"""GiB besides the weights that a picture of 1024 px takes on the embedded base: drawn with guidance and decoded; in a
training step. Drawing was measured (tests/benchmarks/README.md), the step follows from COUNTED's at 256 px."""
MINI_WORD_PASSES = 1 + 2 / 3
"""Denoiser passes a sampler step there with base-model guidance: three in every third step."""
SCORE_S, MINI_SCORE_S = (0.3, 0.6), (0.1, 0.2)
"""Seconds of scoring a picture by both recognisers, on a GPU machine's CPU and with the embedded base; estimates."""
MINI_RESTORE_S = 0.8, 2.0
"""Seconds of restoring a headshot with the embedded base's own restorer, all fidelities included; measured."""
