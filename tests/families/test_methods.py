"""The training methods on the embedded base: what each may change, what it leaves, and that it goes on exactly."""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import open_picture
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_train import checkpoints_of, run_beside

from headshotkit.cli import main
from headshotkit.config import METHODS, GenerateConfig, TrainConfig
from headshotkit.config.families import FAMILIES
from headshotkit.core.errors import BadConfig, BadLora
from headshotkit.core.records import Dataset, Lora
from headshotkit.families import Sampling, load_family, loading, sdxl_methods, weights_place
from headshotkit.families.methods import load_method, names_token, use_trained
from headshotkit.families.sdxl_methods import ENCODERS, NewTokens
from headshotkit.generation.headshots import generate_headshots
from headshotkit.planning.forecast import expect_cost, expect_minutes, rates_of
from headshotkit.training import train
from headshotkit.training.export import export_lora
from headshotkit.training.lora_layers import LoraLayers

NEW = METHODS[1:]
PROMPT = "photo of ohwx man, smiling"


def settings(method):
    """Four steps; with the moving average, so that it is resumed, too."""
    return TrainConfig.for_base("mini", method=method, steps=4, batch=2, checkpoint_every_steps=2, ema=0.5)


def picture(family, prompt=PROMPT):
    return np.asarray(family.render([prompt], [""], [5], Sampling((256, 256), 4, 1.5))[0], np.int16)


def all_tensors(run):
    """Every tensor that a training left."""
    files = sorted(run.path("lora").rglob("*.safetensors"))
    return {f"{file.name}:{name}": tensor for file in files for name, tensor in load_file(file).items()}


@pytest.fixture(scope="module")
def bare():
    """The base as it is; whoever loads something into it takes it out again."""
    return load_family("mini")


@pytest.fixture(scope="module", params=NEW)
def trained(request, prepared, tmp_path_factory):
    """A brief training by each method: (method, its run, the family that trained, what was said)."""
    run, said, held = run_beside(tmp_path_factory.mktemp("methods") / "run", prepared), [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "load_family", lambda name: held.append(load_family(name)) or held[0])
        patch.setattr("headshotkit.core.runtime.tell", said.append)
        train.train_lora(run, settings(request.param))
    return request.param, run, held[0], said


@pytest.fixture(scope="module")
def prepared(quick):
    """Three small pictures: what is trained on matters to no test here."""
    return quick


def encoders_of(family):
    return [getattr(family.pipeline, encoder) for encoder, _ in ENCODERS.values()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- what may change, and what must not --------------------------------------------------------------------------


def test_only_what_the_method_trains_has_changed(trained, bare):
    """The frozen rest is equal to the base's to the bit; the trained part is not."""
    method, _, family, _ = trained
    unet = {name.replace(".base_layer", ""): p for name, p in family.pipeline.unet.named_parameters()}
    loras = {name: unet.pop(name) for name in list(unet) if "lora_" in name}
    moved = {name for name, p in bare.pipeline.unet.named_parameters() if not torch.equal(p, unet[name])}
    assert len(unet) == len(list(bare.pipeline.unet.parameters()))
    assert len(moved) == (len(unet) if method == "dreambooth" else 0)
    assert bool(loras) == (method == "pivotal") and all(p.abs().sum() > 0 for p in loras.values())
    if method == "dreambooth":
        assert family.pipeline.text_encoder is None
        return
    for mine, base in zip(encoders_of(family), encoders_of(bare), strict=True):
        table = mine.get_input_embeddings()
        man = base.get_input_embeddings().weight[bare.pipeline.tokenizer("man", add_special_tokens=False).input_ids[0]]
        assert table.new.weight.shape == (settings(method).token_vectors, 48) and (table.new.weight != man).all()
        frozen = [p for name, p in mine.named_parameters() if "token_embedding.new" not in name]
        assert same(frozen, base.parameters())


def test_new_tokens_begin_as_the_class_word(bare, prepared_run):
    """With one vector the prompt is at first what it is with the class word in the token's place, to the bit."""
    config = TrainConfig.for_base("mini", method="textual-inversion", token_vectors=1)
    dataset = Dataset.from_dict(prepared_run.manifest("dataset")["dataset"])
    wanted = bare.encode_prompts(["photo of man man, smiling", "photo of a man"])
    method = load_method(bare, config, dataset)
    try:
        method.add()
        conditioning = bare.encode_prompts([PROMPT, "photo of a man"])
        assert all(torch.equal(conditioning[name], wanted[name]) for name in wanted)
        assert bare.prompt_transform("ohwx man and ohwxes") == "<person-1> man and ohwxes"
    finally:
        sdxl_methods.remove_tokens(bare)
    assert torch.equal(bare.encode_prompts(["ohwx"])["text"], load_family("mini").encode_prompts(["ohwx"])["text"])


def test_an_outdated_end_of_text_is_set_right(bare):
    """SDXL's own config says eos_token_id 2, by which the pooled text would come from the new token's place."""
    new = {key: torch.randn(2, 48, generator=torch.Generator().manual_seed(0)) for key in ENCODERS}
    try:
        sdxl_methods.add_tokens(bare, "ohwx", new)
        wanted = bare.encode_prompts([PROMPT])["pooled"]
        for module in bare.pipeline.text_encoder_2.modules():
            if hasattr(module, "eos_token_id"):
                module.eos_token_id = 2
        bare.encoded.clear()
        assert not torch.equal(bare.encode_prompts([PROMPT])["pooled"], wanted)
        sdxl_methods.add_tokens(bare, "ohwx", new)
        assert torch.equal(bare.encode_prompts([PROMPT])["pooled"], wanted)
    finally:
        sdxl_methods.remove_tokens(bare)


def test_a_step_without_the_person_has_a_gradient_of_zero(bare, prepared_run):
    """Batch 1 and a dropped or edited caption: there is nothing to learn, and that is no error."""
    dataset = Dataset.from_dict(prepared_run.manifest("dataset")["dataset"])
    method = load_method(bare, TrainConfig.for_base("mini", method="textual-inversion"), dataset)
    captions, conditioning = (
        dataset.captions,
        method.conditions(dataset.captions, bare.encode_prompts(dataset.captions)),
    )
    try:
        new = [parameter for group in method.add() for parameter in group["params"]]
        for indices, learns in (([len(captions) - 1], False), ([0, len(captions) - 1], True)):
            picked = conditioning.pick(indices)
            assert picked["text"].shape[0] == len(indices)
            (picked["text"].sum() + picked["pooled"].pow(2).sum()).backward()
            assert all((p.grad.abs().sum() > 0) == learns for p in new)
    finally:
        sdxl_methods.remove_tokens(bare)


def test_new_rows_take_the_tables_dtype_and_learn_in_float32():
    table = NewTokens(torch.nn.Embedding(5, 3).half(), torch.ones(2, 3), first=5)
    table.new.requires_grad_(True)
    rows = table(torch.tensor([[0, 5, 6, 4]]))
    assert rows.dtype == torch.float16 and torch.equal(rows[0, 1], torch.ones(3).half())
    assert torch.equal(rows[0, [0, 3]], table.old.weight[[0, 4]])
    rows.float().sum().backward()
    assert table.new.weight.grad.dtype == torch.float32 and (table.new.weight.grad == 1).all()


# --- what is left --------------------------------------------------------------------------------------------------


ROUNDING = {"dreambooth": 0, "textual-inversion": 0, "pivotal": 1}
"""Levels of 255: a LoRA added to the weights before drawing rounds otherwise than one beside them."""


def test_the_files_give_equal_pixels_in_a_fresh_pipeline(trained, bare):
    method, run, family, _ = trained
    lora = Lora.from_dict(run.manifest("lora")["lora"])
    plain = picture(bare)
    for part in ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        if getattr(family.pipeline, part) is None:
            setattr(family.pipeline, part, getattr(bare.pipeline, part))
    if method == "dreambooth":  # the file is float16
        for parameter in family.pipeline.unet.parameters():
            parameter.data = parameter.data.half().float()
    family.pipeline.unet.eval()
    family.encoded.clear()
    wanted = picture(family)
    use_trained(bare, run.path("lora"), lora, 1.0)
    assert np.abs(picture(bare) - wanted).max() <= ROUNDING[method] and (wanted != plain).any()
    wanted = picture(bare)
    if method != "textual-inversion":
        use_trained(bare, run.path("lora"), lora, 0.5)
        assert (picture(bare) != wanted).any()
        use_trained(bare, run.path("lora"), lora, 1.0)
        assert (picture(bare) == wanted).all()
    use_trained(bare, run.path("lora"), lora, 0.0)
    assert (picture(bare) == plain).all()


def test_stock_diffusers_loads_them(trained, bare):
    """By the calls that diffusers documents, none of headshotkit's: the same pixels as headshotkit's own."""
    method, run, _, _ = trained
    folder, lora = run.path("lora"), Lora.from_dict(run.manifest("lora")["lora"])
    single = loading.dtype_option(torch.float32)
    stock = StableDiffusionXLPipeline.from_pretrained(weights_place(bare.base), add_watermarker=False, **single)
    stock.set_progress_bar_config(disable=True)
    prompt = PROMPT
    if method == "dreambooth":
        stock.unet = UNet2DConditionModel.from_pretrained(folder / "unet", **single)
    else:
        prompt = PROMPT.replace("ohwx", "<me>")
        for key, (encoder, tokenizer) in ENCODERS.items():
            tensors = load_file(folder / lora.files[-1])
            parts = {"text_encoder": getattr(stock, encoder), "tokenizer": getattr(stock, tokenizer)}
            stock.load_textual_inversion(tensors[key], token="<me>", **parts)
    if method == "pivotal":
        stock.load_lora_weights(folder, weight_name="person.safetensors")
    noise = torch.Generator().manual_seed(5)
    options = {"height": 256, "width": 256, "num_inference_steps": 4, "guidance_scale": 1.5}
    made = stock(prompt, generator=noise, **options).images[0]  # without a negative one: zeros, as the family has it
    use_trained(bare, folder, lora, 1.0)
    wanted = picture(bare)
    use_trained(bare, folder, lora, 0.0)
    assert np.abs(np.asarray(made, np.int16) - wanted).max() <= ROUNDING[method]


def test_each_file_says_how_it_was_made(trained):
    method, run, _, _ = trained
    manifest = run.manifest("lora")
    names = {"dreambooth": ["unet/config.json", "unet/diffusion_pytorch_model.safetensors"],
             "textual-inversion": ["person_emb.safetensors"],
             "pivotal": ["person.safetensors", "person_emb.safetensors"]}  # fmt: skip
    assert manifest["lora"]["files"] == names[method] and manifest["lora"]["path"] == names[method][0]
    assert manifest["lora"]["method"] == method and bool(manifest["lora"]["rank"]) == (method == "pivotal")
    for name in names[method]:
        if name.endswith(".safetensors"):
            with safe_open(run.path("lora") / name, framework="pt") as file:
                said = file.metadata()
            assert (said["headshotkit.method"], said["headshotkit.token"]) == (method, "ohwx")
            assert json.loads(said["headshotkit.config"])["method"] == method
    if method == "dreambooth":
        assert "_name_or_path" not in json.loads((run.path("lora") / names[method][0]).read_text())
        assert all(t.dtype == torch.float16 for t in all_tensors(run).values())
    else:
        embeddings = load_file(run.path("lora") / names[method][-1])
        assert {key: tensor.shape for key, tensor in embeddings.items()} == {
            key: (settings(method).token_vectors, 48) for key in ("clip_l", "clip_g")
        }


def test_the_cost_is_said_first_and_is_exact(trained):
    method, run, _, said = trained
    cost = run.manifest("lora")["cost"]
    tensors = all_tensors(run)
    assert cost["parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert cost["left_mib"] == pytest.approx(sum(t.nbytes for t in tensors.values()) / 2**20, abs=1e-3)
    assert (
        len(said) == 1 and said[0].startswith(f"Training by {method}") and f"{cost['minutes']:.1f} minutes" in said[0]
    )
    assert ("--class-images 50" in said[0]) == (method == "dreambooth")


def test_a_layer_of_its_lora_reads_the_new_tokens(trained, bare):
    """W is the bare base's, and the person's token is read as the new tokens; a method without a LoRA is an error."""
    method, run, _, _ = trained
    if method != "pivotal":
        with pytest.raises(BadLora):
            LoraLayers(run)
        return
    layers, lora = LoraLayers(run), Lora.from_dict(run.manifest("lora")["lora"])
    layer = layers.find("attn2.to_v")
    words = layers.words_moved(layer, "photo of ohwx man")
    assert [word for word, _ in words[3:-1]] == ["<person-4>", *(f"<person-4>_{n}" for n in (1, 2, 3)), "man"]
    assert np.array_equal(layer.weight, bare.layer_weight(layer.name).numpy())
    use_trained(bare, run.path("lora"), lora, 1.0)
    states = bare.encode_prompts(["photo of ohwx man"])["text"][0, 3:7].numpy()
    use_trained(bare, run.path("lora"), lora, 0.0)
    moved, before = (np.linalg.norm(states @ matrix.T, axis=1) for matrix in (layer.change, layer.weight))
    assert [share for _, share in words[3:7]] == pytest.approx(moved / before, rel=1e-3)


def test_headshots_are_rendered_with_it(trained, prepared, tmp_path):
    method, run, _, _ = trained
    if method != "textual-inversion":
        pytest.skip("one is enough: use_trained is tested with each")
    (run_beside(tmp_path / "run", prepared).folder / "lora").symlink_to(run.path("lora"))
    other = type(run)(tmp_path / "run")
    shots = generate_headshots(other, GenerateConfig.for_base("mini", count=1, sampler_steps=2, max_attempts=1))
    assert "ohwx man" in shots[0].prompt
    assert open_picture(other.path("headshots") / shots[0].file).size == (256, 256)


def test_a_large_unet_is_written_in_parts(trained, bare, monkeypatch, tmp_path):
    method, run, family, _ = trained
    if method != "dreambooth":
        pytest.skip("no U-Net")
    monkeypatch.setattr(sdxl_methods, "SHARD", "12MB")
    names = []
    for name, content in sdxl_methods.FullUnet(family, None, "ohwx", "man").files({"a": "b"}):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
        names.append(name)
    assert len(names) == 5 and names[-1] == "unet/diffusion_pytorch_model.safetensors.index.json"
    loaded = UNet2DConditionModel.from_pretrained(tmp_path / "unet").state_dict()
    whole = UNet2DConditionModel.from_pretrained(run.path("lora") / "unet").state_dict()
    assert same(loaded.values(), whole.values())


def test_a_file_of_another_base_is_refused(trained, bare, tmp_path):
    method, run, _, _ = trained
    lora = Lora.from_dict(run.manifest("lora")["lora"])
    for file in lora.files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        if file.suffix == ".safetensors":
            other = {name: torch.zeros(3, 7) for name in load_file(run.path("lora") / file)}
            save_file(other, tmp_path / file)
    with pytest.raises(BadLora, match="base 'mini'"):
        use_trained(bare, tmp_path, lora, 1.0)
    use_trained(bare, run.path("lora"), lora, 0.0)


# --- never lose a step -----------------------------------------------------------------------------------------------


def test_an_interrupted_training_goes_on_to_the_same_result(trained, prepared, tmp_path, monkeypatch):
    """Ctrl-C after step 3, then the same call: all tensors of the training that nothing interrupted."""
    method, undisturbed, _, _ = trained
    run = run_beside(tmp_path / "run", prepared)
    monkeypatch.setattr("headshotkit.core.runtime.say", lambda line: None)
    with pytest.raises(KeyboardInterrupt):
        train.train_lora(
            run, settings(method), on_step=lambda state: state.step == 3 and signal.raise_signal(signal.SIGINT)
        )
    assert checkpoints_of(run)[-1].name == "000003.pt"
    train.train_lora(run, settings(method))
    mine, wanted = all_tensors(run), all_tensors(undisturbed)
    assert mine.keys() == wanted.keys()
    assert max(float((mine[k].float() - wanted[k].float()).abs().max()) for k in wanted) < 1e-6


# --- what does not go together ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "happened"),
    [
        ({"method": "hypernetwork"}, "method is 'hypernetwork'"),
        ({"method": "textual-inversion", "rank": 8}, "rank is 8, and method is 'textual-inversion'"),
        ({"method": "dreambooth", "rank": 8, "alpha": 8}, "rank is 8; alpha is 8, and method is 'dreambooth'"),
        ({"token_vectors": 4}, "token_vectors is 4, and method is 'lora'"),
        ({"method": "pivotal", "token_vectors": 33}, "token_vectors is 33"),
        ({"method": "pivotal", "token_factor": 0.0}, "token_factor is 0.0"),
    ],
)
def test_settings_that_contradict_the_method_are_named(given, happened):
    with pytest.raises(BadConfig, match=happened):
        TrainConfig.for_base("mini", **given)


def test_each_base_has_its_own_settings_for_each_method():
    rates = {base: [TrainConfig.for_base(base, method=m).learning_rate for m in METHODS] for base in ("mini", "sdxl")}
    assert all(row[1] < row[0] < row[2] for row in rates.values()), rates  # all weights, a LoRA, embeddings
    assert TrainConfig.for_base("sdxl", method="dreambooth").checkpointing
    assert TrainConfig.for_base("mini", method="pivotal", steps=7).steps == 7


def test_a_family_that_knows_lora_alone_refuses_the_others(bare, prepared_run, monkeypatch):
    monkeypatch.setitem(FAMILIES, "sdxl", replace(FAMILIES["sdxl"], methods={}))
    dataset = Dataset.from_dict(prepared_run.manifest("dataset")["dataset"])
    with pytest.raises(BadConfig, match=r"'pivotal', base is 'mini'.\n.*: lora"):
        load_method(bare, TrainConfig.for_base("mini", method="pivotal"), dataset)
    assert load_method(bare, TrainConfig.for_base("mini"), dataset).title == "LoRA of rank 32"


def test_captions_without_the_token_can_teach_no_token(bare, prepared_run):
    known = prepared_run.manifest("dataset")["dataset"]
    photos = [photo | {"caption": "photo of a man"} for photo in known["photos"]]
    dataset = Dataset.from_dict(known | {"photos": photos})
    with pytest.raises(BadConfig, match="0 of 3 captions hold the token 'ohwx'"):
        load_method(bare, TrainConfig.for_base("mini", method="textual-inversion"), dataset)
    load_method(bare, TrainConfig.for_base("mini", method="dreambooth"), dataset)
    assert names_token("OHWX? no; ohwx: yes", "ohwx") and not names_token("xohwx", "ohwx")


def test_new_tokens_have_a_learning_rate_of_their_own(prepared, tmp_path, bare):
    """The first step of Adam moves every number by its learning rate: the embeddings by a multiple of the LoRA's."""
    run = run_beside(tmp_path / "run", prepared)
    config = TrainConfig.for_base("mini", method="pivotal", steps=1, batch=2, caption_dropout=0.0)
    train.train_lora(run, config)
    lora, new = (load_file(run.path("lora") / name) for name in ("person.safetensors", "person_emb.safetensors"))
    man = bare.pipeline.tokenizer("man", add_special_tokens=False).input_ids[0]
    begun = bare.pipeline.text_encoder.get_input_embeddings().weight[man].detach()
    up = torch.cat([tensor.flatten() for name, tensor in lora.items() if "lora_B" in name])
    assert float(up.abs().median()) == pytest.approx(config.learning_rate, rel=0.05)
    moved = float((new["clip_l"] - begun).abs().median())
    assert moved == pytest.approx(config.learning_rate * config.token_factor, rel=0.05)


def test_class_images_hold_nothing_steady_where_nothing_changes(bare, prepared_run):
    known = prepared_run.manifest("dataset")["dataset"]
    dataset = Dataset.from_dict(known | {"class_images": ["class/000.png"]})
    with pytest.raises(BadConfig, match="'textual-inversion', .* 1 class images"):
        load_method(bare, TrainConfig.for_base("mini", method="textual-inversion"), dataset)
    load_method(bare, TrainConfig.for_base("mini", method="pivotal"), dataset)


def test_tokens_have_no_strength(trained, bare):
    method, run, _, _ = trained
    if method != "textual-inversion":
        pytest.skip("it has a strength")
    with pytest.raises(BadConfig, match=r"lora_scale is 0\.5, the method textual-inversion"):
        use_trained(bare, run.path("lora"), Lora.from_dict(run.manifest("lora")["lora"]), 0.5)


def test_loading_another_takes_the_first_ones_place(trained, bare):
    method, run, _, _ = trained
    lora, plain = Lora.from_dict(run.manifest("lora")["lora"]), picture(bare)
    use_trained(bare, run.path("lora"), lora, 1.0)
    other = "lora" if method != "pivotal" else "dreambooth"
    use_trained(bare, run.path("lora"), replace(lora, method=other), 0.0)
    assert (picture(bare) == plain).all()


def test_what_is_exported(trained, tmp_path):
    method, run, _, _ = trained
    if method == "dreambooth":
        with pytest.raises(BadConfig, match="--method lora"):
            export_lora(run, tmp_path)
        return
    made = export_lora(run, tmp_path)
    source = run.path("lora") / "person_emb.safetensors"
    assert (tmp_path / "ohwx.safetensors").read_bytes() == source.read_bytes()
    assert made.name == ("person.safetensors" if method == "pivotal" else "ohwx.safetensors")
    assert all(name.startswith("lora_unet_") for name in load_file(made)) == (method == "pivotal")


# --- what it will take -----------------------------------------------------------------------------------------------


def test_minutes_are_known_where_a_rate_is():
    t4 = ("cuda", "Tesla T4")
    known = {m: expect_minutes(TrainConfig.for_base("sdxl", method=m, steps=1000), t4, False)[0] for m in METHODS}
    assert known["lora"] < known["textual-inversion"] < known["pivotal"] < known["dreambooth"]
    twice = expect_minutes(TrainConfig.for_base("sdxl", steps=1000), t4, True)[0]
    assert twice == pytest.approx(2 * known["lora"], abs=0.2)
    assert expect_minutes(TrainConfig.for_base("sdxl"), ("cuda", "NVIDIA H200"), False)[0] is None
    old_gpu = ("cpu", "NVIDIA A100 is sm_80, but this torch supports only sm_90 and newer")
    assert expect_minutes(TrainConfig.for_base("sdxl"), old_gpu, False)[0] is None
    assert expect_minutes(TrainConfig.for_base("mini"), old_gpu, False)[0] is not None
    assert rates_of("NVIDIA A100-SXM4-40GB").name == "a100"


def test_what_does_not_fit_is_said(bare, prepared_run):
    """The U-Net's 2.57 B parameters in float32 with gradients and 8-bit Adam: 24 GiB before anything is computed."""
    dataset = Dataset.from_dict(prepared_run.manifest("dataset")["dataset"])
    method = load_method(bare, TrainConfig.for_base("mini", method="dreambooth"), dataset)
    method.config = TrainConfig.for_base("sdxl", method="dreambooth")
    with torch.device("meta"):
        weights = torch.nn.Parameter(torch.empty(2_567_463_684))
    cost = expect_cost(method, [{"params": [weights]}], "adamw8bit", ("cuda", "Tesla T4"), 10)
    assert 24 < cost.peak_gib < 30 and cost.left_mib == pytest.approx(4897, abs=1)
    assert "14.7 GiB of t4" in cost.line() and "--class-images" not in cost.line()


def test_on_the_command_line(prepared_run, capsys):
    options = ["--out", str(prepared_run.folder), "--steps", "1", "--json"]
    assert main(["train", "--method", "textual-inversion", *options]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["lora"]["method"] == "textual-inversion"
    assert "\nTraining by textual-inversion " in printed.err
    assert main(["train", "--method", "dreambooth", "--rank", "8", *options]) == 2
    assert "rank is 8" in capsys.readouterr().err
