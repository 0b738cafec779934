"""Run all stages in one call: photos in, gallery out; each stage once, reusing what was done before."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import headshotkit  # its verbs load torch and the like on first use, so `check` needs none
from headshotkit.config import (
    UNUSED,
    CheckConfig,
    Config,
    EvaluateConfig,
    GenerateConfig,
    PickConfig,
    PrepareConfig,
    Resolved,
    RestoreConfig,
    RunSettings,
    TrainConfig,
    resolve,
)
from headshotkit.config.bases import choose_base, same_weights
from headshotkit.core import locks, runtime
from headshotkit.core.errors import BadConfig, CannotRestore, DamagedRun, NoPhotos, TooFewMinutes
from headshotkit.core.pages import PAGE
from headshotkit.core.records import MOST_REFUSALS, Verdict, kept_photos, refusals
from headshotkit.core.results import HeadshotsResult, PhotosResult, Result
from headshotkit.core.run import BANKS, COMMANDS, Run, settings_of, write_json
from headshotkit.dataset.build import prepare_dataset
from headshotkit.dataset.class_images import missing_class_images
from headshotkit.delivery.gallery import build_gallery
from headshotkit.families import weights_here
from headshotkit.photos.check import check_photos, is_judged
from headshotkit.photos.class_words import propose_class_word
from headshotkit.planning.deadline import DeadlineController, plan_here
from headshotkit.planning.forecast import say_drawing
from headshotkit.planning.ladder import STAGES as PLANNED
from headshotkit.planning.schedule import MAY_CHANGE
from headshotkit.restoration.restore import restore_headshots
from headshotkit.training.checkpoints import newest_step

USUAL_MINUTES = 60.0
"""Minutes that a run on CUDA is planned for by default."""
PLAN_FILE = "plan.json"
TOGETHER = {"steps": ("schedule",), "schedule": ("steps",), "learning_rate": ("optimizer",),
            "token_factor": ("optimizer",)}  # fmt: skip
"""A setting -> settings that it must fit; if one of them is set anew, it is not kept from the run's beginning."""


@locks.writes("run")
def make_headshots(
    photos: Path | str, out: Path | str, options: RunSettings | None = None, tell: Callable[[str], None] = print
) -> Run:
    """Do every unfinished stage of a run, and report a line a stage.

    With minutes, plan.json in the run folder records the plan and how long each stage took.

    Args:
        photos: folder with the person's photos.
        out: the run folder.
        options: settings; its `photos` is replaced by `photos`. Minutes that are None are USUAL_MINUTES on CUDA.
        tell: receives each line; `print` by default.
    Raises:
        HeadshotError: as the stages do; stages finished before stay.
        CannotRestore: as `restore_headshots`, when all else is done.
        TooFewMinutes, NotEnoughMemory: not even the cheapest plan fits into the minutes or the GPU.
    """
    run, options = Run(out), (options or RunSettings()).replace(photos=Path(photos))
    base, why = run_base(run, options)
    if base == "mini":
        tell(runtime.folded(f"{'note':<10} {runtime.toy_words()}"))
    tell(f"base       {base}: {why}")
    controller = _usual_deadline(run, base, options, tell) or begin_deadline(run, options, tell)
    cannot: CannotRestore | None = None
    for stage in STAGES:
        if stage.optional:
            continue
        if controller:
            controller.begin(stage.command)
        try:
            manifest = do_stage(stage.folder, run, options, controller)
        except CannotRestore as error:  # the headshots exist; the error is raised at the end
            manifest, cannot = run.manifest(stage.folder), error
        tell(runtime.folded(line_of(manifest, run, refused=0)))
        if controller:
            result = Result.of(manifest)
            drawn = len(result.headshots) if isinstance(result, HeadshotsResult) else 0
            controller.finish(stage.command, result.drawing_seconds / drawn if drawn else 0.0)
            write_json(run.folder / PLAN_FILE, controller.record())
    if cannot:
        raise cannot
    return run


def _usual_deadline(
    run: Run, base: str, options: RunSettings, tell: Callable[[str], None]
) -> DeadlineController | None:
    """Plan for USUAL_MINUTES on CUDA if minutes are not set; return None elsewhere, and if no plan fits.

    A schedule or a limit of attempts prevents it: a plan would ignore them.
    """
    said = options.minutes is not None or options.schedule or options.max_attempts
    if said or base == "mini" or runtime.gpu_memory() is None:
        return None
    try:
        return begin_deadline(run, options.replace(minutes=USUAL_MINUTES), tell)
    except (BadConfig, TooFewMinutes) as error:
        tell(f"plan       none: {error.happened} There is no time limit; --minutes sets one.")
        return None


def begin_deadline(
    run: Run, options: RunSettings, tell: Callable[[str], None], stages: tuple[str, ...] = PLANNED[1:]
) -> DeadlineController | None:
    """Plan a run with minutes, and report the plan; return None if minutes are None or 0. They count from now.

    Args:
        stages: those to do, as `ladder.STAGES` names them; installation is not part of a run.
    Raises:
        BadConfig: a schedule is set as well, the training pictures have another size than the base's preset, no rate
            is known for the base on this machine, or the method can't train it.
        NoPhotos: the photo folder is missing or holds no photo.
        TooFewMinutes, NotEnoughMemory: not even the cheapest plan fits.
    """
    if not options.minutes:
        return None
    if options.schedule:
        raise BadConfig(
            f"schedule is {options.schedule}, minutes is {options.minutes:g}.",
            "With a time limit, the plan chooses the sizes of the training steps.",
            "Leave out --schedule, or --minutes.",
        )
    base, _ = run_base(run, options)
    rendering = config_for(GenerateConfig, base, options, begun=run.peek("headshots"))
    count = rendering.count
    training = {
        "method": run_method(run, options),
        "batch": options.train_batch or 0,
        "checkpointing": options.checkpointing,
        "prior": bool(_class_images(run, options)),
        "worded": rendering.base_guidance > 1,
    }
    done, steps_done = progress_of(run, base, options, stages)
    left = tuple(stage for stage in stages if stage not in done and (stage != "download" or not weights_here(base)))
    wanted, usual = config_for(PrepareConfig, base, options, begun=run.peek("dataset")), PrepareConfig.for_base(base)
    if "train" in left and wanted.size_px != usual.size_px:
        raise BadConfig(
            f"prepare_size_px is {wanted.size_px}, minutes is {options.minutes:g}.",
            f"With a time limit, the plan chooses the sizes of the training steps, up to {usual.size_px} px.",
            f"Leave out --minutes, or prepare with --prepare-size-px {usual.size_px}.",
        )
    if "prepare" in left:
        training["class_images"] = missing_class_images(wanted)
    plan = plan_here(base, count, options.minutes, options.steps or 0, left, steps_done=steps_done, **training)
    lines = f"{plan.minutes:.0f} minutes, at worst {plan.pessimistic:.0f}\n{plan.explain()}"
    tell("plan       " + lines.replace("\n", f"\n{'':<11}"))
    return DeadlineController(plan, tell=tell)


def progress_of(run: Run, base: str, options: RunSettings, stages: tuple[str, ...]) -> tuple[tuple[str, ...], int]:
    """Return what the run already has of what these options ask, up to the training.

    Args:
        stages: the requested ones, as `ladder.STAGES` names them.
    Returns: (those of them that are finished, steps of an unfinished training's newest checkpoint).
    """
    planned = _as_begun("lora", run, base, options, MAY_CHANGE)
    wanted = {
        "dataset": config_for(PrepareConfig, base, options, begun=run.peek("dataset")),
        "lora": config_for(TrainConfig, base, options, planned, run.peek("lora")),
    }
    done: list[str] = []
    for stage in ("photos", *wanted):
        if COMMANDS[stage] not in stages:
            continue
        if stage == "photos":
            as_asked = options.photos is not None and is_judged(options.photos, run, _gate_config(run, options))
        else:
            as_asked = settings_of(wanted[stage]) == run.peek(stage).get("config")
        if not (as_asked and run.has(stage)):
            goes_on = stage == "lora" and run.has("dataset")
            goes_on = goes_on and run.is_begun(stage, wanted[stage], run.inputs_from("dataset"))
            return tuple(done), newest_step(run.path(stage)) if goes_on else 0
        done.append(COMMANDS[stage])
    return tuple(done), 0


def _class_images(run: Run, options: RunSettings) -> int:
    """Return the number of class images for the training: the option, else as the dataset was prepared."""
    begun = run.peek("dataset").get("config", {}).get("class_images", 0)
    return begun if options.class_images is None else options.class_images


def run_base(run: Run, options: RunSettings) -> tuple[str, str]:
    """Return the base of a run and why: the option, else the one the run began with, else by device.

    Raises:
        UnknownBase, BaseUnavailable: the option names no base, or the base can't be found.
    """
    begun = run.peek("dataset").get("config", {}).get("base")
    if begun and not options.base:
        return begun, "as the run began"
    base, why = choose_base(options.base)
    return (begun if begun and same_weights(begun, base) else base), why


def run_method(run: Run, options: RunSettings) -> str:
    """Return the method of a run's training: the option, else the one the training began with, else a LoRA.

    Raises:
        UnknownBase, BadConfig: the options name no base, or settings that the method does not use.
    """
    return config_for(TrainConfig, run_base(run, options)[0], options, begun=run.peek("lora")).method


@locks.writes("do_missing")
def do_missing(stages: tuple[str, ...], run: Run, options: RunSettings, tell: Callable[[str], None] = print) -> None:
    """Do the stages that the run lacks, whatever settings the existing ones have.

    Raises:
        BadConfig: a class word is set, and the run began with another one.
        HeadshotError: as the stages do.
    """
    begun = run.peek("dataset").get("config", {}).get("class_word")
    if options.class_word and begun and options.class_word != begun and run.has("dataset"):
        raise BadConfig(
            f"class_word is {options.class_word!r}, but the run began with {begun!r}.",
            "Its captions and its LoRA use that word.",
            f"Leave the class word empty. To change it: headshotkit prepare --out {run.folder} --class-word "
            f"{options.class_word}; then train again.",
        )
    for stage in stages:
        if not run.has(stage):
            tell(line_of(do_stage(stage, run, options), run))


def config_for(kind: type[Config], base: str, options: RunSettings, planned: dict | None = None,
               begun: dict | None = None) -> Config:  # fmt: skip
    """Return a stage's config, as `settings_for`."""
    return settings_for(kind, base, options, planned, begun).config


def settings_for(kind: type[Config], base: str, options: RunSettings, planned: dict | None = None,
                 begun: dict | None = None) -> Resolved:  # fmt: skip
    """Return a stage's settings and where each comes from: the base's preset, overridden by the settings that the run
    began with, then by a plan's, then by the person's.

    Args:
        begun: the stage's manifest, empty if it never began.
    """
    return resolve(kind, base, options, planned, begun_settings(kind, begun or {}, base, options.of(kind)))


def begun_settings(kind: type[Config], begun: dict, base: str = "", chosen: dict | None = None) -> dict:
    """Return the settings that a stage began with, if they fit the base and the person's new settings.

    Args:
        begun: the stage's manifest; empty if it never began.
        chosen: the person's new settings.
    Raises:
        DamagedRun: the manifest names unknown settings.
    """
    before, chosen = kind.BEFORE | kind.named(begun["config"]) if begun else {}, chosen or {}
    try:
        began = kind(**before)
    except BadConfig as error:
        problem = f"the {begun['stage']} stage's manifest holds a bad setting: {error.happened}"
        raise DamagedRun(problem, error.why, error.next_step) from error
    kept = {name: getattr(began, name) for name in before}
    if kept.pop("base", base) != base:  # another base has presets of its own; the person stays the same one
        kept = {name: value for name, value in kept.items() if name in ("token", "class_word")}
    if kind is TrainConfig and chosen.get("method", kept.get("method")) != kept.get("method"):
        return {}
    method = kept.get("method") if kind is TrainConfig else None
    anew = {name for name, value in chosen.items() if value != kept.get(name)}
    gone = set(UNUSED.get(method, ())) | {name for name, others in TOGETHER.items() if anew.intersection(others)}
    if chosen.get("class_images") == 0:
        gone.add("class_prompt")
    if "minutes" in kept and not chosen.get("minutes", kept["minutes"]):
        gone.add("other_scales")
    return {name: value for name, value in kept.items() if name not in gone}


def planned_settings(
    stage: str, run: Run, base: str, options: RunSettings, controller: DeadlineController | None
) -> dict:
    """Return a plan's settings for a stage. Those it began with stay if all else is the same, so that it resumes.

    Args:
        stage: lora or headshots.
        controller: None without minutes; then only what began under a plan keeps that plan's settings.
    """
    begun, plan = run.peek(stage), {}
    if controller:
        plan = controller.plan.training if stage == "lora" else controller.rendering
        if stage == "headshots" and _was_too_short(begun, controller.least_minutes):
            return plan
    return _as_begun(stage, run, base, options, begun.get("planned", plan)) or plan


def _as_begun(stage: str, run: Run, base: str, options: RunSettings, names: Iterable[str]) -> dict:
    """Return the named settings as the stage began with, if all else is as set now; else {}."""
    begun, kind = run.peek(stage), TrainConfig if stage == "lora" else GenerateConfig
    before = begun_settings(kind, begun, base)
    kept = {name: before[name] for name in kind.named(dict.fromkeys(names)) if name in before}
    as_begun = all(kept.get(name, value) == value for name, value in options.of(kind).items())
    same = kept and as_begun and settings_of(config_for(kind, base, options, kept, begun)) == begun["config"]
    return kept if same else {}


def _was_too_short(rendered: dict, least: float) -> bool:
    """Return whether headshots are missing and had no more than the least minutes that a plan leaves them."""
    minutes = rendered.get("config", {}).get("minutes", 0.0) if "minutes" in rendered.get("planned", ()) else 0.0
    some_missing = rendered.get("status") == "done" and len(rendered["delivered"]) < rendered["config"]["count"]
    return some_missing and 0 < minutes <= least


def _beside_class_images(run: Run, base: str, options: RunSettings) -> dict:
    """Return checkpointing if class images are trained without a plan, except on the embedded base.

    Two losses are held at once, on SDXL at 1024 px 19.6 GiB without checkpointing and 7.4 with it.
    A training that began without it continues without it.
    """
    begun = run.peek("lora")
    begun_so = begun.get("config") == settings_of(config_for(TrainConfig, base, options, begun=begun))
    return {"checkpointing": True} if base != "mini" and _class_images(run, options) and not begun_so else {}


def do_stage(stage: str, run: Run, options: RunSettings, controller: DeadlineController | None = None) -> dict:
    """Do one stage, unless it is done, and return its manifest.

    Args:
        controller: decides settings left open, and keeps the training's time.
    Raises:
        HeadshotError: as the stage does.
    """
    row = stage_named(stage)
    base = run_base(run, options)[0] if row.needs_base or options.base else ""
    row.do(run, options, base, controller)
    return run.manifest(stage)


Controller = DeadlineController | None


def _check(run: Run, options: RunSettings, base: str, controller: Controller) -> None:
    """Judge the photos; raise if too few are good, not only when training needs them."""
    config = _gate_config(run, options)
    if options.photos is None:
        raise NoPhotos("no photo folder was given.", "", f"Give one: headshotkit check PHOTOS --out {run.folder}")
    verdicts: list[Verdict] = check_photos(options.photos, run, config)
    judged = PhotosResult.load(run)
    kept_photos(verdicts, config.min_photos, judged.advice, judged.left_out)


def _prepare(run: Run, options: RunSettings, base: str, controller: Controller) -> None:
    """Build the dataset; propose a class word if none is set and the run has none."""
    if options.class_word is None and not run.peek("dataset"):
        word, why = propose_class_word(run)
        runtime.say(f"{'prepare':<10} class word: {word}, {why}; --class-word changes it")
        options = options.replace(class_word=word)
    wanted = _told("dataset", run, settings_for(PrepareConfig, base, options, begun=run.peek("dataset")))
    if missing := missing_class_images(wanted):
        say_drawing("class images", missing, GenerateConfig.for_base(base).without_base_guidance())
    prepare_dataset(run, wanted)


def _train(run: Run, options: RunSettings, base: str, controller: Controller) -> None:
    """Train, or go on with the training that began."""
    planned = planned_settings("lora", run, base, options, controller)
    planned = planned or _beside_class_images(run, base, options)
    config = _told("lora", run, settings_for(TrainConfig, base, options, planned, run.peek("lora")))
    headshotkit.train_lora(run, config, controller)


def _pick(run: Run, options: RunSettings, base: str, controller: Controller) -> None:
    """Choose checkpoint and lora_scale."""
    config = _told("picked", run, settings_for(PickConfig, base, options, begun=run.peek("picked")))
    headshotkit.pick_lora(run, config, config_for(GenerateConfig, base, options, begun=_picked_before(run)))


def _generate(run: Run, options: RunSettings, base: str, controller: Controller) -> None:
    """Generate headshots; with a controller, minutes are those of the whole run, and it gives this stage its share."""
    options = options.replace(minutes=None) if controller else options
    planned = planned_settings("headshots", run, base, options, controller)
    config = _told("headshots", run, settings_for(GenerateConfig, base, options, planned, _drawn_before(run)))
    share = controller.share("generate") if controller else None
    headshotkit.generate_headshots(run, config, share, planned=tuple(planned))


def _restore(run: Run, options: RunSettings, base: str, controller: Controller) -> None:
    """Restore faces."""
    restore_headshots(run, _restore_config(run, options))


def _evaluate(run: Run, options: RunSettings, base: str, controller: Controller) -> None:
    """Measure what the run has made; a plan limits the minutes, and the pairs unless they are set."""
    chosen = options.of(EvaluateConfig)
    limits = {"minutes": chosen.pop("minutes", 0.0)}
    limits = controller.evaluating if controller else limits
    headshotkit.evaluate_run(run, **limits | chosen, keep="pairs" not in chosen)


def _gallery(run: Run, options: RunSettings, base: str, controller: Controller) -> None:
    """Write the gallery."""
    build_gallery(run)


@dataclass(frozen=True)
class Stage:
    """A stage of a run: its folder, its command, and the function that does it.

    needs_base: it needs a base; choosing one looks for a GPU, which loads torch.
    late: folders of the stages that its command also does if they are missing: they are quick and need no choice.
    optional: only its own command does it, not `run`.
    """

    folder: str
    command: str
    do: Callable[[Run, RunSettings, str, Controller], None]
    needs_base: bool = False
    late: tuple[str, ...] = ()
    optional: bool = False


STAGES = (
    Stage("photos", "check", _check),
    Stage("dataset", "prepare", _prepare, needs_base=True),
    Stage("lora", "train", _train, needs_base=True),
    Stage("picked", "pick", _pick, needs_base=True, optional=True),
    Stage("headshots", "generate", _generate, needs_base=True),
    Stage("restored", "restore", _restore),
    Stage("report", "evaluate", _evaluate, late=("restored",)),
    Stage("gallery", "gallery", _gallery, late=("restored", "report")),
)
"""The stages in the order of a run."""


def stage_named(name: str) -> Stage:
    """Return the stage of a folder's or a command's name.

    >>> stage_named("train").folder, stage_named("lora").command
    ('lora', 'train')
    """
    return next(stage for stage in STAGES if name in (stage.folder, stage.command))


def _told(stage: str, run: Run, settings: Resolved) -> Config:
    """Return a stage's config; before the stage begins, print the settings that the person did not set."""
    if not run.has(stage):
        for number, line in enumerate(settings.lines()):
            runtime.tell(f"{'' if number else COMMANDS[stage]:<10} {line}")
    return settings.config


def _drawn_before(run: Run) -> dict:
    """Return the headshots' manifest, with the path of the run's copy of a prompt bank, and a later pick applied."""
    begun, picked = run.peek("headshots"), run.peek("picked")
    config = dict(begun.get("config", {}))
    if bank := config.get("prompts"):
        config["prompts"] = str(run.folder / BANKS / bank)
    if picked.get("started", "") > begun.get("started", ""):
        config = {name: value for name, value in config.items() if name not in ("use_pick", "lora_scale")}
    return begun | {"config": config} if begun else {}


def _picked_before(run: Run) -> dict:
    """Return how the pick's pictures were drawn; before there is a pick, how the headshots were."""
    drawn = _drawn_before(run)
    own = run.peek("picked").get("config", {}).get("rendering", {})
    own = {name: value for name, value in own.items() if name != "prompts"}  # of a bank it only has the file's name
    return {"stage": "picked", "config": drawn.get("config", {}) | own} if own else drawn


def _restore_config(run: Run, options: RunSettings) -> RestoreConfig:
    """Return how faces are restored: as set now, else as the run began.

    Raises:
        BadConfig: it began with the user's own weights, whose path the run doesn't record.
    """
    begun = run.peek("restored")
    if begun.get("config", {}).get("weights") and options.codeformer_weights is None:
        raise BadConfig(
            "the faces were restored with CodeFormer weights from a path of yours.",
            "A run does not store paths outside of it.",
            "Give them again: --codeformer-weights PATH; or --codeformer-weights '' for the default ones.",
        )
    return config_for(RestoreConfig, "", options, begun=begun)


def _gate_config(run: Run, options: RunSettings) -> CheckConfig:
    return config_for(CheckConfig, "", options, begun=run.peek("photos"))


def line_of(manifest: dict, run: Run | None = None, refused: int = MOST_REFUSALS) -> str:
    """Return one line on a finished stage: its name, what came out, seconds.

    After the check there is also a line for each of the first `refused` refused photos, and one on what is missing.
    After the check and the gallery the last line gives the page's path in the run.
    """
    result = Result.of(manifest)
    seconds = f"{result.seconds:.0f}" if result.seconds >= 10 else f"{result.seconds:.1f}"
    lines = [f"{COMMANDS[result.stage]:<10} {result.outcome} ({seconds} s)"]
    if isinstance(result, PhotosResult):
        lines += [*(refusals(list(result.verdicts), refused) if refused else ()), result.advice]
    if run and result.stage in ("photos", "gallery"):
        lines.append(f"{(run.path(result.stage) / PAGE).resolve()}")
    return f"\n{'':<10} ".join(lines)
