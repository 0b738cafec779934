"""The bases: where each one's weights are, which family's code runs it, and the settings that suit it."""

from __future__ import annotations

from dataclasses import dataclass

from headshotkit.errors import UnknownBase
from headshotkit.runtime import choose_device


@dataclass(frozen=True)
class Base:
    """A pretrained model: where it is, which family's code runs it, and the settings that suit it.

    `brief_prompts`: the text encoders know few words, so prompts are given in the bank's brief form. `presets`: the
    settings of each config, and those that a training method has beside them ("TrainConfig.METHOD").
    """

    name: str
    family: str
    source: str
    licence: str
    vae: str = ""
    brief_prompts: bool = False
    presets: dict = None


# Not tried on a GPU (2026-11-20). dreambooth: the rate of diffusers' DreamBooth examples; textual-inversion: that of
# its SDXL example, 5e-4 for each of 4 pictures a step; pivotal: cog-sdxl's, 1e-4 for the LoRA and 3e-4 for the tokens.
_SDXL = {
    "DatasetConfig": {},
    "TrainConfig": {},
    "TrainConfig.dreambooth": {"learning_rate": 5e-6, "steps": 800, "checkpointing": True, "keep_checkpoints": 1},
    "TrainConfig.textual-inversion": {"learning_rate": 2e-3, "caption_dropout": 0.0, "checkpointing": True},
    "TrainConfig.pivotal": {"checkpointing": True},
    "RenderConfig": {},
}
BASES = {
    base.name: base
    for base in (
        Base(
            "mini", "sdxl", "data:mini/base", "made for this project; demo and test only", brief_prompts=True,
            presets={
                "DatasetConfig": {"size_px": 128, "face_fractions": (0.55, 0.65)},
                "TrainConfig": {
                    "rank": 32, "alpha": 32, "targets": "all", "steps": 700, "batch": 4,
                    "learning_rate": 2e-3, "checkpoint_every_steps": 50,
                },
                "TrainConfig.dreambooth": {"learning_rate": 2e-4, "steps": 600, "keep_checkpoints": 1},
                # At 0.1 eight tokens were after 250 steps four times as long as the base's words, and faces fell apart.
                "TrainConfig.textual-inversion": {"learning_rate": 1e-2, "steps": 700, "caption_dropout": 0.0},
                "TrainConfig.pivotal": {"steps": 600},
                "RenderConfig": {
                    "size_px": 128, "steps": 20, "guidance": 1.5, "batch": 8, "count": 24, "max_attempts": 2,
                },
            },
        ),
        Base(
            "sdxl", "sdxl", "SG161222/RealVisXL_V5.0", "openrail++", vae="madebyollin/sdxl-vae-fp16-fix", presets=_SDXL,
        ),
        Base(
            "sdxl-base", "sdxl", "stabilityai/stable-diffusion-xl-base-1.0", "openrail++",
            vae="madebyollin/sdxl-vae-fp16-fix", presets=_SDXL,
        ),
    )
}  # fmt: skip


def find_base(name: str) -> Base:
    """The base of that name.

    Raises:
        UnknownBase: there is none.
    """
    if name not in BASES:
        raise UnknownBase(
            f"no base is called {name!r}.",
            f"The {len(BASES)} known ones are: {', '.join(BASES)}.",
            f"Choose one of them, for example --base {next(iter(BASES))}.",
        )
    return BASES[name]


def choose_base(name: str | None) -> tuple[str, str]:
    """The base to use and why: the named one, else by device.

    Returns: (name, reason).
    Raises:
        UnknownBase: the named one does not exist.
    """
    if name:
        return find_base(name).name, "it was asked for"
    device, why = choose_device()
    if device == "cpu":
        return "mini", f"{why}, so the embedded base; --base sdxl would take hours a headshot run here"
    return "sdxl", why
