"""Memory that gives out, and numbers that are not finite, injected at each stage of the embedded base.

A fault is raised at a library's boundary (a network's forward pass, an autoencoder's call) in the library's own words.
That proves what follows it, not when it comes: no GPU has run out of memory here.
"""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import P2, note_again
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file

from headshotkit.config import METHODS, GenerateConfig, PrepareConfig, RunSettings, TrainConfig
from headshotkit.core import runtime
from headshotkit.core.errors import BadLora, DiskFull, NotFinite, OutOfMemory
from headshotkit.core.records import Dataset, Lora, Names
from headshotkit.core.run import Run
from headshotkit.dataset import class_images
from headshotkit.families import CHANGES, Sampling, drawing, frugal, load_family
from headshotkit.families.controls import Guide, load_controls
from headshotkit.families.methods import use_trained
from headshotkit.generation import headshots, previews
from headshotkit.generation.pictures import PictureRequest, fitted_photo
from headshotkit.pipeline import begin_deadline
from headshotkit.planning.plan import plan_run
from headshotkit.restoration import codeformer, restore
from headshotkit.training import recovery, state, train
from headshotkit.training.checkpoints import Checkpoints, read_checked
from headshotkit.training.examples import cached_examples
from headshotkit.training.export import export_lora
from headshotkit.training.state import TrainState
from headshotkit.training.train import train_lora

SAID = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    MemoryError("std::bad_alloc"),
]
"""A class of running out of memory each, on the GPU and in the host."""
SOME = [SAID[0], *(pytest.param(error, marks=pytest.mark.slow) for error in SAID[1:])]
by_class, by_some = (
    pytest.mark.parametrize("error", some, ids=lambda error: type(error).__name__ + str(error)[:24])
    for some in (SAID, SOME)
)
TINY = Sampling((64, 64), 2, 1.0)
INPUTS = ["photo of a man"] * 4, [""] * 4, [1, 2, 3, 4]


@pytest.fixture(scope="module")
def loaded():
    """The base; `family` gives it out without what a test noted in it."""
    return load_family("mini")


@pytest.fixture
def family(loaded):
    loaded.changes, loaded.bare = [], None
    return loaded


class Fault:
    """Raises in place of a call that `is_too_much` says yes to; `seen` are the sizes of all calls."""

    def __init__(self, error, is_too_much):
        self.error, self.is_too_much, self.seen = error, is_too_much, []

    def __call__(self, module, inputs, kwargs=None):
        self.seen.append(len(inputs[0]))
        if self.is_too_much(len(inputs[0])):
            raise self.error


@pytest.fixture
def tiling(family, monkeypatch):
    """The base with a random autoencoder of SDXL's class, which can work in tiles; the base's own can't."""
    torch.manual_seed(0)
    sides = {"down_block_types": ("DownEncoderBlock2D",) * 5, "up_block_types": ("UpDecoderBlock2D",) * 5}
    vae = AutoencoderKL(
        **sides, block_out_channels=(8,) * 5, latent_channels=12, norm_num_groups=4, sample_size=256, force_upcast=False
    )
    monkeypatch.setattr(family.pipeline, "vae", vae.eval())
    return family


@pytest.fixture
def put():
    """Puts a fault before a network's forward pass, until the test ends: put(network, fault)."""
    hooks = []
    yield lambda network, fault: hooks.append(network.register_forward_pre_hook(fault, with_kwargs=True))
    for hook in hooks:
        hook.remove()


def near(one, other, levels):
    return all(np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= levels for a, b in zip(one, other, strict=True))


# --- drawing ------------------------------------------------------------------------------------------------------


@by_class
def test_fewer_are_drawn_at_once_and_the_pictures_are_the_same(family, put, error):
    whole = family.render(*INPUTS, TINY)
    fault = Fault(error, lambda rows: rows > 2)
    put(family.pipeline.unet, fault)
    assert near(family.render(*INPUTS, TINY), whole, 2)
    (change,) = family.changes
    assert change["pictures_at_once"] == 2 and "\n" not in change["why"] and fault.seen == [4, 2, 2, 2, 2]
    family.render(*INPUTS, TINY)
    assert fault.seen[5:] == [2] * 4 and len(family.changes) == 1, "what was noted holds, also after an interruption"


def test_one_picture_that_is_too_much_is_an_error_and_a_bug_is_none_of_it(family, put):
    fault = Fault(SAID[0], lambda rows: True)
    put(family.pipeline.unet, fault)
    with pytest.raises(OutOfMemory) as caught:
        family.render(*INPUTS, TINY)
    assert fault.seen == [4, 2, 1] and caught.value.why == "CUDA out of memory. Tried to allocate 2.00 GiB."
    fault.error = RuntimeError("The size of tensor a (4) must match the size of tensor b (3)")
    with pytest.raises(RuntimeError, match="size of tensor"):
        family.render(*INPUTS, TINY)
    assert not family.pipeline.unet._forward_hooks and len(family.pipeline.unet._forward_pre_hooks) == 1


@by_some
def test_decoding_goes_on_in_slices_then_in_tiles(tiling, monkeypatch, error):
    """The autoencoder refuses two pictures at once, then a whole one; at this size tiles alter nothing."""
    family = tiling
    whole, vae = family.render(*INPUTS, TINY), family.pipeline.vae
    decode, calls = vae.decode, []

    def refuse(latents, **options):
        calls.append((vae.use_slicing, vae.use_tiling))
        if not vae.use_tiling:
            raise error
        return decode(latents, **options)

    monkeypatch.setattr(vae, "decode", refuse)
    assert near(family.render(*INPUTS, TINY), whole, 2)
    assert calls == [(False, False), (True, False), (True, True)] and family.decoding.startswith("tiles: ")
    assert [change["autoencoder"] for change in family.changes] == ["slices", "tiles"]
    monkeypatch.setattr(vae, "decode", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(OutOfMemory):
        family.render(*INPUTS, TINY)
    assert not (vae.use_slicing or vae.use_tiling), "the next picture is encoded whole"


@by_some
def test_encoding_goes_on_in_tiles(tiling, monkeypatch, error):
    family, image, vae = tiling, Image.new("RGB", (64, 64), "grey"), tiling.pipeline.vae
    encode = vae.encode
    whole = family.encode_images([image])
    monkeypatch.setattr(vae, "encode", lambda *a: encode(*a) if vae.use_tiling else (_ for _ in ()).throw(error))
    assert torch.allclose(family.encode_images([image]), whole, atol=1e-5)
    assert [change["autoencoder"] for change in family.changes] == ["tiles"]


def test_an_autoencoder_without_tiles_is_not_asked_for_them(family, monkeypatch):
    """The embedded base's: its tiles would not fit together."""
    vae = family.pipeline.vae
    monkeypatch.setattr(runtime, "free_gpu_gib", lambda: 0.001)
    assert drawing.fit_decoding(vae, (1024, 1024), 2).startswith("slices: ") and not vae.use_tiling
    monkeypatch.setattr(vae, "decode", lambda *_, **__: (_ for _ in ()).throw(SAID[0]))
    with pytest.raises(OutOfMemory):
        family.render(*INPUTS, TINY)


def test_what_overflows_in_half_precision_is_decoded_again_in_float32(family):
    vae, seen = AutoencoderKL(block_out_channels=(32,), force_upcast=False).half(), []

    def decoded():
        seen.append(vae.dtype)
        return torch.full((1, 3, 8, 8), torch.nan if vae.dtype == torch.float16 and len(seen) < 3 else 0.5)

    assert frugal.coded(family, vae, 1, decoded).mean() == 0.5
    assert seen == [torch.float16, torch.float32] and vae.dtype == torch.float16
    assert [change["autoencoder"] for change in family.changes] == ["float32"]
    vae.float()
    with pytest.raises(NotFinite, match="1 of 1 pictures"):
        frugal.coded(family, vae, 1, lambda: torch.full((1, 3, 8, 8), torch.inf))


def test_latents_that_are_not_finite_are_no_black_picture(family):
    spoil = family.pipeline.unet.register_forward_hook(lambda net, inputs, made: (made[0] * torch.nan,))
    try:
        with pytest.raises(NotFinite, match="4 of 4 pictures"):
            family.render(*INPUTS, TINY)
        with pytest.raises(NotFinite, match="4 of 4 pictures"):
            load_controls(family).render(*INPUTS, TINY, Guide(refined=0.5))
    finally:
        spoil.remove()


def test_the_refiner_is_loaded_once_for_all_parts_and_then_dropped(family, put, monkeypatch):
    controls, unets = load_controls(family), []
    monkeypatch.setattr(controls, "_load_refiner", lambda load=controls._load_refiner: unets.append(load()) or unets[0])
    guide, sampling = Guide(refined=0.5), replace(TINY, steps=4)
    whole = controls.render(*INPUTS, sampling, guide)
    put(family.pipeline.unet, Fault(SAID[2], lambda rows: rows > 1))
    monkeypatch.setattr(controls, "_load_refiner", lambda load=controls._load_refiner: unets.clear() or load())
    assert near(controls.render(*INPUTS, sampling, guide), whole, 2) and len(unets) == 1
    assert {weight.device.type for weight in unets[0].unet.parameters()} == {"meta"}
    assert {weight.device.type for weight in family.pipeline.unet.parameters()} == {"cpu"}


def test_control_by_edges_is_drawn_in_parts_too(family, put):
    controls = load_controls(family)
    photo = fitted_photo(str(P2 / "p2_01.jpg"), PictureRequest.for_base("mini", "", size_px=(128, 128)))
    sampling = replace(TINY, size_px=(128, 128))
    guide = Guide(edges=controls.edges_of(photo, sampling.size_px))
    request = [part[:2] for part in INPUTS]
    whole = controls.render(*request, sampling, guide)
    put(controls._controlnet(), Fault(SAID[4], lambda rows: rows > 1))
    assert near(controls.render(*request, sampling, guide), whole, 2) and family.changes[0]["pictures_at_once"] == 1


# --- one U-Net at a time ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shaken_lora(tmp_path_factory):
    """A LoRA file of random numbers."""
    family = load_family("mini")
    for number, parameter in enumerate(family.add_lora(4, 4, "attention", 0)):
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    file = tmp_path_factory.mktemp("lora") / "person.safetensors"
    file.write_bytes(family.lora_file({}))
    return file


def test_base_guidance_keeps_no_second_unet_beside_a_lora(family, shaken_lora):
    unet = family.pipeline.unet
    own = {name: weight.clone() for name, weight in unet.state_dict().items()}
    family.use_lora(shaken_lora, 1.0)
    try:
        fused = {name: weight.clone() for name, weight in unet.state_dict().items()}
        names = Names("ohwx man", "a man")
        worded = replace(TINY, base_guidance=3.0, names=names)
        family.render(["photo of ohwx man, smiling"], [""], [1], worded)
        assert family.bare is None and all(torch.equal(unet.state_dict()[name], fused[name]) for name in fused)
        with family._bare_unet() as bare:
            assert bare is unet and all(torch.equal(bare.state_dict()[name], own[name]) for name in own)
        assert any(not torch.equal(own[name], fused[name]) for name in own)
    finally:
        family.use_lora(shaken_lora, 0.0)


def test_a_second_unet_that_has_no_room_is_refused_before_it_is_loaded(family, monkeypatch):
    worded = replace(TINY, base_guidance=3.0, names=Names("ohwx man", "a man"))
    monkeypatch.setattr(family, "_own_unet", lambda: pytest.fail("it was loaded"))
    monkeypatch.setattr(runtime, "free_gpu_gib", lambda: 0.1)
    family.pipeline.unet.moved = True
    try:
        with pytest.raises(OutOfMemory) as caught:
            family.render(["photo of ohwx man"], [""], [1], worded)
        assert "base_guidance to 1" in caught.value.next_step
    finally:
        family.pipeline.unet.moved = False


def test_a_plan_counts_what_base_guidance_keeps(tmp_path):
    def peak(**known):
        return next(s.peak_gib for s in plan_run("t4", 50, 70, **known).stages if s.name == "generate")

    assert round(peak(worded=True) - peak(), 3) == round(1.779 * 1.1, 3)
    assert peak(worded=True, method="textual-inversion") == peak(), "the U-Net is the bare base's own there"
    assert begin_deadline(Run(tmp_path), RunSettings(base="mini", minutes=20), lambda line: None).plan.task.worded


def test_the_unet_that_is_restored_is_dropped_first(family, monkeypatch):
    before, load, seen = family.pipeline.unet, family._own_unet, []
    monkeypatch.setattr(family, "_own_unet", lambda: seen.append(before.device.type) or load())
    family.restore_unet()
    assert seen == ["meta"] and family.pipeline.unet.device.type == "cpu"


# --- stages that draw ---------------------------------------------------------------------------------------------


def test_headshots_go_on_with_fewer_at_once_and_lose_nothing_where_nothing_helps(brief_run, family, put, monkeypatch):
    monkeypatch.setattr(headshots, "load_family", lambda name: family)
    fault = Fault(SAID[2], lambda rows: rows > 1)
    put(family.pipeline.unet, fault)
    brief = {"count": 2, "sampler_steps": 2, "max_attempts": 1, "batch": 2, "guidance": 1.0, "base_guidance": 1.0}
    shots = headshots.generate_headshots(brief_run, GenerateConfig.for_base("mini", **brief))
    assert brief_run.manifest("headshots")[CHANGES][0]["pictures_at_once"] == 1 and len(shots) == 2
    fault.is_too_much = lambda rows: len(fault.seen) > 10
    again = GenerateConfig.for_base("mini", **brief | {"sampler_steps": 3, "batch": 1})
    with pytest.raises(OutOfMemory):
        headshots.generate_headshots(brief_run, again)
    kept = brief_run.peek("headshots")["headshots"]
    assert len(kept) == 1 and (brief_run.path("headshots") / kept[0]["file"]).is_file()
    fault.is_too_much = lambda rows: False
    assert len(headshots.generate_headshots(brief_run, again)) == 2 and brief_run.has("headshots")


def test_previews_and_class_images_note_what_was_given_up(brief_run, tiling, monkeypatch, tmp_path):
    monkeypatch.setenv("HEADSHOTKIT_CACHE", str(tmp_path / "cache"))
    family, vae = tiling, tiling.pipeline.vae
    decode = vae.decode

    def refuse(latents, **options):
        if not vae.use_tiling:
            raise SAID[3]
        return decode(latents, **options)

    monkeypatch.setattr(vae, "decode", refuse)
    monkeypatch.setattr(class_images, "load_family", lambda name: family)
    monkeypatch.setattr(class_images, "weights_version", lambda name: "known")
    changes = []
    config = PrepareConfig.for_base("mini", class_word="man", class_images=1)
    assert class_images.build_class_images(config, tmp_path / "dataset", changes) == ["class/000.png"]
    assert [change["autoencoder"] for change in changes] == ["tiles"]
    family.changes = []
    monkeypatch.setattr(previews, "load_family", lambda name: family)
    sketch = GenerateConfig.for_base("mini", sampler_steps=1, guidance=1.0, base_guidance=1.0)
    monkeypatch.setattr(previews.GenerateConfig, "for_base", lambda name: sketch)
    previews.render_previews(brief_run, pictures=1)
    facts = json.loads((brief_run.path("lora") / "previews" / "previews.json").read_text())
    assert [change["autoencoder"] for change in facts[CHANGES]] == ["tiles"]


def test_restoring_goes_on_on_the_cpu(brief_run, good_photo, monkeypatch):
    """A linear layer stands for the network, for only where it is and what its call raises count here."""
    delivered = brief_run.manifest("headshots")["delivered"]
    for file in delivered:
        Image.fromarray(good_photo).save(brief_run.path("headshots") / file)
    note_again(brief_run, "headshots")
    faults, net = [SAID[1]], torch.nn.Linear(1, 1)

    def restored(aligned, net, fidelity):
        if faults:
            raise faults.pop()
        return aligned

    monkeypatch.setattr(restore, "find_codeformer", lambda config: (P2 / "p2_01.jpg", "0" * 64, ()))
    monkeypatch.setattr(restore, "load_codeformer", lambda weights: net)
    monkeypatch.setattr(codeformer, "restore_face", restored)
    manifest = restore.restore_headshots(brief_run)
    assert [change["device"] for change in manifest[CHANGES]] == ["cpu"]
    assert {row["kept"] for row in manifest["restored"]} == {"restored"}
    shutil.rmtree(brief_run.path("restored"))
    faults += SAID[1:3]
    with pytest.raises(OutOfMemory):
        restore.restore_headshots(brief_run)


def test_a_restored_face_that_is_not_finite_is_not_kept(good_photo):
    class Broken(torch.nn.Linear):
        def forward(self, pixels, w, adain):
            return [pixels * torch.nan]

    with pytest.raises(NotFinite):
        codeformer.restore_face(good_photo[:512, :512], Broken(1, 1), 0.5)


# --- training -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoded(quick, loaded, tmp_path_factory):
    """What all trainings here draw from, encoded once."""
    loaded.changes = []
    dataset = Dataset.from_dict(Run(quick).manifest("dataset")["dataset"])
    return cached_examples(loaded, quick / "dataset", dataset, tmp_path_factory.mktemp("cache"), {dataset.size_px})


@pytest.fixture
def training(quick_run, encoded, monkeypatch):
    """Trains a fresh base: training(config, fault before each pass, what becomes of each prediction)."""
    monkeypatch.setattr(train, "cached_examples", lambda *_: encoded)

    def go(config, fault=None, spoil=None):
        family = load_family("mini")
        if fault:
            family.pipeline.unet.register_forward_pre_hook(fault, with_kwargs=True)
        if spoil:
            family.pipeline.unet.register_forward_hook(
                lambda net, inputs, made: replace_sample(made, spoil(made.sample))
            )
        monkeypatch.setattr(train, "load_family", lambda name: family)
        return train_lora(quick_run, config)

    go.run = quick_run
    return go


def replace_sample(made, sample):
    made.sample = sample
    return made


def settings(**others):
    return TrainConfig.for_base("mini", **{"steps": 3, "batch": 1, "rank": 4, "targets": "attention"} | others)


@pytest.fixture(scope="module")
def undisturbed(quick, encoded, tmp_path_factory):
    """The tensors of a training of `settings()` in which nothing went wrong."""
    run = Run(shutil.copytree(quick, tmp_path_factory.mktemp("undisturbed") / "run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "cached_examples", lambda *_: encoded)
        train_lora(run, settings())
    return load_file(run.path("lora") / "person.safetensors")


def equal(run, tensors, limit=1e-6):
    mine = load_file(run.path("lora") / "person.safetensors")
    return max(float((mine[name] - tensors[name]).abs().max()) for name in tensors) < limit


@by_some
def test_a_step_that_ran_out_of_memory_is_made_again_with_checkpointing(training, undisturbed, error):
    fault = Fault(error, lambda rows: len(fault.seen) == 2)
    training(settings(), fault)
    (change,) = training.run.manifest("lora")["changes"]
    assert (change["step"], change["checkpointing"], change["batch"]) == (1, True, 1) and "step 2" in change["why"]
    assert equal(training.run, undisturbed)


def test_a_training_begins_with_checkpointing_where_a_step_is_expected_not_to_fit(training, undisturbed, monkeypatch):
    expect = recovery.expect_cost
    monkeypatch.setattr(recovery, "expect_cost", lambda *args: replace(expect(*args), peak_gib=12.8))
    monkeypatch.setattr(runtime, "usable_gpu_gib", lambda: 11.0)
    training(settings())
    (change,) = training.run.manifest("lora")["changes"]
    assert (change["step"], change["checkpointing"]) == (0, True) and equal(training.run, undisturbed)


def bad_from(first, last=10**6):
    """NaN in place of the predictions of some passes, counted from 1."""
    calls = []
    return lambda sample: sample * (torch.nan if first <= (calls.append(1) or len(calls)) <= last else 1.0)


def test_a_loss_that_stays_nan_from_step_3_ends_in_an_error_after_going_back_once(training):
    config = settings(steps=40, checkpoint_every_steps=2)
    with pytest.warns(UserWarning, match="from step 2"), pytest.raises(NotFinite) as caught:
        training(config, spoil=bad_from(3))
    assert "learning_rate" in caught.value.next_step and "at step 12 10 " in caught.value.happened
    folder, manifest = training.run.path("lora"), training.run.peek("lora")
    assert [(note["from"], note["to"]) for note in manifest["went_back"]] == [(12, 2)]
    assert not list(folder.rglob("*.safetensors")) and manifest["status"] == "started"
    states = [read_checked(file) for file in Checkpoints(folder, 9).files()]
    assert [len(state["losses"]) for state in states] == [0, 2]
    assert all(tensor.isfinite().all() for state in states for tensor in state["lora"].values())
    with pytest.raises(NotFinite):
        training(config, spoil=bad_from(1))
    assert len(training.run.peek("lora")["went_back"]) == 1, "the same command does not go back again and again"


def test_where_no_checkpoint_could_be_written_nan_is_not_trained_on(training, monkeypatch):
    monkeypatch.setattr(
        Checkpoints, "save", lambda *_: (_ for _ in ()).throw(DiskFull("no room.", "full.", "free some."))
    )
    with pytest.raises(NotFinite) as caught:
        training(settings(steps=40), spoil=bad_from(3))
    assert "no checkpoint" in caught.value.why
    assert not list(training.run.path("lora").rglob("*.safetensors"))


@pytest.mark.parametrize("scaled", [False, True])
def test_steps_that_are_not_finite_for_a_while_cost_nothing(training, monkeypatch, scaled):
    """Ten bad steps, then good ones: it goes back, with a smaller loss scale where float16 has one."""
    if scaled:
        monkeypatch.setattr(TrainState, "new_scaler", staticmethod(lambda family: torch.amp.GradScaler("cpu")))
    config = settings(steps=14, checkpoint_every_steps=2)
    with pytest.warns(UserWarning, match="from step 2"):
        training(config, spoil=bad_from(3, 12))
    manifest = training.run.manifest("lora")
    assert manifest["skipped_steps"] == [] and [note["to"] for note in manifest["went_back"]] == [2]
    losses = json.loads((training.run.path("lora") / "losses.json").read_text())["loss"]
    assert len(losses) == 14 and None not in losses


def test_one_bad_step_is_left_out_and_noted(training):
    training(settings(), spoil=bad_from(2, 2))
    manifest = training.run.manifest("lora")
    assert manifest["skipped_steps"] == [2] and "went_back" not in manifest
    losses = json.loads((training.run.path("lora") / "losses.json").read_text())["loss"]
    assert losses[1] is None and all(tensor.isfinite().all() for tensor in load_lora(training.run).values())


def load_lora(run):
    return load_file(run.path("lora") / "person.safetensors")


def test_weights_that_are_not_finite_are_never_saved(training, monkeypatch):
    make = state.make_optimizer

    def made(groups, *args):
        optimizer, reason = make(groups, *args)
        update, steps = optimizer.step, []

        def step(*_):
            update()
            steps.append(1)
            if len(steps) >= 2:
                groups[0]["params"][3].data[0] = torch.inf

        optimizer.step = step
        return optimizer, reason

    monkeypatch.setattr(state, "make_optimizer", made)
    with pytest.warns(UserWarning, match="weights"), pytest.raises(NotFinite):
        training(settings(checkpoint_every_steps=1))
    states = [read_checked(file) for file in Checkpoints(training.run.path("lora"), 9).files()]
    assert [len(state["losses"]) for state in states] == [0, 1]
    assert all(tensor.isfinite().all() for state in states for tensor in state["lora"].values())


@pytest.mark.parametrize("method", METHODS)
def test_no_method_leaves_files_of_a_training_without_one_finite_loss(training, method):
    rank = {"rank": 4} if method in ("lora", "pivotal") else {}
    config = TrainConfig.for_base("mini", method=method, steps=2, batch=1, **rank)
    with pytest.warns(UserWarning, match="from step 0"), pytest.raises(NotFinite):
        training(config, spoil=bad_from(1))
    assert not list(training.run.path("lora").rglob("*.safetensors"))


# --- files --------------------------------------------------------------------------------------------------------


def spoilt_copy(source, target):
    tensors = load_file(source)
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    save_file(tensors, target)
    return target


def test_a_file_that_is_not_finite_is_neither_used_nor_exported(brief_run, family, shaken_lora, tmp_path):
    with pytest.raises(BadLora, match="NaN"):
        family.use_lora(spoilt_copy(shaken_lora, tmp_path / "spoilt.safetensors"), 1.0)
    file = brief_run.path("lora") / "person.safetensors"
    spoilt_copy(file, file)
    note_again(brief_run, "lora")
    for format in ("kohya", "diffusers"):
        with pytest.raises(BadLora, match="NaN"):
            export_lora(brief_run, tmp_path / "exported.safetensors", format)
    assert not (tmp_path / "exported.safetensors").exists()


@pytest.mark.parametrize("method", ["dreambooth", "textual-inversion"])
def test_other_methods_files_that_are_not_finite_are_not_used(family, method, tmp_path):
    name = "unet/weights.safetensors" if method == "dreambooth" else "person_emb.safetensors"
    tensor = torch.full((1, 8), torch.nan)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    save_file({"clip_l": tensor, "clip_g": tensor.clone()}, tmp_path / name)
    lora = Lora(name, "mini", 0, 0, "ohwx", "man", 1, method, (tmp_path / name,))
    with pytest.raises(BadLora, match="NaN"):
        use_trained(family, tmp_path, lora, 1.0)
    use_trained(family, tmp_path, replace(lora, method="lora"), 0.0)


def test_a_good_checkpoint_is_not_called_damaged_where_memory_gives_out(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, 2)
    for step in (1, 2):
        checkpoints.save(step, {"losses": [0.0] * step})

    def refuse(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(torch, "load", refuse)
        checkpoints.newest()
    assert len(checkpoints.newest()[0]["losses"]) == 2 and not list(tmp_path.rglob("*.damaged"))
