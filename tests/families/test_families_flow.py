"""The flow-matching families on tiny pipelines of their bases' own classes.

Every test here runs on random weights: it proves plumbing only, never that a base learns a person or draws one.
"""

import gc
import importlib
import json
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_flows import save_tiny

from headshotkit import families
from headshotkit.config import GenerateConfig, TrainConfig, bases
from headshotkit.core import runtime
from headshotkit.core.errors import BadConfig, BadLora, DownloadFailed, MissingPackage
from headshotkit.dataset.tokens import find_token
from headshotkit.families import Sampling, loading
from headshotkit.families.controls import load_controls
from headshotkit.generation.headshots import generate_headshots
from headshotkit.training.examples import Batch
from headshotkit.training.export import PEFT_METADATA, header_of
from headshotkit.training.lora_layers import LoraLayers
from headshotkit.training.step import denoising_loss
from headshotkit.training.train import train_lora

NAMES = ("flux", "flux2", "zimage")
PROMPT, SIZE_PX = "photo of a man", 32


@pytest.fixture(scope="module", autouse=True)
def tiny_bases(tmp_path_factory):
    """In the three bases' places: tiny ones with random weights, on the CPU whatever the machine has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "choose_device", lambda: ("cpu", "a test"))
        for name in NAMES:
            folder = save_tiny(name, tmp_path_factory.mktemp("tiny") / name)
            patch.setitem(bases.BASES, name, replace(bases.BASES[name], source=str(folder)))
        yield


@pytest.fixture(scope="module", params=NAMES)
def family(request, tiny_bases):
    """A family that only renders; its LoRA is taken off by whoever loads one."""
    return families.load_family(request.param)


@pytest.fixture
def image():
    """A picture of 32 x 32 px with large shapes."""
    rows, columns = np.mgrid[:SIZE_PX, :SIZE_PX]
    red, green = 255 * (rows > 16), 8 * columns
    return Image.fromarray(np.stack([red, green, 128 + 0 * rows], -1).astype(np.uint8))


def test_a_prompts_pieces_are_those_of_its_first_tokenizer(family):
    pieces = family.prompt_pieces("ab")
    assert pieces in (["<|startoftext|>", "ab</w>", "<|endoftext|>"], ["a", "b"])


def square(steps, guidance, share=1.0):
    return Sampling((SIZE_PX, SIZE_PX), steps, guidance, share)


def draw(family, seed=5, guidance=2.0):
    return np.asarray(family.render([PROMPT], ["dark"], [seed], square(3, guidance))[0], np.int16)


def loss_at(family, latents, condition, seed):
    config = TrainConfig.for_base(family.base.name)
    batch = Batch(latents, condition, [(SIZE_PX,) * 6])
    return denoising_loss(family, batch, config, torch.Generator().manual_seed(seed))


def train(family, image, steps):
    """Some steps on one picture; returns the mean loss at 8 fixed noises before and after."""
    latents, condition = family.encode_images([image]), family.encode_prompts([PROMPT])
    family.free_encoders()
    optimizer = torch.optim.AdamW(family.add_lora(8, 8, "all", seed=0), lr=1e-2)

    def measure():
        with torch.no_grad():
            return float(torch.cat([loss_at(family, latents, condition, 1000 + n) for n in range(8)]).mean())

    before = measure()
    for step in range(steps):
        loss_at(family, latents, condition, step).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return before, measure()


# --- training, files, pictures ------------------------------------------------------------------------------------


def test_a_trained_lora_gives_equal_pixels_in_a_fresh_pipeline(tmp_path, family, image):
    """Plumbing only: the loss on one picture falls, and the file draws what the trained network draws."""
    trained = families.load_family(family.base.name)
    before, after = train(trained, image, steps=20)
    assert after < 0.9 * before
    file = tmp_path / "person.safetensors"
    file.write_bytes(trained.lora_file({"headshotkit.base": family.base.name}))
    wanted, bare = draw(trained), draw(family)
    family.use_lora(file, 1.0)
    assert (draw(family) == wanted).all() and (wanted != bare).mean() > 0.3
    family.use_lora(file, 0.5)
    assert (draw(family) != wanted).any()
    family.use_lora(file, 0.0)
    assert (draw(family) == bare).all()


def test_the_loss_comes_from_its_generator_alone_and_checkpointing_changes_nothing(image):
    """Plumbing only: the same seed gives the same loss to the bit, in a second family too."""
    for name in NAMES:
        losses = []
        for _ in range(2):
            one = families.load_family(name)
            latents, condition = one.encode_images([image]), one.encode_prompts([PROMPT])
            parameters = one.add_lora(4, 4, "attention", seed=3)
            losses.append(loss_at(one, latents, condition, 7))
            losses[-1].sum().backward()
        plain = [p.grad.clone() for p in parameters]
        assert losses[0].tolist() == losses[1].tolist() and losses[0].shape == (1,)
        assert any(bool(grad.any()) for grad in plain)
        assert loss_at(one, latents, condition, 8).tolist() != losses[0].tolist()
        one.use_checkpointing()
        for p in parameters:
            p.grad = None
        loss_at(one, latents, condition, 7).sum().backward()
        assert all(torch.allclose(p.grad, before, atol=1e-6) for p, before in zip(parameters, plain, strict=True))


def test_a_lora_state_is_taken_over_whole(family):
    """Plumbing only: what a checkpoint holds of the LoRA comes back as it was."""
    one, other = families.load_family(family.base.name), families.load_family(family.base.name)
    for parameter in one.add_lora(4, 4, "attention", seed=0):
        parameter.data.normal_()
    other.add_lora(4, 4, "attention", seed=1)
    other.load_lora_state(one.lora_state())
    mine, its = one.lora_state(), other.lora_state()
    assert mine.keys() == its.keys() and all((mine[name] == its[name]).all() for name in mine)


def test_encoders_and_denoiser_are_never_in_memory_together(image):
    """Plumbing only: who holds which part. Real text encoders take as much memory as the denoiser."""
    for name in NAMES:
        one = families.load_family(name)
        one.encode_prompts([PROMPT])
        one.encode_images([image])
        assert one.transformer is None
        gone = [weakref.ref(one.texts.text_encoder), weakref.ref(one.vae)]
        one.free_encoders()
        one.add_lora(4, 4, "attention", seed=0)
        gc.collect()
        assert [ref() for ref in gone] == [None, None] and one.transformer is not None
        one.render(["another prompt"], ["dark"], [0], square(1, 2.0))
        assert one.texts is None


@pytest.mark.parametrize("name", NAMES)
def test_new_prompts_find_room_and_the_lora_comes_back(tmp_path, name, monkeypatch):
    """As picking, previews and the panel ask: a LoRA, then words that were never encoded."""
    trained = families.load_family(name)
    trained.add_lora(4, 4, "attention", seed=0)
    trained.load_lora_state({key: 0.1 * torch.ones_like(value) for key, value in trained.lora_state().items()})
    (tmp_path / "person.safetensors").write_bytes(trained.lora_file({}))
    asked = (["another prompt"], ["dark"], [0], square(2, 2.0))
    fresh, used = families.load_family(name), families.load_family(name)
    fresh.encode_prompts(["another prompt", "dark"])
    fresh.use_lora(tmp_path / "person.safetensors", 1.0)
    used.use_lora(tmp_path / "person.safetensors", 1.0)
    beside, encode = [], used._encode_prompt
    monkeypatch.setattr(used, "_encode_prompt", lambda text: beside.append(used.transformer) or encode(text))
    assert np.array_equal(np.asarray(used.render(*asked)[0]), np.asarray(fresh.render(*asked)[0]))
    assert beside and not any(beside) and used.texts is None
    used.use_lora(tmp_path / "person.safetensors", 0)
    bare = families.load_family(name).render(*asked)[0]
    assert np.array_equal(np.asarray(used.render(*asked)[0]), np.asarray(bare))


def test_the_loop_and_the_renderer_name_no_family(small_run):
    """Plumbing only: the stages as they are, on a flow-matching base; the pictures are noise, so none is accepted."""
    lora = train_lora(small_run, TrainConfig.for_base("flux2", steps=2, rank=2, alpha=2))
    assert lora.base == "flux2"
    assert "not NF4" in small_run.manifest("lora")["dtype"]
    config = GenerateConfig.for_base("flux2", count=1, size_px=SIZE_PX, sampler_steps=2, max_attempts=1)
    assert [shot.accepted for shot in generate_headshots(small_run, config)] == [False]
    layer = next(iter(LoraLayers(small_run)))
    assert layer.name.startswith("single_transformer_blocks.") and layer.a.shape[0] == 2


# --- the same mathematics as the stock pipelines ------------------------------------------------------------------


def test_training_asks_the_denoiser_as_the_pipeline_does(family):
    """Plumbing only, but exactly: Euler steps with the trained velocity end where the stock pipeline ends.

    So packing, position ids, the sense of time and the sign are the pipeline's own.
    """
    family.use_lora(Path(), 0.0)
    conditioning = family.encode_prompts([PROMPT])
    # guidance 1 is off, and what FLUX.1 is trained with
    arguments = family._conditioning(conditioning, conditioning, 1.0)
    pipeline, seen = family.pipeline, []
    handle = family.transformer.register_forward_hook(lambda *call: seen.append(call))
    generator = torch.Generator().manual_seed(1)
    made = pipeline(**arguments, generator=generator, height=SIZE_PX, width=SIZE_PX, num_inference_steps=3,
                    output_type="latent").images  # fmt: skip
    handle.remove()
    assert len(seen) == 3
    shape = (1, 16, 8, 8) if family.base.name == "flux2" else (1, 4, 16, 16)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    if family.base.name == "flux":  # it packs what it drew
        latents = latents.reshape(shape)
    sigmas = pipeline.scheduler.sigmas
    with torch.no_grad():
        for now, then in zip(sigmas, sigmas[1:], strict=False):
            latents = latents + (then - now) * family._velocity(latents, now[None], conditioning)
        expected = _as_decodable(family, latents)
        assert torch.allclose(family._decodable(made, (SIZE_PX, SIZE_PX)), expected, atol=1e-4)


def _as_decodable(family, latents):
    """The inverse of `_normalise`, from the autoencoder's config."""
    if family.base.name == "flux2":
        norm = family.vae.bn
        spread = (norm.running_var + family.vae.config.batch_norm_eps).sqrt().view(1, -1, 1, 1)
        return family.pipeline._unpatchify_latents(latents * spread + norm.running_mean.view(1, -1, 1, 1))
    return latents / family.vae.config.scaling_factor + family.vae.config.shift_factor


def test_encoded_pictures_are_what_the_pipeline_decodes(family, image):
    """Plumbing only: normalised latents, put back, are the autoencoder's own."""
    latents = family.encode_images([image])
    pixels = family.processor.preprocess(image)
    with torch.no_grad():
        raw = family.vae.encode(pixels).latent_dist.mode()
    assert torch.allclose(_as_decodable(family, latents), raw, atol=1e-5)


def test_a_denoiser_that_answers_noise_minus_latents_has_no_loss(family, image, monkeypatch):
    """Plumbing only: the target, and where noisy latents lie between picture and noise."""
    latents = family.encode_images([image])
    seen = []

    def answer(noisy, levels, conditioning):
        seen.append(levels)
        return (noisy - latents) / levels.view(-1, 1, 1, 1)

    monkeypatch.setattr(family, "_velocity", answer)
    assert float(loss_at(family, latents, family.encode_prompts([PROMPT]), 0)) < 1e-9
    assert 0 < float(seen[0]) < 1


def test_weights_say_where_in_the_picture_the_loss_counts(family, image, monkeypatch):
    """Plumbing only: alike everywhere they change nothing, and where they are 0 nothing counts."""
    latents, condition = family.encode_images([image]), family.encode_prompts([PROMPT])
    monkeypatch.setattr(family, "_velocity", lambda noisy, levels, conditioning: torch.zeros_like(noisy))
    config, half = TrainConfig.for_base(family.base.name), torch.ones(1, 1, *latents.shape[2:])
    half[..., : latents.shape[3] // 2] = 0

    def loss(weights):
        batch = Batch(latents, condition, [()], weights)
        return float(denoising_loss(family, batch, config, torch.Generator().manual_seed(0)))

    other_half = 1 - half
    assert loss(None) == pytest.approx(loss(torch.ones_like(half)))
    assert loss(None) == pytest.approx(loss(half) + loss(other_half)) and 0 < loss(half) < loss(None)


def test_a_layers_weight_is_the_bases_own(family):
    layer = {"flux": "transformer_blocks.0.attn.to_q", "flux2": "transformer_blocks.0.attn.to_q",
             "zimage": "layers.0.attention.to_q"}[family.base.name]  # fmt: skip
    saved = load_file(Path(family.place) / "transformer" / "diffusion_pytorch_model.safetensors")
    assert (family.layer_weight(layer) == saved[f"{layer}.weight"]).all()


def test_larger_pictures_are_trained_at_higher_noise():
    """The shift is the scheduler's: of FLUX by size, up to exp(1.15) at 4096 tokens; of Z-Image a fixed 6."""
    for name, small, large in (("flux", 1.88, 3.16), ("flux2", 1.88, 3.16), ("zimage", 6.0, 6.0)):
        one = families.load_family(name)
        for tokens_a_side, shift in ((32, small), (64, large)):
            side = tokens_a_side * one.patch
            levels = one.noise_levels(torch.empty(1001, 1, side, side), torch.Generator().manual_seed(0))
            assert float(levels.median()) == pytest.approx(shift / (1 + shift), abs=0.01)
            assert 0 < float(levels.min()) < 0.2 and 0.97 < float(levels.max()) < 1


def test_a_picture_comes_from_its_own_seed_alone(family):
    """Plumbing only: pictures of a batch are those made alone, also where prompts differ in length."""
    prompts = [PROMPT, "a woman"]
    together = family.render(prompts, ["", "dark"], [1, 2], square(2, 2.0))
    for place, prompt in enumerate(prompts):
        alone = family.render([prompt], [["", "dark"][place]], [1 + place], square(2, 2.0))[0]
        assert np.abs(np.asarray(alone, np.int16) - np.asarray(together[place], np.int16)).max() <= 2
    assert np.abs(np.asarray(together[0], np.int16) - np.asarray(together[1], np.int16)).mean() > 2


def test_negative_prompts_count_where_guidance_is_not_distilled(family):
    """Plumbing only: FLUX.1 is told its guidance as a number; the others compare with the negative prompt."""
    one, other = (family.render([PROMPT], [text], [0], square(2, 4.0))[0] for text in ("", "dark and blurred"))
    assert (np.asarray(one) == np.asarray(other)).all() == (not family.uses_negatives)
    off, on = draw(family, guidance=1.0), draw(family, guidance=4.0)
    assert (off != on).any()


def test_guidance_ends_after_its_share_of_the_steps(family):
    """Plumbing only: rows are counted, and a share of 0 is what guidance 1 draws."""
    rows = []
    for share in (1.0, 0.5, 0.0):
        before = family.forwards
        drawn = family.render([PROMPT], ["dark"], [3], square(4, 4.0, share))[0]
        rows.append(family.forwards - before)
    assert rows == ([8, 6, 4] if family.uses_negatives else [4, 4, 4])
    if family.uses_negatives:
        off = family.render([PROMPT], ["dark"], [3], square(4, 1.0))[0]
        assert (np.asarray(drawn) == np.asarray(off)).all()


def test_shapes_steps_and_samplers_are_told(family):
    """Plumbing only: (width, height), a call after every step, and no sampler of another mathematics."""
    calls = []
    picture = family.render([PROMPT], [""], [0], Sampling((48, 32), 3, 2.0), on_step=lambda: calls.append(1))[0]
    assert picture.size == (48, 32) and len(calls) == 3
    with pytest.raises(BadConfig, match="sampler"):
        family.render([PROMPT], [""], [0], Sampling((32, 32), 2, 2.0, sampler="dpmpp-2m-karras"))
    with pytest.raises(BadConfig, match=r"base_guidance is 3\.0"):
        family.render([PROMPT], [""], [0], Sampling((32, 32), 2, 2.0, base_guidance=3.0))


# --- refusals -----------------------------------------------------------------------------------------------------


def test_a_lora_of_another_family_is_refused(tmp_path, family):
    """Plumbing only; the names of FLUX.1's and FLUX.2's layers overlap, so a part would have been loaded."""
    for name in (*NAMES, "mini"):
        if name == family.base.name:
            continue
        other = families.load_family(name)
        other.add_lora(2, 2, "attention", seed=0)
        file = tmp_path / f"{name}.safetensors"
        file.write_bytes(other.lora_file({}))
        with pytest.raises(BadLora, match=f"base '{family.base.name}'"):
            family.use_lora(file, 1.0)


def test_a_flow_lora_is_refused_by_sdxl(tmp_path):
    """Plumbing only; no tensor of it has a place in a U-Net, which diffusers would only log."""
    other = families.load_family("flux2")
    other.add_lora(2, 2, "attention", seed=0)
    file = tmp_path / "other.safetensors"
    file.write_bytes(other.lora_file({}))
    with pytest.raises(BadLora, match="base 'mini'"):
        families.load_family("mini").use_lora(file, 1.0)


def test_a_lora_that_fits_in_part_or_is_damaged_is_refused(tmp_path, family):
    """Plumbing only: one tensor too wide, one too many, a setting that this peft doesn't know, and a file cut short."""
    one = families.load_family(family.base.name)
    one.add_lora(2, 2, "attention", seed=0)
    good = tmp_path / "good.safetensors"
    good.write_bytes(one.lora_file({}))
    tensors = load_file(good)
    name = next(n for n in tensors if "lora_A" in n)
    family.use_lora(good, 1.0)
    bad = tmp_path / "bad.safetensors"
    for changed in ({name: torch.zeros(2, 7)}, {"transformer.proj_nowhere.lora_A.weight": torch.zeros(2, 7)}):
        save_file(tensors | changed, bad)
        with pytest.raises(BadLora, match=rf"1 of {len(tensors | changed)} "):
            family.use_lora(bad, 1.0)
    settings = json.loads(header_of(good)[PEFT_METADATA]) | {"transformer.of_a_newer_peft": True}
    save_file(tensors, bad, {"format": "pt", PEFT_METADATA: json.dumps(settings)})
    with pytest.raises(BadLora, match="of_a_newer_peft"):
        family.use_lora(bad, 1.0)
    bad.write_bytes(good.read_bytes()[:100])
    with pytest.raises(BadLora, match="is damaged"):
        family.use_lora(bad, 1.0)
    family.use_lora(good, 0.0)


def test_sizes_and_settings_that_do_not_fit_are_refused(family):
    with pytest.raises(BadConfig, match=r"size_px is 30, base '\w+' needs a multiple of 4\."):
        family.render([PROMPT], [""], [0], Sampling((32, 30), 2, 1.0))
    config = TrainConfig.for_base(family.base.name, min_snr_gamma=5.0)
    with pytest.raises(BadConfig, match="min_snr_gamma is 5, base"):
        family.add_noise(torch.zeros(1, 4, 8, 8), config, torch.Generator())


def test_weights_that_are_not_here_say_how_to_get_them(monkeypatch):
    for name in ("flux", "zimage"):
        monkeypatch.setitem(bases.BASES, name, replace(bases.BASES[name], source="nobody/nothing"))
        monkeypatch.setattr("headshotkit.core.runtime.free_host_gib", lambda: None)  # else it is memory that lacks
        with pytest.raises(DownloadFailed, match=f"about {bases.BASES[name].download_gb:.0f} GB") as caught:
            families.load_family(name)
        assert caught.value.cause == "offline" and "--base mini" in caught.value.next_step
        assert ("huggingface.co/nobody/nothing" in caught.value.next_step) == bases.BASES[name].gated


def test_the_rare_token_search_says_which_tokenizers_it_knows():
    with pytest.raises(BadConfig, match="base 'flux' .*CLIPTokenizer and T5TokenizerFast"):
        find_token("flux")
    assert [len(families.load_tokenizers(name)) for name in NAMES] == [2, 1, 1]


def test_an_experimental_base_says_so_when_it_is_chosen():
    name, reason = bases.choose_base("flux")
    assert name == "flux" and "experimental: its real weights" in reason and "non-commercial" in reason
    assert "experimental" not in bases.choose_base("sdxl")[1]


# --- precision ----------------------------------------------------------------------------------------------------


def test_nf4_and_its_absence_are_said(monkeypatch):
    """What is chosen and why; NF4 itself needs CUDA and has not been run."""
    assert loading.choose_precision("cpu").reason.startswith("float32, not NF4, ")
    monkeypatch.setattr(runtime, "choose_dtype", lambda device: (torch.float16, "sm_7x"))
    monkeypatch.setattr(runtime, "require", lambda module, extra: None)
    chosen = loading.choose_precision("cuda")
    assert chosen.nf4 and (chosen.dtype, chosen.side_dtype) == (torch.float16, torch.float32)
    assert chosen.reason == "NF4 weights by bitsandbytes, denoiser in float16, encoders in float32: sm_7x"


@pytest.mark.skipif(runtime.has_module("bitsandbytes"), reason="bitsandbytes is installed here")
def test_a_missing_bitsandbytes_is_an_error_on_cuda(monkeypatch):
    monkeypatch.setattr(runtime, "choose_dtype", lambda device: (torch.float16, "sm_7x"))
    with pytest.raises(MissingPackage, match="bitsandbytes"):
        loading.choose_precision("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_nf4_weights_train_and_render_on_cuda(tmp_path, monkeypatch, image, name):
    """Plumbing only, of what no CPU can run: quantizing while loading, a LoRA over NF4, the file, rendering."""
    monkeypatch.setattr(runtime, "choose_device", lambda: ("cuda", "a test"))
    one = families.load_family(name)
    before, after = train(one, image, steps=20)
    assert one.precision.nf4 and one.transformer.is_loaded_in_4bit and after < before
    file = tmp_path / "person.safetensors"
    file.write_bytes(one.lora_file({}))
    fresh = families.load_family(name)
    fresh.use_lora(file, 1.0)
    assert (draw(fresh) == draw(one)).all()


def test_zimage_stays_finite_in_float16(monkeypatch, image):
    """Plumbing only, with weights made so large that the feed-forwards overflow, as the real ones are said to."""
    monkeypatch.setattr(runtime, "choose_dtype", lambda device: (torch.float16, "a test"))
    clamp = importlib.import_module("headshotkit.families.zimage")
    for clamped in (True, False):
        if not clamped:
            monkeypatch.setattr(clamp, "clamp_half", lambda transformer: transformer)
        one = families.load_family("zimage")
        latents, condition = one.encode_images([image]), one.encode_prompts([PROMPT])
        parameters = one.add_lora(2, 2, "all", seed=0)
        for block in one.transformer.layers:
            for layer in (block.feed_forward.w1, block.feed_forward.w3):
                layer.base_layer.weight.data *= 2000
        loss = loss_at(one, latents, condition, 0)
        loss.sum().backward()
        assert one.dtype == torch.float16 and bool(loss.isfinite().all()) == clamped
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in parameters) or not clamped


def test_guides_are_refused(family):
    with pytest.raises(BadConfig, match=f"its family, {family.base.name}"):
        load_controls(family)
