"""A training step in half precision: which precision its operations have, and how far its numbers stray.

A GPU computes SDXL so; here it is the embedded base in float16 on a CPU, under torch's own autocast for CPUs. That
leaves norms alone where CUDA's takes float32, so CUDA's rule is applied by hand where the two are compared. What is
left unproved is CUDA's own kernels.
"""

from collections import Counter

import pytest
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from headshotkit.config import TrainConfig
from headshotkit.core import runtime
from headshotkit.families import load_family
from headshotkit.training.examples import Batch
from headshotkit.training.step import denoising_loss

NORMS = (functional.layer_norm, functional.group_norm)
SIZES = [(256, 256, 0, 0, 256, 256)]


class NormsInFloat32(TorchFunctionMode):
    """CUDA's autocast rule for norms, where autocast is on."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in NORMS and torch.is_autocast_enabled("cpu"):
            args = [a.float() if isinstance(a, torch.Tensor) else a for a in args]
            kwargs = {n: a.float() if isinstance(a, torch.Tensor) else a for n, a in kwargs.items()}
        return function(*args, **kwargs)


class Watch(TorchDispatchMode):
    """FLOPs of each dtype, the dtypes of all tensors, and what norms give."""

    def __init__(self):
        super().__init__()
        self.flops, self.dtypes, self.norms = Counter(), Counter(), Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, made)) if isinstance(x, torch.Tensor)]
        self.dtypes.update(tensor.dtype for tensor in tensors)
        packet = operation.overloadpacket
        if packet in flop_registry:
            widest = max((t.dtype for t in tensors if t.is_floating_point()), key=lambda dtype: dtype.itemsize)
            self.flops[widest] += flop_registry[packet](*args, **(kwargs or {}), out_val=made)
        if packet in (torch.ops.aten.native_group_norm, torch.ops.aten.native_layer_norm):
            self.norms[made[0].dtype] += 1
        return made


def half_family():
    """The embedded base as a T4 would hold it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "choose_dtype", lambda device: (torch.float16, "as on a T4"))
        return load_family("mini")


def watched_step(family):
    """Loss, gradients and operations of one training step of one picture with a LoRA that is not zero."""
    condition = family.encode_prompts(["photo of a man"])
    parameters = family.add_lora(8, 8, "all", seed=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters:
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    latents = torch.randn(1, 12, 16, 16, generator=generator)
    with Watch() as watch:
        batch, seeded = Batch(latents, condition, SIZES), torch.Generator().manual_seed(1)
        loss = denoising_loss(family, batch, TrainConfig.for_base("mini"), seeded)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=family.dtype == torch.float16)
        scaler.scale(loss.mean()).backward()
    scale = scaler.get_scale() if family.dtype == torch.float16 else 1.0
    return float(loss.detach().mean()), torch.cat([p.grad.flatten() for p in parameters]) / scale, watch


@pytest.fixture(scope="module")
def exact():
    """The step in float32."""
    return watched_step(load_family("mini"))


@pytest.fixture(scope="module")
def by_cudas_rule():
    """The step in float16 under CUDA's rule for norms: (as headshotkit has them, as autocast would)."""
    with NormsInFloat32(), pytest.MonkeyPatch.context() as patch:
        ours = watched_step(half_family())
        patch.setattr("headshotkit.families.sdxl.keep_norms_half", lambda unet, device: None)
        return ours, watched_step(half_family())


def test_no_slow_operation_is_in_a_half_precision_step():
    """No bfloat16, which a T4 computes 20 times slower, and under 1 % of the work in float32."""
    _, _, watch = watched_step(half_family())
    assert watch.dtypes[torch.bfloat16] == watch.dtypes[torch.float64] == 0
    total = sum(watch.flops.values())
    assert total > 1e9 and watch.flops[torch.float32] / total < 0.01, watch.flops
    assert set(watch.norms) == {torch.float16}


def test_the_watch_sees_what_is_slow(exact):
    assert exact[2].flops[torch.float32] == sum(exact[2].flops.values()) > 1e9


def test_norms_are_computed_outside_autocast(by_cudas_rule):
    """Else CUDA's autocast, whose rule is applied here, would give float32 and keep it for the backward pass."""
    ours, autocast = by_cudas_rule
    assert set(ours[2].norms) == {torch.float16} and torch.float32 in autocast[2].norms


def test_norms_in_half_precision_cost_little_accuracy(exact, by_cudas_rule):
    """Gradients against float32's: at most 1 % off; measured 0.35 %, with norms in float32 0.19 % (2026-11-21)."""
    strayed = [float((gradients - exact[1]).norm() / exact[1].norm()) for _, gradients, _ in by_cudas_rule]
    print("gradients off by", strayed)
    assert all(loss == pytest.approx(exact[0], rel=0.02) for loss, _, _ in by_cudas_rule)
    assert max(strayed) < 0.01
