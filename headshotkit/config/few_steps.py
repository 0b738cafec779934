"""Distilled LoRAs that let SDXL draw in a few steps, by name. All come from SDXL 1.0 and are on the hub."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FewSteps:
    """A distilled LoRA from the hub (or a folder) and its sampler settings; `bases` are those that it fits."""

    source: str
    file: str
    steps: int
    sampler: str
    guidance: float = 1.0
    bases: tuple[str, ...] = ("sdxl", "sdxl-base")
    licence: str = "openrail++"


FEW_STEPS = {
    "lightning": FewSteps("ByteDance/SDXL-Lightning", "sdxl_lightning_8step_lora.safetensors", 8, "euler-trailing"),
    "hyper": FewSteps("ByteDance/Hyper-SD", "Hyper-SDXL-8steps-lora.safetensors", 8, "ddim-trailing"),
    "lcm": FewSteps("latent-consistency/lcm-lora-sdxl", "pytorch_lora_weights.safetensors", 8, "lcm"),
}
"""Name -> LoRA, with its model card's settings (arXiv:2402.13929, arXiv:2404.13686, arXiv:2311.05556), each in the
variant with most steps, because it keeps most quality. None has been tested here."""
