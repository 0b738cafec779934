import json
import subprocess
import sys

import pytest

from headshotkit import cli
from headshotkit.config import TOKEN
from headshotkit.core.errors import BadConfig, BaseUnavailable
from headshotkit.dataset.tokens import (
    KNOWN,
    check_token,
    find_token,
    known_tokens,
    measure_tokens,
    rank_tokens,
    token_table,
)
from headshotkit.families import load_family, load_tokenizers

WORDS = ("man", "smiling")


@pytest.fixture(scope="module")
def tokenizers():
    return load_tokenizers("mini")


@pytest.fixture(scope="module")
def ranked(tokenizers):
    return rank_tokens(tokenizers)


@pytest.fixture(scope="module")
def family():
    return load_family("mini")


@pytest.fixture(scope="module")
def measured(tokenizers, ranked, family):
    """The two rarest tokens and two words that the embedded base was trained on, best first."""
    chosen = ranked[:2] + [s for s in rank_tokens(tokenizers, also=WORDS) if s.token in WORDS]
    return measure_tokens(chosen, family)


@pytest.mark.parametrize(
    "word, kind",
    [
        ("sks", "rifle"),
        ("john", "common first name"),
        ("John", "common first name"),
        ("smith", "surname"),
        ("paris", "place"),
        ("house", "word"),
        ("dior", "brand"),
        ("messi", "famous person"),
        ("ass", "swear word"),
        ("szn", "in common use"),
        ("agomez", "name part"),
    ],
)
def test_what_means_something_already_is_refused(tokenizers, word, kind):
    with pytest.raises(BadConfig, match=f"'{word}'.* {kind}"):
        check_token(word, tokenizers)


@pytest.mark.parametrize(
    "word, pieces",
    [
        ("zwx", r"2 pieces for the base's tokenizer: z \+ wx\."),
        ("ohwx man", r"2 pieces .*: ohwx \+ man\."),
        ("ohwx1", r"2 pieces .*: ohwx \+ 1\."),
        ("qqxzqj", r"5 pieces .*: qq \+ x \+ z \+ q \+ j\."),
        ("", "0 pieces .*: nothing"),
    ],
)
def test_what_is_not_one_token_is_refused_with_its_pieces(tokenizers, word, pieces):
    with pytest.raises(BadConfig, match=pieces):
        check_token(word, tokenizers)


@pytest.mark.parametrize("word", ["michael", "photographer", "OHWX", "7", "we", "!"])
def test_what_has_another_shape_is_refused(tokenizers, word):
    with pytest.raises(BadConfig, match="3 to 6|: "):
        check_token(word, tokenizers)


def test_the_default_token_is_accepted(tokenizers):
    assert check_token(TOKEN, tokenizers) == 47993


def test_every_ranked_token_is_accepted_and_rarest_first(tokenizers, ranked):
    assert len(ranked) > 500
    assert all(check_token(score.token, tokenizers) == score.id for score in ranked)
    assert [s.unigram for s in ranked] == sorted(s.unigram for s in ranked)


def test_the_ranking_is_the_same_each_time_and_in_any_order_of_the_tokenizers(tokenizers, ranked):
    assert ranked == rank_tokens(tokenizers[::-1])


def test_the_rarest_are_left_over_from_words_that_have_a_token(tokenizers, ranked):
    for score in ranked[:40]:
        assert score.leftover_of.endswith(score.token) and len(tokenizers[0].tokenize(score.leftover_of)) == 1
        assert score.unigram < 0.3


def test_frequent_words_are_held_more_often_than_rare_ones(tokenizers):
    unigram = {s.token: s.unigram for s in rank_tokens(tokenizers, also=("man", "ohwx", "fodils"))}
    assert unigram["man"] > 100 > 1.1 > unigram["ohwx"] > 1 > 0.1 > unigram["fodils"]


def test_words_that_the_base_knows_move_its_pictures_more_than_the_winner(measured):
    by_word = {score.token: score for score in measured}
    assert measured[0].token not in WORDS
    for word in WORDS:  # measured 2026-11-20: man 0.37, smiling 0.25, twelve rare ones 0.04 to 0.12
        assert by_word[word].moved > 2 * measured[0].moved > 0


def test_the_best_has_the_least_trouble(measured):
    assert [s.trouble for s in measured] == sorted(s.trouble for s in measured)
    assert {s.token for s in measured[-2:]} == set(WORDS)
    assert all(0 <= s.sameness <= 1 and 0 <= s.name_likeness <= 2 for s in measured)


@pytest.mark.slow
def test_a_measurement_can_be_repeated(measured, family):
    assert measure_tokens([measured[0]], family)[0].moved == measured[0].moved


def test_the_choice_is_explained(measured):
    best = measured[0]
    words = best.explain()
    assert f"'{best.token}'" in words and str(best.id) in words and f"'{best.leftover_of}'" in words
    assert f"{best.moved:.2g}" in words and f"{best.sameness:.0%}" in words
    known = next(score for score in measured if score.token == "man")
    assert "first name, surname, place, word" in known.explain()
    lines = token_table(measured).splitlines()
    assert len(lines) == 5 and lines[1].startswith(best.token)


def test_the_command_prints_scores_with_the_default_beside_them(capsys):
    assert cli.main(["token", "--base", "mini", "--candidates", "1", "--json"]) == 0
    out = capsys.readouterr()
    scores = json.loads(out.out)
    assert [s["token"] for s in scores] == ["pknot", TOKEN] and scores[0]["moved"] > 0
    assert "'slipknot'" in out.err


def test_impossible_requests_are_refused():  # offline, transformers gives an empty tokenizer without an error
    with pytest.raises(BadConfig, match="candidates is 0"):
        find_token("mini", candidates=0)
    with pytest.raises(BadConfig, match="seed is -1"):
        find_token("mini", seed=-1)
    with pytest.raises(BadConfig, match="2 pieces"):
        find_token("mini", also=("zwx",))
    with pytest.raises(BaseUnavailable, match="tokenizers of base 'sdxl-base'"):
        find_token("sdxl-base")


def test_the_check_loads_no_model():
    check = "from headshotkit.dataset import tokens; tokens.check_token('ohwx')"
    code = f"{check}; import sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_the_list_is_small_and_says_where_it_comes_from():
    head = [line for line in KNOWN.read_text().splitlines() if line.startswith("#")]
    assert KNOWN.stat().st_size < 200_000 and len(known_tokens()) > 15_000
    for source in ("wordfreq", "CC BY-SA 4.0", "US Census", "GeoNames", "public domain", "collect.py"):
        assert any(source in line for line in head)
