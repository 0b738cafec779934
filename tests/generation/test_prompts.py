import json
import os
import re
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from headshotkit.cli import chosen_by, main, parse
from headshotkit.config import GenerateConfig, RunSettings
from headshotkit.core import runtime
from headshotkit.core.errors import BadConfig, BadPromptBank
from headshotkit.core.records import Lora
from headshotkit.dataset.crops import BUCKETS
from headshotkit.generation.headshots import tasks_of
from headshotkit.generation.prompts import OPENING, PACKS, SIZES_PX, Prompt, choose_prompts, in_packs, load_prompts
from headshotkit.pipeline import config_for

AXES = ("setting", "background", "clothes", "light", "expression", "framing")
PRESUMES = """
    man woman male female boy girl lady gentleman he she his her masculine feminine guy businessman businesswoman
    hair haired hairstyle haircut blond blonde brunette redhead curls curly ponytail bun fringe bald beard bearded
    moustache mustache stubble shaven makeup lipstick eyeliner nails jewellery jewelry earrings necklace
    hat cap beanie turban hijab headscarf scarf veil hood hooded helmet headphones glasses spectacles sunglasses eyewear
    tie necktie dress skirt blouse heels tuxedo bra bikini shirtless bare
    asian african european caucasian latino indian arab ethnic ethnicity
"""
CHANGES = """
    young younger youthful old older aged ageless elderly age slim slimmer slender thin lean skinny fit muscular toned
    curvy fat overweight chubby beautiful beauty handsome pretty attractive gorgeous sexy perfect flawless ideal model
    glamorous glamour glowing radiant fair pale tan tanned bronzed porcelain lighter lightened whitened
    skin complexion dark-skinned light-skinned wrinkle wrinkles wrinkled blemish blemishes freckle freckles mole moles
    scar scars acne pimples birthmark tattoo tattoos vitiligo jawline cheekbones symmetric symmetrical asymmetric
    retouch retouched retouching airbrushed smooth smoothed smoothing spotless polished-face
    ugly deformed disfigured crooked chin
"""
AGAINST_RETOUCHING = ("plastic skin", "over-smoothed skin", "airbrushed skin")
"""Pieces of a negative prompt that keep a face as it is, for they speak against smoothing."""
BRIEF_WORDS = (
    ("professional headshot of {person}", "headshot of {person}", "photo of {person}", "portrait of {person}"),
    ("smiling", "neutral expression"),
    ("looking at the camera", "looking left", "looking right"),
    ("plain white background", "grey studio background", "dark background", "blurred office background",
     "blurred outdoor background"),
    ("soft light", "side light", "bright lighting", "dim lighting"),
)  # fmt: skip
"""What the embedded base's captions say, in their order: data/mini/captions.py and generation/pictures.py."""


@pytest.fixture(scope="module")
def bank():
    return load_prompts()


SIDE = r"\b(?:turned|face|away|out|up)(?: slightly| a little)?(?: to the)? (left|right)\b"


def words(text):
    return re.findall(r"[a-zé]+(?:-[a-zé]+)*", text.lower())


def all_words(text):
    """Its words, and the parts of those with hyphens."""
    return {*words(text), *(part for word in words(text) for part in word.split("-"))}


def test_the_bank_is_large_and_every_pack_has_a_choice(bank):
    assert len(bank) >= 84
    sizes = Counter(pack for p in bank for pack in p.packs)
    assert set(sizes) == set(PACKS) and min(sizes.values()) >= 10
    assert set(SIZES_PX) == {p.aspect for p in bank}


def test_no_two_prompts_say_the_same(bank):
    """After the opening the most alike two share under half of their words; two of the opening have one brief."""
    assert len({p.text for p in bank}) == len(bank)
    bags = [set(words(p.text)) for p in bank]
    alike, first, second = max(
        (len(a & b) / len(a | b), p.id, q.id)
        for (a, p), (b, q) in combinations(zip(bags, bank, strict=True), 2)
        if q not in bank[:OPENING]
    )
    assert alike < 0.45, (first, second)
    same = {tuple(p.id for p in bank if p.brief == q.brief) for q in bank}
    assert {ids for ids in same if len(ids) > 1} == {("linkedin-navy", "sales-bright")}


def test_every_prompt_says_what_a_photographer_needs(bank):
    """Each axis has one tag; after the opening the text names lens or film, gaze, framing and mood."""
    for prompt in bank:
        assert tuple(tag.split(":")[0] for tag in prompt.tags) == AXES, prompt.id
    for prompt in bank[OPENING:]:
        assert re.search(r"lens|film|camera,|flash|shutter|bokeh|focus", prompt.text), prompt.id
        assert re.search(r"camera|to the (left|right)|look(ing)? (in|away|out)", prompt.text), prompt.id
        assert re.search(r"framing|frame|head and shoulders|wide", prompt.text), prompt.id
        assert " mood" in prompt.text, prompt.id


def test_text_and_brief_agree_on_the_gaze(bank):
    """Where the text says a side, the brief says the same one; where it says neither, the brief says the camera.

    office-window, of the measured opening, leaves it open.
    """
    for prompt in bank:
        side = re.search(SIDE, prompt.text)
        told = f"looking {side[1]}" if side else "looking at the camera"
        assert told in prompt.brief or prompt.id == "office-window", prompt.id


def test_briefs_use_only_what_the_embedded_base_knows(bank):
    for prompt in bank:
        places = [[piece in group for group in BRIEF_WORDS].index(True) for piece in prompt.brief.split(", ")]
        assert places == sorted(set(places)), prompt.id


def test_no_prompt_presumes_or_changes_a_person(bank):
    listed = {*PRESUMES.split(), *CHANGES.split()}
    found = {p.id: all_words(p.text + " " + p.brief) & listed for p in bank}
    assert not {i: w for i, w in found.items() if w}


def test_no_negative_prompt_speaks_against_a_trait(bank):
    """A negative prompt with "wrinkles" removes them as surely as a prompt with "smooth"."""
    listed = {*PRESUMES.split(), *CHANGES.split()}
    for prompt in bank:
        pieces = [piece for piece in prompt.negative.split(", ") if piece not in AGAINST_RETOUCHING]
        assert len(pieces) >= 6 and not all_words(" ".join(pieces)) & listed, prompt.id


def test_texts_fit_into_77_tokens(bank):
    """SDXL's text encoders cut what lies beyond; the embedded base has the same tokenizer. Begin and end count."""
    tokenizer = Tokenizer.from_file(str(runtime.data_path("mini", "base", "tokenizer", "tokenizer.json")))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = [p.for_person("ohwx person", brief=False) for p in bank] + [p.negative for p in bank]
    assert 50 < max(len(one.ids) for one in tokenizer.encode_batch(texts)) <= 77


def test_sizes_are_those_of_the_crops(bank):
    assert {a: s for a, s in SIZES_PX.items() if a in BUCKETS} == {a: s for a, s in BUCKETS.items() if a in SIZES_PX}
    assert all(w % 64 == h % 64 == 0 and 0.85 < w * h / 1024**2 <= 1 for w, h in SIZES_PX.values())


def ids(chosen):
    return [name for name, _ in chosen]


@pytest.mark.parametrize("count", [1, 4, 24, 26])
def test_up_to_26_are_the_opening_whatever_the_seed(bank, count):
    for seed in (0, 7):
        assert ids(choose_prompts(bank, count, seed=seed)) == [p.id for p in bank[:count]]


@pytest.mark.parametrize("packs", [(), ("linkedin",), ("medical", "academic"), PACKS])
def test_a_choice_repeats_nothing_and_no_brief_meets_itself(bank, packs):
    size = len(in_packs(bank, packs))
    for seed in range(5):
        chosen = [p for _, p in choose_prompts(bank, 3 * size, packs, seed)]
        assert len({p.id for p in chosen[:size]}) == size
        assert not [a.id for a, b in pairwise(chosen) if a.brief == b.brief]


@pytest.mark.parametrize("count", [50, 102, 103, 250])
def test_every_prompt_comes_at_most_as_often_as_it_must(bank, count):
    chosen = choose_prompts(bank, count)
    assert len(chosen) == len({*ids(chosen)}) == count
    assert max(Counter(p.id for _, p in chosen).values()) == -(-count // len(bank))


def test_the_seed_decides_and_a_larger_count_only_adds(bank):
    assert ids(choose_prompts(bank, 60, seed=3)) == ids(choose_prompts(bank, 60, seed=3))
    assert ids(choose_prompts(bank, 60, seed=3)) != ids(choose_prompts(bank, 60, seed=4))
    assert ids(choose_prompts(bank, 90, seed=3))[:60] == ids(choose_prompts(bank, 60, seed=3))


def shared_tags(prompts):
    """Mean number of tags that two of the prompts share, 0 to 6; lower is more varied."""
    return np.mean([len({*a.tags} & {*b.tags}) for a, b in combinations(prompts, 2)])


@pytest.mark.parametrize(("count", "packs"), [(50, ()), (12, ("linkedin",)), (10, ("studio",)), (20, PACKS)])
def test_a_choice_is_more_varied_than_random_ones(bank, count, packs):
    """Where the opening is fixed, the others are drawn at random for the comparison."""
    rng, pool = np.random.default_rng(0), in_packs(bank, packs)
    fixed = [] if packs else pool[:OPENING]
    free = pool[len(fixed) :]
    at_random = [
        shared_tags(fixed + [free[i] for i in rng.permutation(len(free))[: count - len(fixed)]]) for _ in range(200)
    ]
    assert shared_tags([p for _, p in choose_prompts(bank, count, packs)]) < min(at_random)


def test_weight_decides_how_soon_a_prompt_comes():
    alike = [Prompt(name, "", name, "", ("light:soft",), weight) for name, weight in (("a", 0.5), ("b", 1), ("c", 2))]
    bank = [Prompt("x", "", "x", "", ("light:soft",), packs=("studio",))]
    bank = [*(Prompt(p.id, "", p.brief, "", p.tags, p.weight, packs=("studio",)) for p in alike), *bank]
    assert all(ids(choose_prompts(bank, 4, ("studio",), seed))[0] == "c" for seed in range(9))
    assert all(ids(choose_prompts(bank, 4, ("studio",), seed))[3] == "a" for seed in range(9))


def test_equal_briefs_are_kept_apart_where_that_can_be():
    bank = [Prompt(str(n), "", brief, "", (), packs=("studio",)) for n, brief in enumerate("aaaabbc")]
    for seed in range(20):
        chosen = [p.brief for _, p in choose_prompts(bank, 7, ("studio",), seed)]
        assert not [a for a, b in pairwise(chosen) if a == b]
    by_weight = zip("abcda", (9, 8, 7, 6, 1), strict=True)  # the second a comes last, and would meet the first again
    bank = [Prompt(f"{w}", "", brief, "", (), w, packs=("studio",)) for brief, w in by_weight]
    twice = [p.brief for _, p in choose_prompts(bank, 10, ("studio",))]
    assert twice[:2] == ["a", "b"] and not [a for a, b in pairwise(twice) if a == b]
    only_one = [Prompt(str(n), "", "a", "", (), packs=("studio",)) for n in range(3)]
    assert len(choose_prompts(only_one, 5, ("studio",))) == 5


def test_names_stay_unique_where_the_bank_has_numbered_ids():
    chosen = choose_prompts([Prompt("a", "", "x", "", ()), Prompt("a-2", "", "y", "", ())], 6)
    assert len({*ids(chosen)}) == 6


def test_a_pack_of_ones_own_is_read_and_chosen(tmp_path):
    (tmp_path / "own.toml").write_text(
        '[packs]\nwedding = "for the invitation"\n[defaults]\nnegative = "blur"\n'
        '[[prompt]]\nid = "a"\ntext = "{person} in a marquee"\npacks = ["wedding", "outdoor"]\nweight = 2\n'
        'aspect = "16:9"\ntags = ["light:soft"]\n[[prompt]]\nid = "b"\ntext = "{person} at a desk"\nnegative = ""\n'
    )
    bank = load_prompts(tmp_path / "own.toml")
    assert bank[0] == Prompt("a", *["{person} in a marquee"] * 2, "blur", ("light:soft",), 2, "16:9",
                             ("wedding", "outdoor"))  # fmt: skip
    assert bank[1].negative == "" and bank[1].aspect == "1:1"
    assert ids(choose_prompts(bank, 3, ["wedding"])) == ["a", "a-2", "a-3"]
    with pytest.raises(BadPromptBank, match=r"belongs to pack 'medical'(.|\n)*wedding \(1\), outdoor \(1\)"):
        choose_prompts(bank, 1, ("wedding", "medical"))


GOOD = '[[prompt]]\nid="a"\ntext="{person}"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds 0 prompts"),
        ("[[prompt]\n", "1 MiB"),
        ('[[prompt]]\nid="a"\n', r"prompt 1 \(a\) of .*bank.toml lacks \['text'\]"),
        ('[[prompt]]\nid="a"\ntext="a suit"\n', "field text: 'a suit'(.|\n)*{person}"),
        (GOOD + 'brief="a suit"\n', "field brief: 'a suit'(.|\n)*photo of {person}, grey suit"),
        ('[[prompt]]\nid="a/b"\ntext="{person}"\n', r"field id: 'a/b'"),
        ('[[prompt]]\nid=7\ntext="{person}"\n', "field id: 7 "),
        ('[[prompt]]\nid="é"\ntext="{person}"\n', "field id: 'é'"),
        (f'[[prompt]]\nid="{"a" * 65}"\ntext="{{person}}"\n', "field id: 'aaa"),
        (GOOD + GOOD.replace('"a"', '"A"'), "bank.toml has a "),
        (GOOD + 'tags=["\\u001b[2J"]\n', r"field tags: \['\\x1b\[2J'\]"),
        (GOOD + 'negative="\\u0007"\n', r"field negative: '\\x07'"),
        ('[[prompt]]\nid="\\u001b[2J"\ntext="{person}"\n', r"prompt 1 \('\\x1b\[2J'\)"),
        (GOOD.replace("{person}", "{person}" + "a" * 4000), "field text: "),
        ("".join(GOOD.replace('"a"', f'"a{n}"') for n in range(1001)), "holds 1001 prompts"),
        ("x = " + "[" * 100_000 + "]" * 100_000, "1 MiB"),
        ("x = " + "{a=" * 5_000 + "1" + "}" * 5_000, "1 MiB"),
        ("a" + ".a" * 200_000 + " = 1", "1 MiB"),
        ("x = {'a b'" + " . 'a b'" * 20_000 + " = 1}", "1 MiB"),
        ("#" * 2**20 + "#", "1 MiB"),
        (GOOD + 'light="x"\n', r"unknown \['light'\](.|\n)*aspect, packs"),
        (GOOD + GOOD, "bank.toml has a "),
        (GOOD + GOOD.replace('"a"', '"b"') + 'aspect="2:1"\n', r"prompt 2 \(b\) .*aspect: '2:1'(.|\n)*4:5, 3:4, 16:9"),
        (GOOD + 'packs=["wedding"]\n', r"field packs: \['wedding'\](.|\n)*linkedin, creative(.|\n)*\[packs\]"),
        ('[packs]\nparty="x"\n' + GOOD + 'packs=["wedding"]\n', "black-and-white, party"),
        (GOOD + 'packs="linkedin"\n', "field packs: 'linkedin'"),
        (GOOD + 'tags="linkedin"\n', "field tags: 'linkedin'"),
        (GOOD + "tags=[3]\n", r"field tags: \[3\]"),
        (GOOD + "weight=0\n", "field weight: 0 (.|\n)*above 0, to 10"),
        (GOOD + "weight=true\n", "field weight: True"),
        (GOOD + "weight=nan\n", "field weight: nan"),
        (GOOD + "negative=3\n", "field negative: 3"),
        ("[default]\n" + GOOD, r"unknown \['default'\]"),
        ('[defaults]\naspect="4:5"\n' + GOOD, r"unknown \['defaults.aspect'\]"),
        ("[defaults]\nnegative=3\n" + GOOD, r"\[defaults\] negative is 3"),
        ('packs=["wedding"]\n' + GOOD, "\\[packs\\]"),
        ('[prompt]\nid="a"\ntext="{person}"\n', "\\[packs\\]"),
    ],
)
def test_a_bad_bank_is_named(tmp_path, text, said):
    (tmp_path / "bank.toml").write_text(text)
    with pytest.raises(BadPromptBank, match=said):
        load_prompts(tmp_path / "bank.toml")


def test_a_bank_saved_by_windows_notepad_is_read(tmp_path):
    (tmp_path / "bank.toml").write_text(GOOD, encoding="utf-8-sig")
    assert [p.id for p in load_prompts(tmp_path / "bank.toml")] == ["a"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes of that kind")
def test_what_is_no_regular_file_is_refused_unread(tmp_path):
    """Reading a pipe that nobody writes to would wait for ever, a device would never end."""
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "device.toml").symlink_to("/dev/zero")
    (tmp_path / "folder.toml").mkdir()
    for place in (*tmp_path.iterdir(), tmp_path / "none.toml", tmp_path / ("a" * 300), Path("a\0.toml")):
        with pytest.raises(BadPromptBank, match="1 MiB"):
            load_prompts(place)


def test_numbered_ids_are_files_of_their_own_on_every_disk():
    names = [name for name, _ in choose_prompts([Prompt("a", "", "x", "", ()), Prompt("A-2", "", "y", "", ())], 6)]
    assert len({name.casefold() for name in names}) == 6


def test_the_command_line_lists_the_bank_and_names_a_wrong_pack(capsys, bank):
    assert main(["prompts", "--packs", "medical,black-and-white"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == [p.id for p in in_packs(bank, ("medical", "black-and-white"))]
    assert lines[-1] == f"{len(lines) - 2} prompts"
    assert main(["prompts", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [p["id"] for p in listed] == [p.id for p in bank] and listed[-1]["text"] == bank[-1].text
    assert main(["prompts", "--packs", "wedding"]) == 2
    assert "pack 'wedding'" in capsys.readouterr().err


def test_the_packs_of_the_command_line_reach_the_renderer():
    given = chosen_by(*parse(["generate", "--packs", "linkedin", "studio"]))
    config = config_for(GenerateConfig, "mini", RunSettings(packs=given.packs))
    assert config.packs == ("linkedin", "studio") and config_for(GenerateConfig, "mini", RunSettings()).packs == ()
    with pytest.raises(BadConfig, match="packs is 'linkedin'"):
        GenerateConfig(packs="linkedin")


@pytest.mark.parametrize(("base", "form"), [("mini", "brief"), ("sdxl", "text")])
def test_the_renderer_asks_for_the_packs_with_its_seed(bank, base, form):
    lora = Lora("lora.safetensors", base, 4, 4, "ohwx", "person", 1)
    tasks = tasks_of(bank, lora, GenerateConfig.for_base(base, count=16, packs=("medical",), seed=5))
    chosen = choose_prompts(bank, 16, ("medical",), seed=5)
    assert [t.id for t in tasks] == ids(chosen)
    assert [t.text for t in tasks] == [getattr(p, form).replace("{person}", "ohwx person") for _, p in chosen]
