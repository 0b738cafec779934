"""Every setting, with its unit, its range and what it does.

A config is frozen. Relations between settings are checked when it is made, and the error names both.
`for_base` gives the settings that suit a base; any of them can be overridden by name.
"""

from __future__ import annotations

from dataclasses import dataclass

from headshotkit.bases import BASES, find_base
from headshotkit.errors import BadConfig


def _demand(holds: bool, happened: str, why: str, next_step: str) -> None:
    """Raises BadConfig unless the relation holds."""
    if not holds:
        raise BadConfig(happened, why, next_step)


class Config:
    """What all configs share."""

    @classmethod
    def for_base(cls, base: str, **overrides):
        """The settings that suit a base, with the given ones in their place; None means: as the preset has it.

        Raises:
            UnknownBase: no base has that name.
            BadConfig: a setting does not exist, or contradicts another.
        """
        chosen = {"base": base, **find_base(base).presets[cls.__name__]}
        return cls.with_options(**chosen | {k: v for k, v in overrides.items() if v is not None})

    @classmethod
    def with_options(cls, **options):
        """The default settings, with the given ones in their place; None means: the default.

        Raises:
            BadConfig: a setting does not exist, or contradicts another.
        """
        unknown = sorted(set(options) - set(cls.__dataclass_fields__))
        _demand(
            not unknown,
            f"{cls.__name__} has no setting {', '.join(unknown)}.",
            f"Its settings are: {', '.join(cls.__dataclass_fields__)}.",
            "Correct the name.",
        )
        return cls(**{name: value for name, value in options.items() if value is not None})


@dataclass(frozen=True)
class GateConfig(Config):
    """Limits of the photo check."""

    min_photos: int = 10
    """Fewest kept photos that training starts with; below 10 a LoRA learns the photos, not the person."""
    max_photos: int = 20
    """Most photos to train on; of more good ones the best and most varied are chosen."""
    min_faces: int = 1
    """Fewest faces in a photo."""
    max_faces: int = 5
    """Most faces, passers-by and posters counted; more is a crowd, in which the person can't be told for sure."""
    max_other_face: float = 0.35
    """Largest height of a second face relative to the main one; smaller ones count as passers-by."""
    min_face_px: int = 90
    """Smallest width of the main face, px; ArcFace looks at 112 px, so below about 90 it guesses."""
    min_face_inside: float = 0.7
    """Least fraction of the face's square (112 px ArcFace template) that lies inside the picture."""
    min_brightness: float = 30.0
    """Least median luma of the face, 0 to 255."""
    max_clipped: float = 0.4
    """Largest fraction of the face's pixels that are pure white (luma above 250)."""
    max_roll_deg: float = 45.0
    """Largest lean of the head to a side, degrees; beyond it the landmarks go astray."""
    min_contrast: float = 5.0
    """Least standard deviation of the face's luma, grey levels."""
    max_noise: float = 5.0
    """Largest noise on the face, aligned to 128 px, grey levels."""
    min_sharpness: float = 5.0
    """Least sharpness of the face, aligned to 128 px: mean absolute Laplacian for a contrast of 50 grey levels."""
    min_steadiness: float = 5.5
    """Least detail in the direction that has least of it; a moved camera takes it from one direction only."""
    max_blockiness: float = 3.0
    """Largest ratio of the steps between a JPEG's blocks to all other steps."""
    min_colourfulness: float = 3.0
    """Least colourfulness (Hasler and Suesstrunk); 0 is greyscale."""
    min_eye_contrast: float = 0.35
    """Least luma of the eye band relative to the cheeks; a bar or dark glasses fall below."""
    max_eye_contrast: float = 1.3
    """Largest luma of the eye band relative to the cheeks; a light bar, or a beard that isn't one, rise above."""
    min_skin_share: float = 0.55
    """Least fraction of the face's oval that has the colour of its cheeks and forehead."""
    max_disagreement: float = 0.18
    """Largest distance between two landmark models' points, eye distances; 0.05 on a clear face."""
    max_yaw_deg: float = 50.0
    """Largest turn of the head to a side, degrees."""
    max_pitch_deg: float = 35.0
    """Largest rise or fall of the head, degrees; wide, for an average head is fitted."""
    min_eye_openness: float = 0.12
    """Least height of the eye opening relative to its width; about 0.3 is open, below 0.12 closed."""
    max_mouth_open: float = 0.45
    """Largest gap between the lips relative to the mouth's width."""
    max_wink: float = 0.2
    """Largest difference of the two eyes' openness."""
    min_recognisable: float = 16.0
    """Least length of ArcFace's embedding before it is normed, which falls with whatever spoils a face
    (arXiv:2103.06627); used only with the recogniser that it was measured on."""
    min_same_person: float = 0.35
    """Least cosine to the mean of the person's photos, itself counted; of strangers 99 % stay below 0.33."""
    max_hash_distance: int = 6
    """Two photos whose difference hashes differ in at most so many of 64 bits are candidates for duplicates."""
    min_duplicate_identity: float = 0.9
    """Candidates whose faces are at least so alike (cosine) are duplicates."""

    def __post_init__(self) -> None:
        _demand(
            self.min_photos >= 1,
            f"min_photos is {self.min_photos}.",
            "Training needs at least one photo.",
            "Set GateConfig.min_photos to 10 or more.",
        )
        _demand(
            self.min_photos <= self.max_photos,
            f"min_photos {self.min_photos} is above max_photos {self.max_photos}.",
            "Of more good photos than max_photos only the best are chosen, so there would never be enough.",
            "Lower GateConfig.min_photos or raise GateConfig.max_photos.",
        )
        _demand(
            1 <= self.min_faces <= self.max_faces,
            f"min_faces is {self.min_faces}, max_faces {self.max_faces}.",
            "A photo without a face can't be cropped around it.",
            "Set GateConfig.min_faces to 1.",
        )


SDXL_SIZES_PX = {"1:1": (1024, 1024), "4:5": (896, 1152), "3:4": (832, 1152), "2:3": (832, 1216), "16:9": (1344, 768)}
"""Aspect, width to height -> the size (width, height) px that SDXL was trained on which stands for it: 896 x 1152 is
0.78, 832 x 1152 is 0.72, 832 x 1216 is 0.68, 1344 x 768 is 1.75. Source: SDXL, Podell et al. 2023, arXiv:2307.01952,
appendix I."""
ASPECTS = ("1:1", "4:5", "3:4", "2:3")
"""Shapes of training pictures and crops."""
AUGMENTS = ("off", "safe", "full")
CAPTIONERS = ("template", "blip", "florence")
OPTIMIZERS = ("auto", "adamw", "adamw8bit", "prodigy")
SAMPLERS = ("base", "dpmpp-2m-karras")
"""base: the sampler that the base comes with, Euler for SDXL; or DPM++ 2M on Karras' noise levels (arXiv:2211.01095,
arXiv:2206.00364)."""


@dataclass(frozen=True)
class DatasetConfig(Config):
    """How photos become training pictures."""

    base: str = "sdxl"
    """The base that the pictures are for; decides their size."""
    token: str = "ohwx"
    """The rare token that names the person in captions."""
    class_word: str = "person"
    """What the person is: man, woman or person."""
    size_px: int = 1024
    """Side of the square training picture, px; a multiple of 8. Other aspects have about as many pixels."""
    aspect: str = "1:1"
    """Shape of the training pictures, one of ASPECTS; one for all of them, for a batch holds one shape."""
    face_fractions: tuple[float, ...] = (0.45, 0.62)
    """Height of the face relative to the picture's, one crop for each; as far as the photo allows.
    0.45 shows head and shoulders, 0.62 the face."""
    augment: str = "off"
    """off, safe (each crop once more, turned and scaled a little) or full (mirrored once more as well). Off, for no
    face is symmetric, so mirrored pictures harm identity (arXiv:2505.03557), and turned ones are a little softer."""
    captioner: str = "template"
    """Who writes the captions: template (words for what was measured, offline), blip or florence (they see scene and
    clothes; their words on the face are taken out)."""
    captioner_weights: str = ""
    """Folder or hub id of the captioner's weights; empty: the hub's usual ones."""
    class_images: int = 0
    """Number of class images for prior preservation, generated from the base; 0 is none."""
    seed: int = 0
    """Seed of the class images and of the augmentation."""

    def __post_init__(self) -> None:
        _demand(
            self.size_px % 8 == 0 and self.size_px > 0,
            f"size_px is {self.size_px}.",
            "The autoencoder halves the picture three times.",
            f"Set DatasetConfig.size_px to a multiple of 8, such as {max(8, round(self.size_px / 8) * 8)}.",
        )
        _demand(
            bool(self.token) and not self.token.isspace() and bool(self.class_word.strip()),
            f"token {self.token!r} or class_word {self.class_word!r} is empty.",
            "Captions name the person by both.",
            "Set DatasetConfig.token and DatasetConfig.class_word.",
        )
        _demand(
            bool(self.face_fractions) and all(0.1 <= f <= 1 for f in self.face_fractions),
            f"face_fractions are {self.face_fractions}.",
            "Each is a face's height relative to the picture's height, in [0.1, 1].",
            "Set DatasetConfig.face_fractions, for example (0.45, 0.62).",
        )
        for name, known in (("aspect", ASPECTS), ("augment", AUGMENTS), ("captioner", CAPTIONERS)):
            _demand(
                getattr(self, name) in known,
                f"{name} is {getattr(self, name)!r}.",
                f"Known are: {', '.join(known)}.",
                f"Set DatasetConfig.{name} to one of them.",
            )
        self._demand_what_the_base_can_do()

    def _demand_what_the_base_can_do(self) -> None:
        """Shapes and words that the base was not trained on, and shapes that class images don't have, are refused."""
        small = self.base in BASES and BASES[self.base].brief_prompts
        _demand(
            self.aspect == "1:1" or not small,
            f"aspect is {self.aspect}, base is {self.base!r}.",
            "This base was trained on square pictures only.",
            "Set DatasetConfig.aspect to 1:1, or choose another base: --base sdxl",
        )
        _demand(
            self.aspect == "1:1" or not self.class_images,
            f"aspect is {self.aspect}, class_images is {self.class_images}.",
            "Class images are square, and a training batch holds pictures of one shape.",
            "Set DatasetConfig.aspect to 1:1 or DatasetConfig.class_images to 0.",
        )
        _demand(
            self.captioner == "template" or not small,
            f"captioner is {self.captioner!r}, base is {self.base!r}.",
            "This base knows only the few words that the templates use.",
            "Set DatasetConfig.captioner to template, or choose another base: --base sdxl",
        )


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
    """adamw8bit, adamw, prodigy (arXiv:2306.06101), or auto: adamw8bit where CUDA and bitsandbytes are, else adamw."""
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
        _demand(
            not unused,
            "; ".join(f"{name} is {given[name]}" for name in unused) + f", and method is {method!r}.",
            "That method does not use it.",
            "Leave it out, or choose another TrainConfig.method.",
        )
        return super().for_base(base, **find_base(base).presets.get(f"{cls.__name__}.{method}", {}) | given)

    def __post_init__(self) -> None:
        _demand(
            self.method in METHODS,
            f"method is {self.method!r}.",
            f"Known are: {', '.join(METHODS)}.",
            "Set TrainConfig.method to one of them.",
        )
        _demand(
            1 <= self.token_vectors <= 32,
            f"token_vectors is {self.token_vectors}.",
            "A prompt holds 75 tokens, and has to say more than who it is.",
            "Set TrainConfig.token_vectors from 1 to 32.",
        )
        _demand(
            self.token_factor > 0,
            f"token_factor is {self.token_factor}.",
            "Without a learning rate the new tokens would stay the class word.",
            "Set TrainConfig.token_factor above 0, for example 3.",
        )
        _demand(
            self.targets in ("attention", "all"),
            f"targets is {self.targets!r}.",
            "Known are: attention, all.",
            "Set TrainConfig.targets to one of them.",
        )
        _demand(
            self.optimizer in OPTIMIZERS,
            f"optimizer is {self.optimizer!r}.",
            f"Known are: {', '.join(OPTIMIZERS)}.",
            "Set TrainConfig.optimizer to one of them.",
        )
        _demand(
            self.optimizer != "prodigy" or 0.1 <= self.learning_rate <= 2,
            f"learning_rate is {self.learning_rate}, optimizer is 'prodigy'.",
            "Prodigy finds the size of its steps; the learning rate only scales it.",
            "Set TrainConfig.learning_rate to 1, or TrainConfig.optimizer to adamw.",
        )
        counts = ("rank", "alpha", "steps", "batch", "checkpoint_every_steps", "keep_checkpoints")
        positive = {n: getattr(self, n) for n in counts}
        _demand(
            all(v >= 1 for v in positive.values()),
            "; ".join(f"{n} is {v}" for n, v in positive.items() if v < 1) + ".",
            "Each is a count of at least 1.",
            "Raise it in TrainConfig.",
        )
        self._demand_a_sound_schedule()
        _demand(
            not self.snapshots or self.method == "lora",
            f"snapshots is {self.snapshots}, method is {self.method!r}.",
            "A snapshot is a LoRA file.",
            "Set TrainConfig.snapshots to 0 or TrainConfig.method to lora.",
        )
        _demand(
            0 <= self.snapshots <= self.steps,
            f"snapshots is {self.snapshots}, steps is {self.steps}.",
            "A snapshot is taken after a step, so there are at most as many.",
            "Lower TrainConfig.snapshots or raise TrainConfig.steps.",
        )
        _demand(
            self.optimizer == "prodigy" or 0 < self.learning_rate < 1,
            f"learning_rate is {self.learning_rate}.",
            "LoRAs are trained with 1e-5 to 5e-3, a whole U-Net with less, embeddings with more.",
            "Set TrainConfig.learning_rate, for example 1e-4.",
        )
        _demand(
            1 <= self.face_weight <= 20,
            f"face_weight is {self.face_weight}.",
            "It is the face's weight relative to what surrounds it; below 1 the person would not be learnt.",
            "Set TrainConfig.face_weight in [1, 20], for example 3, or 1 for none.",
        )
        _demand(
            0 <= self.ema < 1,
            f"ema is {self.ema}.",
            "It is the share of the earlier average that each step keeps, in [0, 1); at 1 nothing would be learnt.",
            "Set TrainConfig.ema, for example 0.99, or 0 for none.",
        )
        _demand(
            self.checkpoint_every_minutes >= 0,
            f"checkpoint_every_minutes is {self.checkpoint_every_minutes}.",
            "It is a time, and 0 stands for none.",
            "Set TrainConfig.checkpoint_every_minutes, for example 5.",
        )

    def _demand_a_sound_schedule(self) -> None:
        """Sizes that the bases can make, counts of steps, and as many of them as `steps` says."""
        for px, steps in self.schedule:
            _demand(
                px % 32 == 0 and px > 0 and steps >= 1,
                f"schedule has {steps} steps at {px} px.",
                "The autoencoder and the denoiser halve a picture several times, and each part has a step at least.",
                f"Set the size in TrainConfig.schedule to {max(32, round(px / 32) * 32)}, and 1 step or more.",
            )
        total = sum(steps for _, steps in self.schedule)
        _demand(
            not self.schedule or total == self.steps,
            f"schedule has {total} steps, steps is {self.steps}.",
            "The schedule says at which size each of the steps is made.",
            f"Set TrainConfig.steps to {total}, or change TrainConfig.schedule.",
        )


@dataclass(frozen=True)
class RenderConfig(Config):
    """How headshots are generated."""

    base: str = "sdxl"
    """The base to render with; the LoRA must have been trained on it."""
    count: int = 50
    """Number of prompts, so of headshots to deliver; a bank that is too short is gone through again."""
    size_px: int = 1024
    """Side of the square headshot, px; a multiple of 8. Other aspects have about as many pixels."""
    steps: int = 25
    """Sampler steps."""
    guidance: float = 5.0
    """Classifier-free guidance scale; 1 is off."""
    guidance_share: float = 1.0
    """Fraction of the steps that are guided, the first ones, in [0, 1]; each of the others takes half the time."""
    sampler: str = "base"
    """Which sampler draws, one of SAMPLERS; a base that it does not suit refuses it."""
    lora_scale: float = 1.0
    """Strength of the LoRA; 0 is the bare base."""
    batch: int = 1
    """Headshots rendered at once."""
    max_attempts: int = 3
    """Most tries a prompt gets, each with a new seed; without minutes."""
    minutes: float = 0.0
    """Most minutes that generating takes. Tries then are spent where they pass, more than max_attempts on a prompt
    where that helps, until count are accepted, one of each prompt among them, or the time is up; 0 is no limit."""
    other_scales: tuple[float, ...] = ()
    """Other strengths of the LoRA to try beside lora_scale; with minutes alone."""
    pass_quantile: float = 0.1
    """Quantile of the person's own leave-one-out identities that the pass mark is taken from."""
    pass_floor: float = 0.28
    """Least pass mark; ArcFace's 0.1 % false accepts on LFW lie at 0.28."""
    pass_ceiling: float = 0.55
    """Largest pass mark, for near-equal own photos must not demand more than people vary."""
    min_face: float = 0.2
    """Least height of the face relative to the picture's shorter side; 41 headshots of the embedded base: 0.74 to 0.98,
    a head and shoulders is about 0.45, below 0.2 it is no headshot (2026-11-20)."""
    min_sharpness: float = 5.0
    """Least sharpness of the face, as GateConfig's; the embedded base's 128 px need less, see its preset."""
    min_eye_openness: float = 0.12
    """Least height of the eye opening relative to its width, as GateConfig's; 21 good headshots: at least 0.27."""
    max_disagreement: float = 0.18
    """Largest distance between two landmark models' eyes, nose and mouth, eye distances; beyond it they see no clear
    face. 21 good headshots: at most 0.11; blurred by 2.5 of 128 px: up to 0.33 (2026-11-20)."""
    max_copy: float = 0.95
    """Largest likeness of the face's fine structure to that of one photo. Any two of 54 photos of three sample people:
    at most 0.942; 72 headshots of theirs: 0.72 to 0.80 in the median, at most 0.918; 162 photos shrunk, cut, mirrored,
    recoloured, turned, spoilt or pasted: 160 at least 0.963, two noisy ones 0.89 and 0.93 (2026-11-20)."""
    prompts: str = ""
    """Path of an own prompt bank (TOML); empty: the bank that comes with headshotkit."""
    packs: tuple[str, ...] = ()
    """Packs of the bank to take prompts from, such as ("linkedin",); empty: the whole bank. No prompt need be given."""
    seed: int = 0
    """Seed that all headshots' seeds come from."""

    def __post_init__(self) -> None:
        _demand(
            self.pass_floor <= self.pass_ceiling,
            f"pass_floor {self.pass_floor} is above pass_ceiling {self.pass_ceiling}.",
            "The pass mark lies between them.",
            "Lower RenderConfig.pass_floor or raise RenderConfig.pass_ceiling.",
        )
        _demand(
            not isinstance(self.packs, str),
            f"packs is the text {self.packs!r}.",
            "It is a list of names.",
            f"Set RenderConfig.packs to {tuple(str(self.packs).split(','))}.",
        )
        self._demand_how_to_draw()
        counts = {n: getattr(self, n) for n in ("count", "steps", "batch", "max_attempts")}
        _demand(
            all(v >= 1 for v in counts.values()),
            "; ".join(f"{n} is {v}" for n, v in counts.items() if v < 1) + ".",
            "Each is a count of at least 1.",
            "Raise it in RenderConfig.",
        )
        _demand(
            self.size_px % 8 == 0 and self.size_px > 0,
            f"size_px is {self.size_px}.",
            "The autoencoder halves the picture three times.",
            "Set RenderConfig.size_px to a multiple of 8.",
        )

    def _demand_how_to_draw(self) -> None:
        """Refuses times, strengths, shares and samplers that there are not."""
        _demand(
            self.minutes >= 0,
            f"minutes is {self.minutes}.",
            "It is a time, and 0 stands for no limit.",
            "Set RenderConfig.minutes, for example 20.",
        )
        _demand(
            bool(self.minutes) or not self.other_scales,
            f"other_scales are {self.other_scales}, minutes is 0.",
            "Strengths are compared while there is time to try; without minutes every try has lora_scale.",
            "Set RenderConfig.minutes as well, or no other_scales.",
        )
        _demand(
            0 <= self.guidance_share <= 1,
            f"guidance_share is {self.guidance_share}.",
            "It is the fraction of the sampler's steps that are guided.",
            "Set RenderConfig.guidance_share in [0, 1]; 0.6 guides the first 60 %.",
        )
        _demand(
            self.sampler in SAMPLERS,
            f"sampler is {self.sampler!r}.",
            f"Known are: {', '.join(SAMPLERS)}.",
            "Set RenderConfig.sampler to one of them.",
        )

    def size_for(self, aspect: str) -> tuple[int, int]:
        """The size (width, height) px of a headshot that is meant to have that aspect, one of SDXL_SIZES_PX.

        SDXL's own size for it, scaled with size_px to multiples of 64, as all of SDXL's are; size_px x size_px on a
        base that was trained on squares alone.

        >>> RenderConfig().size_for("4:5"), RenderConfig(base="mini", size_px=128).size_for("4:5")
        ((896, 1152), (128, 128))
        """
        if aspect == "1:1" or (self.base in BASES and BASES[self.base].square_only):
            return self.size_px, self.size_px
        return tuple(max(64, round(side * self.size_px / 1024 / 64) * 64) for side in SDXL_SIZES_PX[aspect])


@dataclass(frozen=True)
class RestoreConfig(Config):
    """How faces are restored."""

    fidelity: float = 0.7
    """CodeFormer's weight in [0, 1]: 0 = better looking, 1 = truer to the input."""
    weights: str = ""
    """Path of codeformer.pth; empty: the cache folder's `codeformer/codeformer.pth`."""
    max_identity_loss: float = 0.02
    """Most identity a restored face may lose; where it loses more, the unrestored headshot is kept."""

    def __post_init__(self) -> None:
        _demand(
            0 <= self.fidelity <= 1,
            f"fidelity is {self.fidelity}.",
            "It mixes CodeFormer's codebook (0) with the input's own features (1).",
            "Set RestoreConfig.fidelity in [0, 1].",
        )
