"""W, A and B of real layers, against what diffusers itself makes of the file when it fuses it into the base."""

import weakref

import numpy as np
import pytest

from headshotkit.core.errors import BadLora
from headshotkit.core.run import Run
from headshotkit.families import load_family
from headshotkit.training.lora_layers import LoraLayers


@pytest.fixture(scope="module")
def layers(briefly_trained):
    return LoraLayers(Run(briefly_trained))


@pytest.fixture(scope="module")
def fused(briefly_trained):
    """The base with the LoRA in its weights, by diffusers."""
    family = load_family("mini")
    family.use_lora(briefly_trained / "lora" / "person.safetensors", 1.0)
    family.pipeline.fuse_lora()
    family.pipeline.unload_lora_weights()
    return family


@pytest.mark.parametrize("kind", ["attn2.to_v", "attn1.to_q", "ff.net.0.proj", "conv1", "time_emb_proj"])
def test_the_layer_then_has_w_plus_ba(layers, fused, kind):
    layer = layers.find(kind)
    whole = fused.layer_weight(layer.name).numpy().reshape(layer.weight.shape)
    assert np.abs(whole - layer.weight - layer.change).max() < 1e-6 < np.abs(layer.change).max()
    assert len(layer.a) == 32 == layer.b.shape[1] and np.linalg.matrix_rank(layer.change) <= 32
    assert layer.share == pytest.approx(np.linalg.norm(whole - layer.weight) / np.linalg.norm(layer.weight), rel=1e-3)


def test_every_layer_is_counted_once_by_its_kind(layers):
    shares = layers.shares()
    assert sum(len(values) for values in shares.values()) == len(layers.names) == len(layers.tensors) / 2
    assert {"attn1.to_out.0", "attn2.to_k", "conv2", "proj_in"} <= set(shares)
    medians = [np.median(values) for values in shares.values()]
    assert medians == sorted(medians, reverse=True) and medians[-1] > 0
    assert layers.find("attn2.to_v").share == max(shares["attn2.to_v"])


def test_a_word_is_moved_by_what_the_layer_makes_of_it(layers, fused):
    layer = layers.find("attn2.to_v")
    words = layers.words_moved(layer, "photo of ohwx man")
    assert words[0][0] == "<|startoftext|>" and words[-1][0] == "<|endoftext|>" and words[-2][0] == "man"
    states = fused.encode_prompts(["photo of ohwx man"])["text"][0, len(words) - 2].numpy()
    before = layer.weight @ states
    after = fused.layer_weight(layer.name).numpy() @ states
    assert words[-2][1] == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before), rel=1e-3)


def test_the_base_is_given_back_and_loaded_again_when_a_layer_is_read(briefly_trained):
    layers = LoraLayers(Run(briefly_trained))
    name, unet = layers.names[0], weakref.ref(layers.family.pipeline.unet)
    weight = layers[name].weight
    layers.free()
    layers.free()
    assert unet() is None
    assert (layers[name].weight == weight).all()


def test_an_unknown_kind_is_said_with_the_known_ones(layers):
    with pytest.raises(BadLora, match=r"to_x(.|\n)*attn1.to_k"):
        layers.find("to_x")
