import pytest

from headshotkit.errors import BadPromptBank
from headshotkit.prompts import choose_prompts, load_prompts


def test_the_bank_is_large_and_its_entries_differ():
    bank = load_prompts()
    assert len(bank) >= 24
    assert len({p.text for p in bank}) == len(bank)
    assert all(p.tags and p.negative for p in bank)


def test_the_bank_beautifies_nobody():
    words = ("slim", "young", "perfect", "flawless", "beautiful", "fair skin", "smooth skin", "handsome")
    assert not [(p.id, w) for p in load_prompts() for w in words if w in p.text.lower()]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds 0 prompts"),
        ("[[prompt]\n", "can't be read"),
        ('[[prompt]]\nid="a"\n', r"lacks \['text'\]"),
        ('[[prompt]]\nid="a"\ntext="a suit"\n', "does not hold {person}"),
        ('[[prompt]]\nid="a/b"\ntext="{person}"\n', "can't be part of a file name"),
        ('[[prompt]]\nid="a"\ntext="{person}"\nlight="x"\n', r"unknown \['light'\]"),
        ('[[prompt]]\nid="a"\ntext="{person}"\n[[prompt]]\nid="a"\ntext="{person}"\n', "has a more than once"),
    ],
)
def test_a_bad_bank_is_named(tmp_path, text, said):
    (tmp_path / "bank.toml").write_text(text)
    with pytest.raises(BadPromptBank, match=said):
        load_prompts(tmp_path / "bank.toml")


def test_a_missing_bank_is_named(tmp_path):
    with pytest.raises(BadPromptBank, match="can't be read"):
        load_prompts(tmp_path / "none.toml")


def test_a_short_bank_is_gone_through_again_under_new_ids():
    names = [name for name, _ in choose_prompts(load_prompts(), 60)]
    assert len(set(names)) == 60
