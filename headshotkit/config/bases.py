"""The bases: the source of each one's weights, the family that runs it, and the settings that suit it."""

from __future__ import annotations

from dataclasses import dataclass

from headshotkit.core.errors import UnknownBase
from headshotkit.core.runtime import choose_device


@dataclass(frozen=True)
class Base:
    """A pretrained model: its source, the family whose code runs it, and the settings that suit it.

    `brief_prompts`: the text encoders know few words, so the bank's brief prompts are used. `square_only`: it was
    trained on squares, so all headshots are drawn square. `presets`: the settings of each config, and those of a
    training method ("TrainConfig.METHOD"). `without_base_guidance`: guidance and guidance share of pictures
    without base-model guidance; None: as in headshots. `experimental`: what was never tried with it; shown when the
    base is chosen. `download_gb`: size of its weights, GB. `gated`: the hub requires its licence to be accepted
    first. `controlnet`, `refiner`: sources of its ControlNet for edges and its refiner, a hub id or a folder of the
    project's data; empty: none.
    """

    name: str
    family: str
    source: str
    licence: str
    vae: str = ""
    brief_prompts: bool = False
    square_only: bool = False
    presets: dict = None
    experimental: str = ""
    without_base_guidance: tuple[float, float] | None = None
    download_gb: float = 7.0
    gated: bool = False
    controlnet: str = ""
    refiner: str = ""

    @property
    def sources(self) -> tuple[str, ...]:
        """Return the sources of its pipeline: folder or hub id of the base, and of its own autoencoder if any."""
        return tuple(source for source in (self.source, self.vae) if source)

    @property
    def caution(self) -> str:
        """Return the warning for a person who chooses an experimental base; empty for other bases."""
        return f"experimental: {self.experimental}; licence {self.licence}" if self.experimental else ""


# Not tried on a GPU. dreambooth: the rate of diffusers' DreamBooth examples; textual-inversion: that of its SDXL
# example, 5e-4 for each of 4 pictures a step; pivotal: cog-sdxl's, 1e-4 for the LoRA and 3e-4 for the tokens.
_SDXL = {
    "PrepareConfig": {},
    "TrainConfig": {},
    "TrainConfig.dreambooth": {"learning_rate": 5e-6, "steps": 800, "checkpointing": True, "keep_checkpoints": 1},
    "TrainConfig.textual-inversion": {"learning_rate": 2e-3, "caption_dropout": 0.0, "checkpointing": True},
    "TrainConfig.pivotal": {"checkpointing": True},
    "GenerateConfig": {"guidance_share": 0.6},
}
# This project has never run these weights, only the embedded base's of the same classes.
_SDXL_CONTROLS = {
    "controlnet": "diffusers/controlnet-canny-sdxl-1.0-small", "refiner": "stabilityai/stable-diffusion-xl-refiner-1.0",
}  # fmt: skip
_UNTRIED = "its real weights have never been run by this project, its code has, on small random ones"
_FLOW_TRAINING = {"rank": 16, "alpha": 16, "min_snr_gamma": 0.0, "checkpointing": True}


def _flow(**render) -> dict:
    """Return presets of the flow-matching bases: untested estimates after model cards and diffusers' scripts."""
    return {"PrepareConfig": {}, "TrainConfig": _FLOW_TRAINING, "GenerateConfig": render}


BASES = {
    base.name: base
    for base in (
        Base(
            "mini", "sdxl", "data:mini/base", "made for this project; demo and test only", brief_prompts=True,
            square_only=True, without_base_guidance=(3.0, 0.2),
            controlnet="data:mini/controlnet", refiner="data:mini/refiner",
            presets={
                "PrepareConfig": {"size_px": 256, "face_fractions": (0.55, 0.65)},
                "TrainConfig": {
                    "rank": 32, "alpha": 32, "targets": "all", "steps": 1000, "batch": 4,
                    "learning_rate": 2e-3, "checkpoint_every_steps": 50,
                    "face_weight": 10.0,  # p2: identity 0.51, background adherence 70 %; with 1: 0.48, 52 %
                },
                "TrainConfig.dreambooth": {"learning_rate": 2e-4, "steps": 600, "keep_checkpoints": 1},
                # Identity does not rise, at 1e-2 it falls, at 0.1 faces fall apart: no word here names a face
                # (tests/benchmarks/README.md).
                "TrainConfig.textual-inversion": {"learning_rate": 3e-3, "steps": 300, "caption_dropout": 0.0},
                "TrainConfig.pivotal": {"steps": 600},
                "GenerateConfig": {
                    "size_px": 256, "sampler_steps": 20, "batch": 8, "count": 24, "max_attempts": 2,
                    "guidance": 1.0, "guidance_share": 0.2,  # base-model guidance alone; guidance > 1 would act early
                    "base_guidance": 2.5,  # p2: smile adherence 60 -> 90 %, background 63 -> 90 %
                    "min_sharpness": 3.6,  # 21 headshots 4.0 to 5.9, blurred by 1.5 px at most 3.4
                },
            },
        ),
        Base(
            "sdxl", "sdxl", "SG161222/RealVisXL_V5.0", "openrail++", vae="madebyollin/sdxl-vae-fp16-fix", presets=_SDXL,
            **_SDXL_CONTROLS,
        ),
        Base(
            "sdxl-base", "sdxl", "stabilityai/stable-diffusion-xl-base-1.0", "openrail++",
            vae="madebyollin/sdxl-vae-fp16-fix", presets=_SDXL,
            **_SDXL_CONTROLS,
        ),
        Base(
            "flux", "flux", "black-forest-labs/FLUX.1-dev", "FLUX.1 [dev], non-commercial", gated=True,
            presets=_flow(sampler_steps=28, guidance=3.5), experimental=_UNTRIED, download_gb=33.7,
        ),
        # Not the distilled klein or Z-Image-Turbo: training undoes a distillation.
        Base(
            "flux2", "flux2", "black-forest-labs/FLUX.2-klein-base-4B", "Apache-2.0",
            presets=_flow(sampler_steps=28, guidance=4.0), experimental=_UNTRIED, download_gb=16.0,
        ),
        Base(
            "zimage", "zimage", "Tongyi-MAI/Z-Image", "Apache-2.0",
            presets=_flow(sampler_steps=28, guidance=5.0), experimental=_UNTRIED, download_gb=20.5,
        ),
    )
}  # fmt: skip


def find_base(name: str) -> Base:
    """Return the base of that name.

    Raises:
        UnknownBase: no base has that name.
    """
    if name not in BASES:
        raise UnknownBase(
            f"no base is called {name!r}.",
            f"The {len(BASES)} known ones are: {', '.join(BASES)}.",
            f"Choose one of them, for example --base {next(iter(BASES))}.",
        )
    return BASES[name]


def choose_base(name: str | None) -> tuple[str, str]:
    """Choose the base, and return it with the reason: the named one, else by device.

    Returns: (name, reason).
    Raises:
        UnknownBase: no base has that name.
    """
    if name:
        base = find_base(name)
        return base.name, "it was asked for" + (f"; {base.caution}" if base.caution else "")
    device, why = choose_device()
    if device == "cpu":
        return "mini", f"{why}, so the embedded base; --base sdxl would take hours a headshot run here"
    return "sdxl", why
