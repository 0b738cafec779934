import pytest

from headshotkit.bases import BASES, find_base
from headshotkit.config import DatasetConfig, GateConfig, PickConfig, RenderConfig, RestoreConfig, TrainConfig
from headshotkit.errors import BadConfig, UnknownBase


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("config", [DatasetConfig, TrainConfig, RenderConfig])
def test_every_base_has_presets_that_hold(base, config):
    made = config.for_base(base)
    assert made.base == base


def test_presets_give_way_to_what_is_asked_for():
    assert TrainConfig.for_base("mini", steps=7, rank=None).steps == 7
    assert TrainConfig.for_base("mini", rank=None).rank == TrainConfig.for_base("mini").rank


def test_an_unknown_base_lists_the_known_ones():
    known = "mini, sdxl, sdxl-base, flux, flux2, zimage"
    with pytest.raises(UnknownBase, match=rf"no base is called 'sd15'\.\n  The 6 known ones are: {known}"):
        find_base("sd15")


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: RenderConfig(pass_floor=0.6, pass_ceiling=0.5), "pass_floor 0.6 is above pass_ceiling 0.5"),
        (lambda: RenderConfig(count=0), "count is 0"),
        (lambda: RenderConfig(guidance_share=1.2), "guidance_share is 1.2"),
        (lambda: RenderConfig(word_guidance=0.5), "word_guidance is 0.5, word_every is 3"),
        (lambda: RenderConfig(word_every=0), "word_guidance is 1.0, word_every is 0"),
        (lambda: RenderConfig(max_twin=1.2), "max_twin is 1.2"),
        (lambda: RenderConfig(minutes=-1), "minutes is -1"),
        (lambda: RenderConfig(other_scales=(0.8,)), "other_scales are (0.8,), minutes is 0"),
        (lambda: RenderConfig(sampler="ddim"), "sampler is 'ddim'"),
        (lambda: DatasetConfig(size_px=1001), "Set DatasetConfig.size_px to a multiple of 8, such as 1000"),
        (lambda: DatasetConfig(token=" "), "token ' '"),
        (lambda: TrainConfig(targets="everything"), "targets is 'everything'"),
        (lambda: TrainConfig(steps=0), "steps is 0"),
        (lambda: TrainConfig(learning_rate=3.0), "learning_rate is 3.0"),
        (lambda: RestoreConfig(fidelity=1.5), "fidelity is 1.5"),
        (lambda: GateConfig(min_photos=0), "min_photos is 0"),
        (lambda: RenderConfig(seed=-1), "seed is -1"),
        (lambda: PickConfig(seed=-1), "seed is -1"),
        (lambda: TrainConfig(seed=-1), "seed is -1"),
        (lambda: DatasetConfig(seed=-1), "seed is -1"),
        (lambda: DatasetConfig(class_images=-5), "class_images is -5"),
        (lambda: TrainConfig.for_base("mini", stepz=1), "TrainConfig has no setting stepz"),
    ],
)
def test_relations_are_checked_and_named(make, named):
    with pytest.raises(BadConfig) as caught:
        make()
    assert named in str(caught.value)
