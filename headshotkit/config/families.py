"""The model families, a record each: how its weights are recognised, and where its code and its figures are.

A new family is a module in `headshotkit/families/` and a record in FAMILIES. All other code reads the record. A family
needs no more to train a LoRA; other methods, guides and a cost table are optional. Without a cost table no time is
planned.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class FamilySpec:
    """A model architecture.

    Code is named by its place in `headshotkit/families/`, module:name, so that reading this table loads no library.

    `code`: the class of its `Family`. `pipeline`: the class in diffusers that model_index.json names. `tokenizers`:
    part of the pipeline -> its class in transformers. `lora_prefix`: how tensors' names in its LoRA files begin.
    `methods`: training method -> its `Method`; every family can train a LoRA. `controls`: its `Controls`; empty: it
    draws by prompts only. `costs`: its `FamilyCosts`; empty: none were counted. `kohya`: the module of kohya's names
    for its layers; empty: its LoRAs are exported for diffusers only. `read_configs`: U-Net and autoencoder, if their
    configs tell the size of its pictures; empty: that is 1024 px. `held_share`: share of its weights that are in memory
    at once. `presets`: config -> settings of its bases, if none of them is a preset of `bases.BASES`. `file_parts`:
    part -> how its tensors' names begin in a single file; empty: it can't be loaded from one. `file_marks`: pieces of
    tensors' names that show that a single file is of this family. `known_as`: the name of such a file in an error.
    """

    code: str
    pipeline: str
    tokenizers: dict[str, str]
    lora_prefix: str = "transformer."
    methods: dict[str, str] = field(default_factory=dict)
    controls: str = ""
    costs: str = ""
    kohya: str = ""
    read_configs: tuple[str, ...] = ()
    held_share: float = 0.5
    presets: dict[str, dict] = field(default_factory=dict)
    file_parts: dict[str, str] = field(default_factory=dict)
    file_marks: tuple[str, ...] = ()
    known_as: str = ""


FAMILIES = {
    "sdxl": FamilySpec(
        "sdxl:SdxlFamily", "StableDiffusionXLPipeline", {"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer"},
        lora_prefix="unet.",
        methods={"dreambooth": "sdxl_methods:FullUnet", "textual-inversion": "sdxl_methods:TextualInversion",
                 "pivotal": "sdxl_methods:Pivotal"},
        controls="sdxl_controls:SdxlControls", costs="costs:SDXL", kohya="sdxl_kohya",
        read_configs=("unet", "vae"), held_share=1.0,
        file_parts={
            "the U-Net": "model.diffusion_model.",
            "the first text encoder": "conditioner.embedders.0.transformer.",
            "the second text encoder": "conditioner.embedders.1.model.",
            "the autoencoder": "first_stage_model.",
        },
    ),
    "flux": FamilySpec(
        "flux:FluxFamily", "FluxPipeline", {"tokenizer": "CLIPTokenizer", "tokenizer_2": "T5TokenizerFast"},
        costs="costs_flow:FLUX", file_marks=("double_blocks.",), known_as="a Flux model",
    ),
    "flux2": FamilySpec(
        "flux2:Flux2Family", "Flux2KleinPipeline", {"tokenizer": "Qwen2TokenizerFast"}, costs="costs_flow:FLUX2"
    ),
    "zimage": FamilySpec(
        "zimage:ZImageFamily", "ZImagePipeline", {"tokenizer": "Qwen2TokenizerFast"}, costs="costs_flow:ZIMAGE"
    ),
}  # fmt: skip
