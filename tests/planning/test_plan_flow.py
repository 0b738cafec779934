"""The planner on the experimental bases: counted on their published configs; nothing was ever measured."""

import json

import counting_flow
import pytest
import torch

from headshotkit.cli import main
from headshotkit.core.errors import NotEnoughMemory, TooFewMinutes
from headshotkit.families.costs import GIB, GPUS, cost
from headshotkit.families.costs_flow import COUNTED_FLOW, FLOW_KINDS, FLOW_SIZES_PX
from headshotkit.planning.ladder import LADDERS, Task
from headshotkit.planning.plan import plan_rest, plan_run

FLOWS = ("flux", "flux2", "zimage")
PARAMETERS = {"flux": 11_901_408_320, "flux2": 3_875_544_576, "zimage": 6_154_908_736}


def test_the_denoisers_have_the_published_sizes():
    """12 B, 4 B and 6 B as their model cards round them."""
    with torch.device("meta"):
        made = {name: sum(p.numel() for p in build().parameters()) for name, build in counting_flow.DENOISERS.items()}
    assert made == PARAMETERS


def test_every_base_has_every_figure():
    sizes = {kind: FLOW_SIZES_PX[-1:] if kind == "text" else FLOW_SIZES_PX for kind in FLOW_KINDS}
    assert set(COUNTED_FLOW) == {(b, kind, px) for b in FLOWS for kind in FLOW_KINDS for px in sizes[kind]}


@pytest.mark.parametrize(
    ("base", "kind", "px"),
    [("flux", "forward", 512), ("flux2", "step_checkpointed", 512), ("zimage", "forward", 1024),
     ("flux", "text", 1024), ("zimage", "text", 1024), ("flux2", "decode", 512)],
)  # fmt: skip
def test_the_kept_figures_are_what_is_counted(base, kind, px):
    """Another diffusers or peft may need other memory: then the table must be printed anew."""
    counted, kept = counting_flow.count(base, kind, px), cost(kind, px, family=base)
    assert counted.tflop == pytest.approx(kept.tflop, rel=0.01)
    assert counted.peak_gib == pytest.approx(kept.peak_gib, rel=0.01)
    assert counted.weights_gib == pytest.approx(kept.weights_gib, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("base", "kind", "px"), COUNTED_FLOW)
def test_every_kept_figure_is_what_is_counted(base, kind, px):
    counted, kept = counting_flow.count(base, kind, px), cost(kind, px, family=base)
    assert (counted.tflop, counted.peak_gib) == pytest.approx((kept.tflop, kept.peak_gib), rel=0.01)


def test_nf4_weights_take_a_little_more_than_half_a_byte():
    for base, parameters in PARAMETERS.items():
        assert cost("forward", family=base).weights_gib == pytest.approx(parameters * 0.516 / GIB, rel=0.01)


def test_flops_agree_with_a_count_by_hand():
    """Z-Image at 1024 px: its 30 layers (3840 wide, feed-forward 10240) read 4096 picture and 128 text tokens."""
    tokens, width = 4096 + 128, 3840
    layer = 2 * tokens * width * (4 * width + 3 * 10240) + 4 * tokens**2 * width
    refiners = 2 * layer * (4096 / tokens)
    assert cost("forward", family="zimage").tflop * 1e12 == pytest.approx(30 * layer + refiners, rel=0.02)


def test_a_checkpointed_step_computes_more_and_holds_less():
    for base in FLOWS:
        for px in FLOW_SIZES_PX:
            plain, frugal = cost("step", px, family=base), cost("step_checkpointed", px, family=base)
            forward = cost("forward", px, family=base)
            assert frugal.tflop == pytest.approx(plain.tflop + forward.tflop, rel=0.03)
            assert frugal.peak_gib < 0.6 * plain.peak_gib and frugal.peak_gib > plain.weights_gib


@pytest.mark.parametrize("base", FLOWS)
def test_the_verdict_on_a_t4_is_a_refusal_with_numbers_or_a_plan_that_fits(base):
    with pytest.raises(TooFewMinutes, match="50 headshots in 60 minutes .* t4") as caught:
        plan_run("t4", 50, 60, base)
    assert "14.7 GiB" in caught.value.why
    least = int(caught.value.next_step.split("at least ")[1].split()[0])
    plan = plan_run("t4", 50, least, base)
    assert plan.fits and plan.task.base == base and 0 < plan.peak_gib <= 14.7


@pytest.mark.parametrize("gpu", ["rtx3090", "rtx4090"])
@pytest.mark.parametrize("base", FLOWS)
def test_24_gb_hold_every_base(gpu, base):
    plan = plan_run(gpu, 50, 600, base)
    assert plan.fits and plan.peak_gib <= GPUS[gpu].memory_gib and plan.choice == LADDERS[base][0]
    assert "estimated" in plan.explain() and "experimental" in plan.explain()


def test_a_gpu_too_small_for_the_weights_is_said():
    with pytest.raises(NotEnoughMemory, match="flux"):
        plan_rest(Task(GPUS["t4"], "flux", 50, 600.0, 6.0))


def test_fewer_minutes_never_plan_more():
    plans = [plan_run("rtx4090", 50, minutes, "flux") for minutes in range(120, 400, 20)]
    indices = [LADDERS["flux"].index(plan.choice) for plan in plans]
    assert indices == sorted(indices, reverse=True)


def test_the_command_gives_the_verdict(capsys):
    assert main(["plan", "--gpu", "rtx4090", "--base", "flux", "--minutes", "400", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["base"] == "flux" and "flux, experimental: " in captured.err
    assert main(["plan", "--gpu", "t4", "--base", "flux"]) == 2
    assert "measured" in capsys.readouterr().err
