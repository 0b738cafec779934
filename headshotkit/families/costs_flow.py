"""The costs of the flow-matching bases: counted figures, apart from SDXL's, as none of these bases was ever run whole.

Bytes and FLOPs were counted by `tests/benchmarks/counting_flow.py` on the published configs. The GPUs' speed is
estimated from SDXL's rates. Nothing here was measured.
"""

from __future__ import annotations

from headshotkit.families.costs import FamilyCosts

FLOW_KINDS = ("forward", "step", "step_checkpointed", "decode", "encode", "text")
FLOW_SIZES_PX = (512, 768, 1024)
WORDS = {"flux": 512, "flux2": 512, "zimage": 128}
"""Text tokens that a denoiser reads: the first two pad to this number; Z-Image reads only a caption's own, about
128 at most with the chat template."""
NF4_SLOWER = (1.1, 1.3)
"""Time with NF4 relative to float16 weights, central and pessimistic; estimate: turning FLUX.1's weights to float16
moves 4.5 bytes a weight, 5 % of a pass on a T4 of 320 GB/s, and its kernel is not perfect."""

# (TFLOP, peak GiB, weights GiB) of batch 1, by `python tests/benchmarks/counting_flow.py`, with torch 2.13.0,
# diffusers 0.42.1, peft 0.21.2, transformers 5.23.0; tests/planning/test_plan_flow.py counts some of them again.
COUNTED_FLOW: dict[tuple[str, str, int], tuple[float, float, float]] = {
    ("flux2", "forward", 512): (10.173, 2.218, 1.862),
    ("flux2", "forward", 768): (19.738, 2.375, 1.862),
    ("flux2", "forward", 1024): (34.820, 2.594, 1.862),
    ("flux2", "text", 1024): (4.273, 3.759, 3.195),
    ("flux2", "decode", 512): (2.516, 1.064, 0.313),
    ("flux2", "decode", 768): (5.757, 2.002, 0.313),
    ("flux2", "decode", 1024): (10.475, 3.315, 0.313),
    ("flux2", "encode", 512): (1.119, 0.941, 0.313),
    ("flux2", "encode", 768): (2.614, 1.726, 0.313),
    ("flux2", "encode", 1024): (4.888, 2.825, 0.313),
    ("flux2", "step", 512): (21.469, 8.782, 1.924),
    ("flux2", "step", 768): (43.220, 14.452, 1.924),
    ("flux2", "step", 1024): (79.591, 22.390, 1.924),
    ("flux2", "step_checkpointed", 512): (31.665, 2.742, 1.924),
    ("flux2", "step_checkpointed", 768): (63.022, 3.286, 1.924),
    ("flux2", "step_checkpointed", 1024): (114.532, 4.047, 1.924),
    ("zimage", "forward", 512): (13.694, 3.163, 2.959),
    ("zimage", "forward", 768): (30.436, 3.308, 2.959),
    ("zimage", "forward", 1024): (56.580, 3.511, 2.959),
    ("zimage", "text", 1024): (3.875, 3.530, 3.195),
    ("zimage", "decode", 512): (2.515, 1.063, 0.312),
    ("zimage", "decode", 768): (5.755, 2.000, 0.312),
    ("zimage", "decode", 1024): (10.472, 3.313, 0.312),
    ("zimage", "encode", 512): (1.118, 0.940, 0.312),
    ("zimage", "encode", 768): (2.611, 1.725, 0.312),
    ("zimage", "encode", 1024): (4.883, 2.824, 0.312),
    ("zimage", "step", 512): (28.358, 13.187, 3.021),
    ("zimage", "step", 768): (65.214, 24.400, 3.021),
    ("zimage", "step", 1024): (126.284, 40.099, 3.021),
    ("zimage", "step_checkpointed", 512): (42.084, 3.739, 3.021),
    ("zimage", "step_checkpointed", 768): (95.722, 4.455, 3.021),
    ("zimage", "step_checkpointed", 1024): (182.990, 5.458, 3.021),
    ("flux", "forward", 512): (21.503, 5.983, 5.722),
    ("flux", "forward", 768): (41.930, 6.109, 5.722),
    ("flux", "forward", 1024): (74.385, 6.285, 5.722),
    ("flux", "text", 1024): (4.858, 6.788, 6.440),
    ("flux", "decode", 512): (2.515, 1.063, 0.312),
    ("flux", "decode", 768): (5.755, 2.000, 0.312),
    ("flux", "decode", 1024): (10.472, 3.313, 0.312),
    ("flux", "encode", 512): (1.118, 0.940, 0.312),
    ("flux", "encode", 768): (2.611, 1.725, 0.312),
    ("flux", "encode", 1024): (4.883, 2.824, 0.312),
    ("flux", "step", 512): (45.549, 16.489, 5.820),
    ("flux", "step", 768): (92.327, 25.241, 5.820),
    ("flux", "step", 1024): (171.311, 37.494, 5.820),
    ("flux", "step_checkpointed", 512): (67.095, 6.722, 5.820),
    ("flux", "step_checkpointed", 768): (134.347, 7.383, 5.820),
    ("flux", "step_checkpointed", 1024): (245.852, 8.308, 5.820),
}


def _costs(family: str, guided_passes: int, together: int) -> FamilyCosts:
    """Return a family's part of COUNTED_FLOW."""
    counted = {(kind, px): figures for (name, kind, px), figures in COUNTED_FLOW.items() if name == family}
    return FamilyCosts(counted, guided_passes, together, in_turn=True, slower=NF4_SLOWER)


FLUX = _costs("flux", guided_passes=1, together=1)
"""FLUX.1's guidance is distilled into one pass."""
FLUX2 = _costs("flux2", guided_passes=2, together=1)
"""FLUX.2 runs its two passes in turn."""
ZIMAGE = _costs("zimage", guided_passes=2, together=2)
