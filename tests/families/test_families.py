import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from PIL import Image

from headshotkit.config import SAMPLERS, TrainConfig
from headshotkit.config.bases import Base
from headshotkit.core import runtime
from headshotkit.core.errors import BadConfig, BadLora, BaseUnavailable
from headshotkit.core.records import NO_SUBJECT, Names
from headshotkit.families import Condition, Sampling, drawing, load_family, lora_files, weights_place
from headshotkit.training.examples import Batch
from headshotkit.training.export import PEFT_METADATA, header_of
from headshotkit.training.step import denoising_loss

PROMPT = "photo of a man"
SIX_STEPS = Sampling((256, 256), 6, 3.0)


@pytest.fixture(scope="module")
def family():
    return load_family("mini")


def picture(family, seed=5):
    return np.asarray(family.render([PROMPT], [""], [seed], SIX_STEPS)[0], np.int16)


def shaken(family, targets="all"):
    """A family with a LoRA whose weights are random: it proves that files carry a LoRA, not that it is good."""
    parameters = family.add_lora(8, 8, targets, seed=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters:
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    family.pipeline.unet.eval()
    return family


@pytest.mark.parametrize("targets", [pytest.param("attention", marks=pytest.mark.slow), "all"])
def test_a_lora_file_gives_equal_pixels_in_a_fresh_pipeline(tmp_path, family, targets):
    trained = shaken(load_family("mini"), targets)
    wanted, bare = picture(trained), picture(family)
    file = tmp_path / "person.safetensors"
    file.write_bytes(trained.lora_file({"headshotkit.base": "mini"}))
    fresh = stock_pipeline(family)
    fresh.load_lora_weights(str(tmp_path), weight_name=file.name)
    assert (stock_picture(fresh) == wanted).all() and (wanted != bare).mean() > 0.3
    family.use_lora(file, 1.0)
    fused = picture(family)
    assert np.abs(fused - wanted).max() <= 2  # the sum of both weights rounds differently
    family.use_lora(file, 0.5)
    assert (picture(family) != fused).any()
    family.use_lora(file, 1.0)
    assert (picture(family) == fused).all()
    family.use_lora(file, 0.0)
    assert (picture(family) == bare).all()


def stock_pipeline(family):
    """The base's pipeline as diffusers loads it."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(weights_place(family.base), add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(torch.float32)


def stock_picture(pipeline):
    """What `picture` draws, by the pipeline's own call."""
    made = pipeline(PROMPT, width=256, height=256, num_inference_steps=6, guidance_scale=3.0,
                    generator=torch.Generator().manual_seed(5))  # fmt: skip
    return np.asarray(made.images[0], np.int16)


def test_a_fused_lora_leaves_no_layer_behind(tmp_path, family):
    file = tmp_path / "person.safetensors"
    file.write_bytes(shaken(load_family("mini")).lora_file({}))
    family.use_lora(file, 1.0)
    assert not any("lora" in name for name, _ in family.pipeline.unet.named_parameters())
    family.use_lora(file, 0.0)


def test_dpm_draws_the_same_person_and_the_base_keeps_its_sampler(family):
    euler = family.pipeline.scheduler
    many = replace(SIX_STEPS, steps=24)
    by_euler, by_dpm = (family.render([PROMPT], [""], [5], replace(many, sampler=s))[0] for s in SAMPLERS[:2])
    assert family.pipeline.scheduler is euler
    gaps = np.abs(np.asarray(by_euler, np.int16) - np.asarray(by_dpm, np.int16)).mean()
    other = np.abs(np.asarray(by_euler, np.int16) - picture(family, seed=6)).mean()
    assert 0 < gaps < other / 3


@pytest.mark.parametrize(("setting", "said"), [
    ({"prediction_type": "sample"}, "predicts sample"), ({"rescale_betas_zero_snr": True}, "from pure noise"),
])  # fmt: skip
def test_a_sampler_that_does_not_suit_the_base_is_refused(family, setting, said):
    scheduler = type(family.pipeline.scheduler).from_config(family.pipeline.scheduler.config, **setting)
    with pytest.raises(BadConfig, match=said):
        drawing.karras_dpm(scheduler, "mini")


@pytest.mark.parametrize(
    ("free_gib", "pictures", "how"),
    [(None, 50, "whole"), (2.0, 1, "whole"), (2.0, 2, "slices: 2.0 GiB"), (0.5, 1, "tiles: 0.5 GiB")],
)
def test_decoding_goes_by_the_free_memory(family, monkeypatch, free_gib, pictures, how):
    assert drawing.decoding_for(free_gib, (1024, 1024), pictures, 2).startswith(how)
    monkeypatch.setattr("headshotkit.core.runtime.free_gpu_gib", lambda: free_gib)
    vae = AutoencoderKL(block_out_channels=(32,), norm_num_groups=32).half()
    assert drawing.fit_decoding(vae, (1024, 1024), pictures).startswith(how)
    assert vae.use_tiling == how.startswith("tiles") and vae.use_slicing == (how != "whole")


def test_a_lora_that_does_not_fit_is_refused(tmp_path, family):
    from safetensors.torch import save_file

    file = tmp_path / "other.safetensors"
    save_file({"unet.down_blocks.9.attn1.to_q.lora_A.weight": torch.zeros(4, 7),
               "unet.down_blocks.9.attn1.to_q.lora_B.weight": torch.zeros(7, 4)}, file)  # fmt: skip
    with pytest.raises(BadLora, match="base 'mini'"):
        family.use_lora(file, 1.0)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(BadLora, match="is damaged"):
        family.use_lora(file, 1.0)


def test_a_picture_comes_from_its_own_seed_alone(family):
    alone = [picture(family, seed) for seed in (1, 2)]
    together = family.render([PROMPT] * 2, [""] * 2, [1, 2], SIX_STEPS)
    for one, other in zip(alone, together, strict=True):
        # batches of other sizes round differently, so equal to the eye, not to the bit
        assert np.abs(one - np.asarray(other, np.int16)).max() <= 8
    assert np.abs(alone[0] - alone[1]).mean() > 5


def test_guidance_in_a_share_of_the_steps_saves_rows_and_is_guided_before_alone(family):
    """Until guidance ends the latents are those of full guidance, to the bit; then the prompt alone is computed."""
    latents = {}

    def record(name):
        def note(step, timestep, sample, *_, **__):
            latents.setdefault(name, []).append(sample.clone())

        return note

    step, rows, made = family.pipeline.scheduler.step, {}, {}
    for name, share in (("all", 1.0), ("half", 0.5), ("none", 0.0)):
        note, before = record(name), family.forwards

        def noted(*args, note=note, **kwargs):
            note(*args)
            return step(*args, **kwargs)

        family.pipeline.scheduler.step = noted
        made[name] = family.render([PROMPT] * 2, [""] * 2, [5, 6], replace(SIX_STEPS, guidance_share=share))
        rows[name] = family.forwards - before
    family.pipeline.scheduler.step = step
    assert rows == {"all": 24, "half": 18, "none": 12}
    same = [torch.equal(a, b) for a, b in zip(latents["all"], latents["half"], strict=True)]
    assert same == [True] * 4 + [False] * 2  # what the fourth step starts from, the third has guided
    assert (np.asarray(made["half"][0]) != np.asarray(made["none"][0])).any()
    unguided = family.render([PROMPT] * 2, [""] * 2, [5, 6], replace(SIX_STEPS, guidance=1.0))
    assert (np.asarray(made["none"][0]) == np.asarray(unguided[0])).all()


def test_the_autoencoder_gives_a_picture_back(family, good_photo):
    image = Image.fromarray(good_photo).resize((256, 256), Image.Resampling.LANCZOS)
    latents = family.encode_images([image])
    with torch.no_grad():
        decoded = family.pipeline.vae.decode(latents / family.pipeline.vae.config.scaling_factor).sample[0]
    again = ((decoded.clamp(-1, 1) + 1) * 127.5).numpy().transpose(1, 2, 0)
    error = ((again - np.asarray(image, np.float32)) ** 2).mean()
    assert 10 * np.log10(255**2 / error) > 22


def test_the_loss_asks_for_what_the_scheduler_says(family):
    """The target is noise for epsilon and velocity for v-prediction: a U-Net that answers it has no loss."""
    latents = torch.randn(
        2, family.pipeline.unet.config.in_channels, 16, 16, generator=torch.Generator().manual_seed(3)
    )
    condition = family.encode_prompts([PROMPT, ""])
    sizes = [(256, 256, 0, 0, 256, 256)] * 2
    scheduler = family.pipeline.scheduler
    kept = scheduler.config.prediction_type
    try:
        for kind in ("epsilon", "v_prediction"):
            scheduler.register_to_config(prediction_type=kind)
            answers = []

            def answer(noised, *_, answers=answers):
                answers.append((noised.latents, noised.levels))
                return torch.zeros_like(noised.latents)

            family.predict, predict = answer, family.predict
            config = TrainConfig.for_base("mini", min_snr_gamma=0.0)
            batch = Batch(latents, condition, sizes)
            loss = denoising_loss(family, batch, config, torch.Generator().manual_seed(0))
            family.predict = predict
            noisy, steps = answers[0]
            a = scheduler.alphas_cumprod[steps].view(-1, 1, 1, 1)
            noise = (noisy - a.sqrt() * latents) / (1 - a).sqrt()
            target = noise if kind == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * latents
            assert torch.allclose(loss, target.pow(2).mean((1, 2, 3)), rtol=1e-3)
    finally:
        scheduler.register_to_config(prediction_type=kept)


def test_sizes_that_the_base_cannot_make_are_refused(family):
    halvings = len(family.pipeline.unet.config.block_out_channels) - 1
    factor = 16 * 2**halvings  # the autoencoder's four halvings, and the U-Net's
    with pytest.raises(BadConfig, match=rf"size_px is 200, base 'mini' needs a multiple of {factor}\."):
        family.render([PROMPT], [""], [0], Sampling((256, 200), 2, 1.0))


def test_headshots_need_not_be_square(family):
    wide = family.render([PROMPT], [""], [0], replace(SIX_STEPS, size_px=(384, 256)))[0]
    assert wide.size == (384, 256)


def test_the_empty_prompt_is_what_the_base_was_trained_with(family):
    empty, full = family.encode_prompts(["", PROMPT]).pick([0]), family.encode_prompts([PROMPT])
    assert not empty["text"].any() and full["text"].any()


def test_conditions_can_be_picked():
    condition = Condition(text=torch.arange(6).view(3, 2), pooled=torch.arange(3).view(3, 1))
    assert condition.count == 3 and condition.pick([2, 0])["text"].tolist() == [[4, 5], [0, 1]]


def test_a_base_that_is_not_here_says_how_to_get_one():
    with pytest.raises(BaseUnavailable, match="--base mini"):
        load_family("sdxl-base")


def test_an_embedded_base_without_its_folder_is_named():
    with pytest.raises(BaseUnavailable, match="--base sdxl"):
        weights_place(Base("mini", "sdxl", "data:mini/nowhere", ""))


def test_loading_is_quiet(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_family("mini")
    out = capfd.readouterr()
    assert out.out == "" and out.err == ""


def test_a_lora_file_names_no_setting_that_an_older_peft_may_not_know(tmp_path):
    """Peft refuses a whole file for one setting that is new to it, though it be at its default."""
    new = tmp_path / "new.safetensors"
    new.write_bytes(shaken(load_family("mini")).lora_file({"headshotkit.base": "mini"}))
    for file in (new, runtime.data_path("mini", "refiner") / "pytorch_lora_weights.safetensors"):
        settings = json.loads(header_of(file)[PEFT_METADATA])
        assert set(settings) == {f"unet.{setting}" for setting in lora_files.CONFIG_KEPT}, file.name


# --- word guidance ------------------------------------------------------------------------------------------------

WORDED = replace(SIX_STEPS, guidance=1.0, base_guidance=3.0, base_guidance_every=2, names=Names("ohwx man", "a man"))
ASKED = "photo of ohwx man, looking left, dark background"


def drawn_by_hand(family, unet, bare, seed, asked=ASKED, usual=None):
    """The same mathematics in a plain loop over the stock scheduler, with the difference of every second step."""
    pipeline, ids = family.pipeline, torch.tensor([[256.0, 256, 0, 0, 256, 256]])
    worded = asked.replace("ohwx man", "a man")
    conditioning = family.encode_prompts([asked, worded, "photo of a man", usual or worded])

    def predict(net, latents, time, row):
        facts = {"text_embeds": conditioning["pooled"][row : row + 1], "time_ids": ids}
        return net(latents, time, conditioning["text"][row : row + 1], added_cond_kwargs=facts).sample

    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(6)
    latents = torch.randn(1, 12, 16, 16, generator=torch.Generator().manual_seed(seed)) * scheduler.init_noise_sigma
    for step, time in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(latents, time)
        if step % 2 == 0:
            words = predict(bare, scaled, time, 1)
            push = 2 * (2 * words - predict(bare, scaled, time, 2) - predict(bare, scaled, time, 3))
        latents = scheduler.step(predict(unet, scaled, time, 0) + push, time, latents).prev_sample
    return pipeline.image_processor.postprocess(pipeline.vae.decode(latents).sample, output_type="np")[0] * 255


@torch.no_grad()
def test_base_guidance_adds_what_the_bare_base_makes_of_the_words(tmp_path, family):
    file = tmp_path / "person.safetensors"
    file.write_bytes(shaken(load_family("mini")).lora_file({}))
    family.use_lora(file, 1.0)
    try:
        before = family.forwards
        (made,) = family.render([ASKED], [""], [5], WORDED)
        assert family.forwards - before == 6 + 3 * 2
        by_hand = drawn_by_hand(family, family.pipeline.unet, load_family("mini").pipeline.unet, 5)
        assert np.abs(np.asarray(made, np.float32) - by_hand).max() <= 1
        (off,) = family.render([ASKED], [""], [5], replace(WORDED, base_guidance=1.0))
        assert np.abs(np.asarray(made, np.int16) - np.asarray(off)).mean() > 2, "the words' part changed nothing"
        assert not family.pipeline.unet._forward_hooks
    finally:
        family.use_lora(file, 0.0)


@torch.no_grad()
def test_base_guidance_pushes_twice_from_the_expression_that_all_photos_show(family):
    neutral, smiling = (f"photo of ohwx man, {words}, dark background" for words in ("neutral expression", "smiling"))
    smiles = replace(WORDED, names=Names("ohwx man", "a man", "smiling"))
    before = family.forwards
    made = family.render([smiling, neutral], ["", ""], [5, 5], smiles)
    assert family.forwards - before == 2 * 6 + 3 * (2 * 2 + 1), "only the prompt that asks for another has a third row"
    bare = load_family("mini").pipeline.unet
    by_hand = drawn_by_hand(family, bare, bare, 5, neutral, "photo of a man, smiling, dark background")
    assert np.abs(np.asarray(made[1], np.float32) - by_hand).max() <= 1
    (as_ever,) = family.render([smiling], [""], [5], WORDED)
    assert np.abs(np.asarray(made[0], np.int16) - np.asarray(as_ever)).max() <= 2


def test_base_guidance_goes_with_guidance_and_batches(family):
    """The same part is added to the negative prompts' rows and to the prompts', so guidance keeps its meaning."""
    both = replace(WORDED, guidance=3.0, guidance_share=0.5)
    before = family.forwards
    pair = family.render([ASKED, PROMPT], ["", ""], [5, 6], both)
    assert family.forwards - before == 2 * (6 + 3 + 3 * 2)
    (alone,) = family.render([PROMPT], [""], [6], both)
    assert np.abs(np.asarray(pair[1], np.int16) - np.asarray(alone)).max() <= 2


def test_base_guidance_needs_to_know_how_the_person_is_named(family):
    unknown = replace(WORDED, names=NO_SUBJECT)
    assert not unknown.worded
    (plain,) = family.render([PROMPT], [""], [5], replace(WORDED, base_guidance=1.0))
    assert (np.asarray(family.render([PROMPT], [""], [5], unknown)[0]) == np.asarray(plain)).all()
