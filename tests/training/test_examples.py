"""What a training draws from: the weight of the face."""

import numpy as np
import pytest
import torch
from conftest import open_picture
from PIL import Image

from headshotkit.config import PrepareConfig, TrainConfig
from headshotkit.core.errors import BadConfig
from headshotkit.core.records import Dataset, TrainingPhoto
from headshotkit.dataset.build import prepare_dataset
from headshotkit.families import load_family
from headshotkit.training.examples import Batch, Examples, cached_examples, face_weights, facts_at, window_at
from headshotkit.training.step import denoising_loss


@pytest.fixture(scope="module")
def family():
    return load_family("mini")


# --- sizes --------------------------------------------------------------------------------------------------------


def test_all_sizes_are_encoded_once_and_told_the_truth(prepared_run, family, monkeypatch):
    """Latents at 3/4 are those of the picture made smaller; the U-Net is told that size, and a crop moved with it."""
    folder, encoded = prepared_run.path("dataset"), []
    encode = family.encode_images
    monkeypatch.setattr(family, "encode_images", lambda images: (encoded.extend(images), encode(images))[1])
    dataset = Dataset.from_dict(prepared_run.manifest("dataset")["dataset"])
    count = len(dataset.photos)
    person, _, _ = cached_examples(family, folder, dataset, prepared_run.folder, {192, 256})
    assert sorted(image.size for image in encoded) == [(192, 192)] * count + [(256, 256)] * count
    again, _, _ = cached_examples(family, folder, dataset, prepared_run.folder, {128, 192})
    assert sorted(image.size for image in encoded[2 * count :]) == [(128, 128)] * count, "192 px were encoded twice"
    assert torch.equal(again[192].latents, person[192].latents) and again[128].latents.shape[-2:] == (8, 8)
    small = open_picture(folder / dataset.photos[3].file).resize((192, 192), Image.Resampling.LANCZOS)
    assert torch.allclose(person[192].latents[3:4], encode([small]), atol=1e-5)
    for photo, at_192, at_256 in zip(dataset.photos, person[192].sizes, person[256].sizes, strict=True):
        corner = photo.crop_top_left_px
        assert at_256 == (*photo.original_size_px[::-1], *corner, 256, 256)
        assert at_192 == (*photo.original_size_px[::-1], *(round(c * 0.75) for c in corner), 192, 192)
    assert np.allclose(person[192].boxes, person[256].boxes)


def test_another_shape_keeps_the_face_where_it_is():
    """832 x 1152 px has no exact 3/4 in multiples of 32, so a little is cut off; what is told follows."""
    photo = TrainingPhoto("a.png", "a.jpg", "", (3000, 4000), (100, 60), (200.0, 300.0, 600.0, 800.0), (832, 1152))
    size, window = window_at(photo.size_px, 1024, 768)
    assert size == (640, 864) and window == pytest.approx((0, 14.4, 832, 1137.6))
    facts, box = facts_at(photo, 1024, 768)
    assert facts == (4000, 3000, round(114.4 * 640 / 832), round(60 * 640 / 832), 864, 640)
    assert box == pytest.approx((200 / 832, (300 - 14.4) / 1123.2, 600 / 832, (800 - 14.4) / 1123.2))


# --- the weight of the face ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1.5, 3.0, 20.0])
@pytest.mark.parametrize("box", [(0.25, 0.2, 0.75, 0.8), (0.0, 0.0, 0.4, 0.5), (-0.1, 0.4, 1.2, 1.3)])
def test_the_face_counts_more_and_the_mean_stays_one(box, weight):
    weights = face_weights(box, 96, 128, weight)
    assert weights.shape == (1, 96, 128) and float(weights.mean()) == pytest.approx(1, abs=1e-5)
    middle = weights[0, int(96 * np.clip((box[1] + box[3]) / 2, 0, 1)), int(128 * np.clip((box[0] + box[2]) / 2, 0, 1))]
    assert float(middle / weights.min()) == pytest.approx(weight, rel=1e-5)


def test_the_edge_is_soft_and_lies_outside_the_box():
    weights = face_weights((0.3, 0.3, 0.7, 0.7), 100, 100, 3.0)[0, 50]
    steps = weights.diff().abs() / (weights.max() - weights.min())
    assert weights[31:69].min() == weights.max() and weights[15] == weights.min() and steps.max() < 0.15


def test_a_picture_without_a_face_and_weight_one_are_left_alone():
    latents = torch.zeros(2, 4, 8, 8)
    class_images = Examples(latents, [0, 0], [(8, 8, 0, 0, 8, 8)] * 2, [])
    person = Examples(latents, [0, 0], [(8, 8, 0, 0, 8, 8)] * 2, [(0.2, 0.2, 0.8, 0.8)] * 2)
    assert class_images.weights([0, 1], 3.0) is None and person.weights([0, 1], 1.0) is None
    assert person.weights([1, 0, 1], 3.0).shape == (3, 1, 8, 8)


def test_the_loss_is_the_weighted_mean(family, monkeypatch):
    """A U-Net that answers nothing leaves the target as the error: its weighted square is the loss."""
    latents = torch.randn(2, 12, 16, 16, generator=torch.Generator().manual_seed(3))
    condition, sizes = family.encode_prompts(["photo of a man", ""]), [(256, 256, 0, 0, 256, 256)] * 2
    monkeypatch.setattr(family, "predict", lambda noised, *_: torch.zeros_like(noised.latents))
    config = TrainConfig.for_base("mini", min_snr_gamma=0.0)

    def loss(weights):
        batch = Batch(latents, condition, sizes, weights)
        return denoising_loss(family, batch, config, torch.Generator().manual_seed(0))

    left = torch.zeros(2, 1, 16, 16)
    left[..., :8] = 2
    whole, both = loss(None), (loss(left), loss(2 - left))
    assert torch.allclose(loss(torch.ones(2, 1, 16, 16)), whole) and not torch.allclose(*both)
    assert torch.allclose((both[0] + both[1]) / 2, whole)


def test_where_the_face_is_survives_mirroring_and_turning(prepared_run, family):
    """Of each augmented picture, the middle of the weights is the mirrored, or about the turned, face's."""
    run = prepared_run
    prepare_dataset(run, PrepareConfig.for_base("mini", class_word="man", augment="full"))
    dataset = Dataset.from_dict(run.manifest("dataset")["dataset"])
    person = cached_examples(family, run.path("dataset"), dataset, run.folder, {256})[0][256]
    names = [photo.file for photo in dataset.photos]
    weights = person.weights(list(range(len(names))), 3.0)[:, 0] - 1
    places = torch.arange(16) + 0.5
    across = (weights.clamp(min=0).sum(1) @ places) / weights.clamp(min=0).sum((1, 2))
    kinds = {
        kind: [i for i, name in enumerate(names) if name.endswith(f"_{kind}.png")] for kind in ("mirrored", "turned")
    }
    for kind, pictures in kinds.items():
        plain = [names.index(names[i].replace(f"_{kind}", "")) for i in pictures]
        assert len(pictures) >= 10
        expected = 16 - across[plain] if kind == "mirrored" else across[plain]
        assert (across[pictures] - expected).abs().max() < (1e-3 if kind == "mirrored" else 1.5)


@pytest.mark.parametrize("value", [0.5, 21.0, float("nan")])
def test_a_face_weight_out_of_range_is_named(value):
    with pytest.raises(BadConfig, match=f"face_weight is {value}"):
        TrainConfig(face_weight=value)
