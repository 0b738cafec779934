"""The bases: where each one's weights are, which family's code runs it, and the settings that suit it."""

from __future__ import annotations

from dataclasses import dataclass

from headshotkit.core.errors import UnknownBase
from headshotkit.core.runtime import choose_device


@dataclass(frozen=True)
class Base:
    """A pretrained model: where it is, which family's code runs it, and the settings that suit it.

    `brief_prompts`: the text encoders know few words, so prompts are given in the bank's brief form. `square_only`: it
    was trained on squares, so headshots of another aspect are drawn square. `presets`: the settings of each config, and
    those that a training method has beside them ("TrainConfig.METHOD"). `wordless`: guidance and its share in pictures
    that word guidance does not act on; None: as in headshots. `experimental`: what was never tried with it; whoever
    chooses the base is told. `download_gb`: size of its weights, GB. `gated`: the hub gives them only to who
    accepted the licence there. `controlnet`, `refiner`: where its ControlNet for edges and its refiner are, a hub id or
    a folder of the project's data; empty: it has none.
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
    wordless: tuple[float, float] | None = None
    download_gb: float = 7.0
    gated: bool = False
    controlnet: str = ""
    refiner: str = ""

    @property
    def sources(self) -> tuple[str, ...]:
        """Where its pipeline comes from: folder or hub id of the base, and of the autoencoder if it has its own."""
        return tuple(source for source in (self.source, self.vae) if source)

    @property
    def caution(self) -> str:
        """What whoever chooses an experimental base is told; empty for the others."""
        return f"experimental: {self.experimental}; licence {self.licence}" if self.experimental else ""


# Not tried on a GPU (2026-11-20). dreambooth: the rate of diffusers' DreamBooth examples; textual-inversion: that of
# its SDXL example, 5e-4 for each of 4 pictures a step; pivotal: cog-sdxl's, 1e-4 for the LoRA and 3e-4 for the tokens.
_SDXL = {
    "DatasetConfig": {},
    "TrainConfig": {},
    "TrainConfig.dreambooth": {"learning_rate": 5e-6, "steps": 800, "checkpointing": True, "keep_checkpoints": 1},
    "TrainConfig.textual-inversion": {"learning_rate": 2e-3, "caption_dropout": 0.0, "checkpointing": True},
    "TrainConfig.pivotal": {"checkpointing": True},
    "RenderConfig": {"guidance_share": 0.6},
}
# Their weights have never been run by this project; the embedded base's, of the same classes, have (2026-11-21).
_SDXL_CONTROLS = {
    "controlnet": "diffusers/controlnet-canny-sdxl-1.0-small", "refiner": "stabilityai/stable-diffusion-xl-refiner-1.0",
}  # fmt: skip
_UNTRIED = "its real weights have never been run by this project, its code has, on small random ones"
_FLOW_TRAINING = {"rank": 16, "alpha": 16, "min_snr_gamma": 0.0, "checkpointing": True}


def _flow(**render) -> dict:
    """Presets of the flow-matching bases: estimates after model cards and diffusers' scripts, still to be tried."""
    return {"DatasetConfig": {}, "TrainConfig": _FLOW_TRAINING, "RenderConfig": render}


BASES = {
    base.name: base
    for base in (
        Base(
            "mini", "sdxl", "data:mini/base", "made for this project; demo and test only", brief_prompts=True,
            square_only=True, wordless=(3.0, 0.2), controlnet="data:mini/controlnet", refiner="data:mini/refiner",
            presets={
                "DatasetConfig": {"size_px": 256, "face_fractions": (0.55, 0.65)},
                "TrainConfig": {
                    "rank": 32, "alpha": 32, "targets": "all", "steps": 1000, "batch": 4,
                    "learning_rate": 2e-3, "checkpoint_every_steps": 50,
                    "face_weight": 10.0,  # p2: identity 0.51, background obeyed 70 %; with 1: 0.48, 52 % (2026-11-20)
                },
                "TrainConfig.dreambooth": {"learning_rate": 2e-4, "steps": 600, "keep_checkpoints": 1},
                # Identity stays as it is, at 1e-2 it falls, at 0.1 faces fall apart: no word here names one (README).
                "TrainConfig.textual-inversion": {"learning_rate": 3e-3, "steps": 300, "caption_dropout": 0.0},
                "TrainConfig.pivotal": {"steps": 600},
                "RenderConfig": {
                    "size_px": 256, "steps": 20, "batch": 8, "count": 24, "max_attempts": 2,
                    "guidance": 1.0, "guidance_share": 0.2,  # words alone guide; a guidance above 1 would act early
                    "word_guidance": 2.5,  # p2: smile obeyed 60 -> 90 %, background 63 -> 90 % (2026-11-21)
                    "min_sharpness": 3.6,  # 21 headshots 4.0 to 5.9, blurred by 1.5 px at most 3.4 (2026-11-20)
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
            presets=_flow(steps=28, guidance=3.5), experimental=_UNTRIED, download_gb=33.7,
        ),
        # Not the distilled klein and not Z-Image-Turbo: training undoes a distillation.
        Base(
            "flux2", "flux2", "black-forest-labs/FLUX.2-klein-base-4B", "Apache-2.0",
            presets=_flow(steps=28, guidance=4.0), experimental=_UNTRIED, download_gb=16.0,
        ),
        Base(
            "zimage", "zimage", "Tongyi-MAI/Z-Image", "Apache-2.0",
            presets=_flow(steps=28, guidance=5.0), experimental=_UNTRIED, download_gb=20.5,
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
        base = find_base(name)
        return base.name, "it was asked for" + (f"; {base.caution}" if base.caution else "")
    device, why = choose_device()
    if device == "cpu":
        return "mini", f"{why}, so the embedded base; --base sdxl would take hours a headshot run here"
    return "sdxl", why
