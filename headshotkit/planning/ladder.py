"""The planner's choices, and what each stage of a choice takes: minutes and GiB."""

from __future__ import annotations

from dataclasses import dataclass, replace

from headshotkit.config import EvaluateConfig, GenerateConfig, TrainConfig
from headshotkit.config.bases import BASES, Base, find_base
from headshotkit.config.families import FAMILIES
from headshotkit.families.costs import (
    MINI_HEADSHOT_S,
    MINI_METHOD_STEP_S,
    MINI_RESTORE_S,
    MINI_SCORE_S,
    MINI_STEP_FIXED,
    MINI_STEP_S,
    MINI_WORD_PASSES,
    SCORE_S,
    Cost,
    FamilyCosts,
    Rates,
    cost,
    costs_of,
    step_kind,
)
from headshotkit.planning.schedule import px_at

PAIRS = EvaluateConfig().pairs
"""Most first attempts that evaluation draws without the LoRA as well."""


@dataclass(frozen=True)
class Choice:
    """One option of the ladder.

    `schedule`: (side px, steps), in order. `guidance_share`: fraction of the sampler steps with guidance, the first
    ones. `sacrificed`: what it gives up compared with the option before; `stage`: the stage that this changes.
    `pairs`: first attempts that evaluation draws without the LoRA as well.
    """

    schedule: tuple[tuple[int, int], ...]
    batch: int
    sampler_steps: int
    guidance_share: float
    sacrificed: str = ""
    stage: str = "train"
    pairs: int = PAIRS

    @property
    def steps(self) -> int:
        """Return the number of training steps."""
        return sum(steps for _, steps in self.schedule)

    def px_at(self, step: int) -> int:
        """Return the size that a training step (from 0) is done at; the last one beyond the schedule."""
        return px_at(self.schedule, step)

    def with_steps(self, steps: int) -> Choice:
        """Return the same with a user's number of training steps, split among the sizes as before; 0: unchanged."""
        if not steps:
            return self
        parts, done, end = [], 0, 0
        for px, count in self.schedule:
            end += count
            share = round(steps * end / self.steps) - done
            parts += [(px, share)] if share else []
            done += share
        return replace(self, schedule=tuple(parts))


_BEST = Choice(((1024, 1000),), 2, 25, 1.0)
_ONE = replace(_BEST, batch=1, sacrificed="batch 2 (steadier gradient)")
_SHARE = replace(_ONE, guidance_share=0.6, stage="generate",
                 sacrificed="guidance in the last 40 % of the sampler steps (little changes by then)")  # fmt: skip
_SPLIT = replace(_SHARE, schedule=((768, 700), (1024, 300)), stage="train",
                 sacrificed="1024 px in the first 70 % of the training; the rest uses it")  # fmt: skip
_20 = replace(_SPLIT, sampler_steps=20, stage="generate", sacrificed="5 of 25 sampler steps")
_PAIRS = replace(_20, pairs=6, stage="evaluate", sacrificed="6 of 12 pairs with and without the LoRA in the evaluation")
_800 = replace(_PAIRS, schedule=((768, 560), (1024, 240)), stage="train",
               sacrificed="{lost} of {first} training steps")  # fmt: skip
_600 = replace(_800, schedule=((768, 420), (1024, 180)), sacrificed="{lost} more training steps")
_16 = replace(_600, sampler_steps=16, guidance_share=0.4, stage="generate",
              sacrificed="4 more sampler steps, and guidance in 20 % more of them")  # fmt: skip
_768 = replace(_16, schedule=((768, 600),), stage="train", sacrificed="1024 px in training")
_400 = replace(_768, schedule=((768, 400),), sacrificed="{lost} more training steps, so {left} are left")
_512 = replace(_400, schedule=((512, 400),), sacrificed="768 px in training")
_MINI = Choice(((256, 1000),), 4, 20, 0.2)
_MINI_SPLIT = replace(_MINI, schedule=((192, 700), (256, 300)),
                      sacrificed="256 px in the first 70 % of the training; the rest uses it")  # fmt: skip
_MINI_400 = replace(_MINI_SPLIT, schedule=((192, 280), (256, 120)), sacrificed="{lost} of {first} training steps")
_MINI_12 = replace(_MINI_400, sampler_steps=12, sacrificed="8 of 20 sampler steps", stage="generate")
_MINI_PAIRS = replace(_MINI_12, pairs=6, sacrificed=_PAIRS.sacrificed, stage="evaluate")
_MINI_2 = replace(_MINI_PAIRS, batch=2, sacrificed="batch 4 (steadier gradient)", stage="train")
_MINI_192 = replace(_MINI_2, schedule=((192, 400),), batch=1, sacrificed="batch 2, and 256 px in training")
_F = Choice(((1024, 1000),), 1, 28, 1.0)
_F_768 = replace(_F, schedule=((768, 1000),), sacrificed="1024 px in training")
_F_20 = replace(_F_768, sampler_steps=20, sacrificed="8 of 28 sampler steps", stage="generate")
_F_600 = replace(_F_20, schedule=((768, 600),), sacrificed="{lost} of {first} training steps", stage="train")
_F_512 = replace(_F_600, schedule=((512, 600),), sacrificed="768 px in training")
_F_400 = replace(_F_512, schedule=((512, 400),), sacrificed="{lost} more training steps, so {left} are left")
_F_PAIRS = replace(_F_400, pairs=4, stage="evaluate",
                   sacrificed="8 of 12 pairs with and without the LoRA in the evaluation")  # fmt: skip
_F_12 = replace(_F_PAIRS, sampler_steps=12, sacrificed="8 more sampler steps, so 12 are left", stage="generate")
_FLOW = (_F, _F_768, _F_20, _F_600, _F_512, _F_400, _F_PAIRS, _F_12)
_SDXL = (_BEST, _ONE, _SHARE, _SPLIT, _20, _PAIRS, _800, _600, _16, _768, _400, _512)
COSTS = {name: costs for name in FAMILIES if (costs := costs_of(name))}
"""The families that can be planned. They and the embedded base, mini, are the kinds below."""


def _ladder(options: tuple[Choice, ...], steps: int) -> tuple[Choice, ...]:
    """Return the options for a training of at most `steps`, with the numbers of what each sacrifices."""
    made: list[Choice] = []
    for option in options:
        one = option.with_steps(round(option.steps * steps / options[0].steps))
        before = made[-1].steps if made else steps
        text = option.sacrificed.format(lost=before - one.steps, first=steps, left=one.steps)
        made.append(replace(one, sacrificed=text))
    return tuple(made)


def _best_steps(base: str, method: str) -> int:
    """Return the training steps of a base's preset for a method."""
    settings = BASES[base].presets
    known = settings["TrainConfig"] | settings.get(f"TrainConfig.{method}", {})
    return known.get("steps", TrainConfig().steps)


_OPTIONS = {
    "mini": (_MINI, _MINI_SPLIT, _MINI_400, _MINI_12, _MINI_PAIRS, _MINI_2, _MINI_192),
    **{name: _FLOW if costs.in_turn else _SDXL for name, costs in COSTS.items()},
}
LADDERS = {kind: _ladder(options, options[0].steps) for kind, options in _OPTIONS.items()}
"""Best first, for a LoRA. Their order and their end are estimates by what a headshot shows, not tried."""
METHOD_LADDERS = {(kind, method): _ladder(_OPTIONS[kind], _best_steps(kind, method))
                  for kind in _OPTIONS if kind in BASES for method in BASES[kind].spec.methods}  # fmt: skip
"""The same for the other methods: their presets' steps in the LoRA's proportions."""

# Minutes, central and pessimistic, of fixed work: SDXL's are estimates for a free T4, the embedded base's were measured
# on two cores. "load" is the base's in each stage that draws; "begin" comes before the first training step: loading
# the base and encoding pictures and captions. "evaluate" is without drawing and scoring.
FIXED = {
    "sdxl": {"install": (1.5, 2.5), "download": (1.5, 3.0), "check": (0.5, 1.0), "prepare": (0.2, 0.4),
             "begin": (0.7, 1.2), "load": (0.5, 1.0), "restore": (1.0, 1.5), "evaluate": (0.2, 0.4),
             "gallery": (0.1, 0.2)},
    "mini": {"check": (0.07, 0.15), "prepare": (0.01, 0.03), "begin": (0.02, 0.05), "load": (0.01, 0.03),
             "restore": (0.1, 0.2), "evaluate": (0.03, 0.08), "gallery": (0.01, 0.03)},
}  # fmt: skip


def _fixed_flow(family: str) -> dict[str, tuple[float, float]]:
    """Return the same for a flow-matching base: fetching and loading takes time in proportion to its size."""
    sdxl = FIXED["sdxl"]
    size_gb = next((base.download_gb for base in BASES.values() if base.family == family), Base.download_gb)
    larger = size_gb / BASES["sdxl"].download_gb
    download, load = (tuple(minutes * larger for minutes in sdxl[stage]) for stage in ("download", "load"))
    begin = tuple(a + b for a, b in zip(sdxl["prepare"], load, strict=True))
    return sdxl | {"download": download, "load": load, "begin": begin}


FIXED |= {name: _fixed_flow(name) if costs.in_turn else FIXED["sdxl"] for name, costs in COSTS.items()}
STAGES = ("install", "check", "prepare", "download", "train", "pick", "generate", "restore", "evaluate", "gallery")
ATTEMPTS = dict.fromkeys(COSTS, 1.2) | {"mini": 2.4}
"""Rendered headshots for one that is kept: 36 for 24 on mini (tests/benchmarks/README.md), else estimates."""
SLACK, CONTEXT_GIB = 1.1, 0.4
"""Fragmentation, and CUDA's own memory; the upper end of 5 to 10 %, the middle of 0.3 to 0.5 GiB."""
OPTIMIZER_GIB = dict.fromkeys(COSTS, 0.09) | {"mini": 0.02}
"""8-bit Adam's two bytes for each of the LoRA's 46.4 M parameters; Adam's eight for each of mini's 2.6 M; the other
families' have fewer than SDXL's."""
WITHOUT_LORA_GIB = 1.779
"""Memory of base-model guidance besides SDXL: the original weights of the layers with a LoRA, float16."""
MEASURED_SPREAD = 1.05
"""Pessimistic seconds of a step relative to measured ones; estimate."""
RELATED_SPREAD = 1.3
"""The same for work that was not measured, on a machine whose training steps were; estimate."""


@dataclass(frozen=True)
class Task:
    """The work to plan: everything, or the rest of a run.

    `memory_gib`: a stage's limit on the GPU, 0 is not checked; `train_gib`: the training's limit, if lower.
    `done`: finished stages. `steps_done`: of the training. `slower`: measured seconds of a step relative to the
    central ones, 0 if nothing was measured. `steps`, `batch`, `checkpointing`: of the training, if the user set them.
    `method`: of the training. `prior`: whether class images are trained as well, as many as photos a step.
    `class_images`: those still to draw. `pick`: pictures that picking draws, 0: no picking.
    `begun`: the training's base is loaded, so only its steps are left. `drawing_slower`: as `slower`, of a picture.
    `worded`: whether headshots are drawn with base-model guidance.
    """

    rates: Rates
    base: str
    count: int
    minutes: float
    memory_gib: float
    train_gib: float = 0.0
    done: tuple[str, ...] = ()
    steps_done: int = 0
    slower: float = 0.0
    steps: int = 0
    batch: int = 0
    checkpointing: bool | None = None
    method: str = "lora"
    prior: bool = False
    class_images: int = 0
    pick: int = 0
    begun: bool = False
    drawing_slower: float = 0.0
    worded: bool = False

    @property
    def ladder(self) -> tuple[Choice, ...]:
        """Return the available choices, best first."""
        return METHOD_LADDERS.get((self.kind, self.method), LADDERS[self.kind])

    @property
    def kind(self) -> str:
        """Return the ladder's name: mini, or the base's family."""
        return "mini" if self.base == "mini" else find_base(self.base).family

    @property
    def costs(self) -> FamilyCosts:
        """Return the costs of the base's family."""
        return COSTS[find_base(self.base).family]

    def cost(self, kind: str, px: int = 1024, batch: int = 1):
        """Return a counted cost of the base's family."""
        return cost(kind, px, batch, find_base(self.base).family)

    def step_cost(self, choice: Choice, px: int, checkpointing: bool) -> Cost:
        """Return a training step's counted cost; class images add a second loss, of as many pictures, held as well."""
        kind = step_kind(self.method, checkpointing, find_base(self.base).family, mini=self.kind == "mini")
        return self.cost(kind, px, choice.batch * (2 if self.prior else 1))

    def seconds(self, stage: str, tflop: float) -> tuple[float, float]:
        """Return the denoiser's seconds for that much work, central and pessimistic."""
        pairs = zip(self.rates.seconds(stage, tflop), self.costs.slower, strict=True)
        return tuple(seconds * factor for seconds, factor in pairs)

    def room_gib(self, stage: str) -> float:
        """Return a stage's limit on the GPU."""
        return self.train_gib if stage == "train" and self.train_gib else self.memory_gib or float("inf")


@dataclass(frozen=True)
class Stage:
    """One planned stage: minutes, central and pessimistic, and GiB of the GPU at its peak, slack included."""

    name: str
    minutes: float
    pessimistic: float
    peak_gib: float


def stages_of(task: Task, choice: Choice, checkpointing: bool) -> tuple[Stage, ...]:
    """Return the stages still to do, in order."""
    computed = {"prepare": _prepare_minutes, "train": _train_minutes, "pick": _pick_minutes,
                "generate": _generate_minutes, "restore": _restore_minutes, "evaluate": _evaluate_minutes}  # fmt: skip
    made = []
    for name in STAGES:
        left_out = name in task.done or (name == "pick" and not task.pick)
        if left_out or (name not in computed and name not in FIXED[task.kind]):
            continue
        pair = computed[name](task, choice, checkpointing) if name in computed else on_cpu(task, FIXED[task.kind][name])
        made.append(Stage(name, *pair, _peak_gib(task, choice, checkpointing, name)))
    return tuple(made)


def on_cpu(task: Task, pair: tuple[float, float]) -> tuple[float, float]:
    """Return a CPU time, scaled by this machine's measured training steps if there are any."""
    if task.kind != "mini" or not task.slower:
        return pair
    return pair[0] * task.slower, pair[0] * task.slower * RELATED_SPREAD


def step_seconds(task: Task, choice: Choice, px: int, checkpointing: bool) -> tuple[float, float]:
    """Return the seconds of a training step, central and pessimistic; measured ones take precedence."""
    counted = task.step_cost(choice, px, checkpointing).tflop
    if task.kind == "mini":
        timed = cost(step_kind(task.method, False, mini=True), px, LADDERS["mini"][0].batch).tflop
        fixed, losses = MINI_STEP_FIXED[px], 2 if task.prior else 1
        factor = MINI_METHOD_STEP_S[task.method] / MINI_METHOD_STEP_S["lora"]
        factor *= fixed * losses + (1 - fixed) * counted / timed
        pair = tuple(seconds * factor for seconds in MINI_STEP_S[px])
    else:
        pair = task.seconds("train", counted)
    return (pair[0] * task.slower, pair[0] * task.slower * MEASURED_SPREAD) if task.slower else pair


def optimizer_gib(task: Task, weights_gib: float) -> float:
    """Return the GiB of Adam's state: of a LoRA, of a whole U-Net (`weights_gib` in float32), or of a few tokens.

    For each trained number of four bytes it has two on a GPU (8-bit Adam), and eight on a CPU.
    """
    if task.method == "dreambooth":
        return weights_gib * (8 if task.kind == "mini" else 2) / 4
    return 0.0 if task.method == "textual-inversion" else OPTIMIZER_GIB[task.kind]


def picture_seconds(task: Task, steps: int, guidance_share: float, words: bool = False) -> tuple[float, float]:
    """Return the seconds of a picture, central and pessimistic; measured ones replace planned ones.

    Args:
        steps: of the sampler.
        guidance_share: fraction of them with guidance; 0 is none.
        words: whether base-model guidance is on, as in the embedded base's headshots.
    """
    if task.kind == "mini":
        passes = steps * (MINI_WORD_PASSES if words else 1 + guidance_share)
        usual = LADDERS["mini"][0].sampler_steps * MINI_WORD_PASSES
        pair = tuple(seconds * passes / usual for seconds in MINI_HEADSHOT_S)
    else:
        passes = steps * (task.costs.guided_passes or 1 + guidance_share)
        drawing, fixed = task.seconds("generate", passes * task.cost("forward").tflop), task.rates.fixed_s
        if task.costs.in_turn:  # autoencoder and text encoders in float32
            texts = task.rates.seconds("train", task.cost("text").tflop)
            fixed = tuple(task.rates.fixed_fp32_s * factor + text for factor, text in zip((1, 2), texts, strict=True))
        pair = tuple(a + b for a, b in zip(drawing, fixed, strict=True))
    if task.drawing_slower:
        return pair[0] * task.drawing_slower, pair[0] * task.drawing_slower * MEASURED_SPREAD
    return on_cpu(task, pair)


def drawing_minutes(task: Task, pictures: float, seconds: tuple[float, float]) -> tuple[float, float]:
    """Return the minutes of loading the base and drawing."""
    load = on_cpu(task, FIXED[task.kind]["load"])
    return tuple(a + pictures * b / 60 for a, b in zip(load, seconds, strict=True))


def headshot_seconds(task: Task, choice: Choice) -> tuple[float, float]:
    """Return the seconds of a headshot drawn by a choice's settings."""
    return picture_seconds(task, choice.sampler_steps, choice.guidance_share, words=task.kind == "mini")


def _prepare_minutes(task: Task, choice: Choice, checkpointing: bool) -> tuple[float, float]:
    """Return the minutes of cutting the training pictures and drawing the missing class images."""
    cutting = on_cpu(task, FIXED[task.kind]["prepare"])
    if not task.class_images:
        return cutting
    config = GenerateConfig.for_base(task.base).without_base_guidance()
    drawing = drawing_minutes(
        task, task.class_images, picture_seconds(task, config.sampler_steps, config.guidance_share)
    )
    return tuple(a + b for a, b in zip(cutting, drawing, strict=True))


def _train_minutes(task: Task, choice: Choice, checkpointing: bool) -> tuple[float, float]:
    """Return the minutes of the remaining training steps, and of loading and encoding before the first."""
    done, sums = task.steps_done, [0.0, 0.0] if task.begun else list(FIXED[task.kind]["begin"])
    for px, steps in choice.schedule:
        left = max(0, steps - done)
        done = max(0, done - steps)
        for place, seconds in enumerate(step_seconds(task, choice, px, checkpointing)):
            sums[place] += left * seconds / 60
    return sums[0], sums[1]


def _pick_minutes(task: Task, choice: Choice, checkpointing: bool) -> tuple[float, float]:
    """Return the minutes of picking; it draws by the base's preset, not by the plan."""
    config = GenerateConfig.for_base(task.base)
    seconds = picture_seconds(task, config.sampler_steps, config.guidance_share, words=task.kind == "mini")
    return drawing_minutes(task, task.pick, seconds)


def _generate_minutes(task: Task, choice: Choice, checkpointing: bool) -> tuple[float, float]:
    """Return the minutes of all headshots, second attempts included."""
    return drawing_minutes(task, task.count * ATTEMPTS[task.kind], headshot_seconds(task, choice))


def _restore_minutes(task: Task, choice: Choice, checkpointing: bool) -> tuple[float, float]:
    """Return the minutes of restoring all headshots."""
    if task.kind != "mini":
        return FIXED[task.kind]["restore"]
    fixed = zip(FIXED[task.kind]["restore"], MINI_RESTORE_S, strict=True)
    return on_cpu(task, tuple(minutes + task.count * seconds / 60 for minutes, seconds in fixed))


def _evaluate_minutes(task: Task, choice: Choice, checkpointing: bool) -> tuple[float, float]:
    """Return the minutes of drawing the bare base's pictures, and of scoring them and all headshots."""
    pairs = min(choice.pairs, task.count)
    files = task.count * ATTEMPTS[task.kind] + pairs
    scoring = MINI_SCORE_S if task.kind == "mini" else SCORE_S
    other = tuple(a + files * b / 60 for a, b in zip(FIXED[task.kind]["evaluate"], scoring, strict=True))
    drawing = drawing_minutes(task, pairs, headshot_seconds(task, choice))
    return tuple(a + b for a, b in zip(drawing, on_cpu(task, other), strict=True))


def _peak_gib(task: Task, choice: Choice, checkpointing: bool, name: str) -> float:
    """Return a stage's peak GPU memory, with slack; 0 if unused or unknown. Mini's is the host's."""
    drawn = ("pick", "generate", "evaluate")
    if name not in (("train",) if task.kind == "mini" else ("prepare", "train", *drawn)):
        return 0.0
    name = "generate" if name in drawn or (name == "prepare" and task.class_images) else name
    if name == "train":
        steps = [task.step_cost(choice, px, checkpointing) for px, _ in choice.schedule]
        peak = max(step.peak_gib for step in steps) + optimizer_gib(task, steps[0].weights_gib)
    elif task.costs.in_turn:
        peak = _flow_peak_gib(task, name)
    else:  # the whole pipeline is loaded, and its parts run one after the other
        unet, text = task.cost("forward", batch=task.costs.together), task.cost("text")
        vae = task.cost("decode" if name == "generate" else "encode")
        working = [one.peak_gib - one.weights_gib for one in ((unet, vae) if name == "generate" else (vae,))]
        peak = unet.weights_gib + text.weights_gib + vae.weights_gib + max(working)
        if name == "generate" and task.worded:
            peak += {"dreambooth": unet.weights_gib, "textual-inversion": 0.0}.get(task.method, WITHOUT_LORA_GIB)
    return peak * SLACK + (0.0 if task.kind == "mini" else CONTEXT_GIB)


def _flow_peak_gib(task: Task, name: str) -> float:
    """Return the peak of preparing or generating: first text encoders only, then autoencoder and denoiser."""
    text, vae = task.cost("text"), task.cost("decode" if name == "generate" else "encode")
    if name == "prepare":
        return max(text.peak_gib, vae.peak_gib) + vae.weights_gib
    denoiser = task.cost("forward", batch=task.costs.together)
    working = max(one.peak_gib - one.weights_gib for one in (denoiser, vae))
    return max(text.peak_gib, denoiser.weights_gib + vae.weights_gib + working)
