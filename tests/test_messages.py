"""Keep all sentences that the package shows in messages.txt, which is read as prose.

It holds every string of two words or more that isn't a docstring, the one-sentence help of each setting, and the text
of the HTML templates. Renew it:
python tests/test_messages.py --write
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SNAPSHOT = Path(__file__).with_name("messages.txt")
WRITE = f"python tests/{Path(__file__).name} --write"
WORDS = re.compile(r"[A-Za-z}][,.:;]? [A-Za-z{]")
UNSEEN = {"_FACE_WORDS", "_EMPTY_WORDS", "MEMORY_WORDS", "LIBRARY_WORDS"}
"""Constants that hold word lists and patterns, not messages."""


def messages_of(tree: ast.Module, with_help: bool) -> Iterator[str]:
    """Yield the strings of a module that read as sentences, in the order of the source."""
    docstrings, helps = set(), set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for before, statement in zip([None, *body], body, strict=False) if isinstance(body, list) else ():
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                of_setting = with_help and isinstance(node, ast.ClassDef) and isinstance(before, ast.AnnAssign)
                (helps if of_setting else docstrings).add(statement.value)
    for node in _strings(tree):
        text = " ".join(_text(node).split()) if node in helps else _text(node)
        if node not in docstrings and (WORDS.search(text) or node in helps):
            yield text.replace("\n", "\\n")


def _strings(node: ast.AST) -> Iterator[ast.Constant | ast.JoinedStr]:
    """Yield all strings below a node; the strings inside of an f-string's expressions are part of it."""
    names = [getattr(target, "id", "") for target in getattr(node, "targets", [])]
    if UNSEEN.intersection(names):
        return
    if isinstance(node, ast.JoinedStr) or isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node
        return
    for child in ast.iter_child_nodes(node):
        yield from _strings(child)


def _text(node: ast.Constant | ast.JoinedStr) -> str:
    """Return a string's text, an f-string's with {expressions} and without their formats."""
    if isinstance(node, ast.Constant):
        return node.value
    return "".join(_text(p) if isinstance(p, ast.Constant) else f"{{{_code(p.value)}}}" for p in node.values)


def _code(expression: ast.expr) -> str:
    """Return an expression as Python 3.11 to 3.14 write it; they choose the quotes within f-strings differently."""
    return ast.unparse(expression).replace('"', "'")


def snapshot() -> str:
    """Return all messages, one a line, below the name of their module."""
    blocks = []
    for file in sorted(f for f in (ROOT / "headshotkit").rglob("*") if f.suffix in (".py", ".js", ".html")):
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".js":
            lines = [words for words in re.findall(r'"([^"\n]*)"', text) if WORDS.search(words)]
        elif file.suffix == ".html":
            between = re.split(r"<style>.*?</style>|<[^>]*>|{%.*?%}|{#.*?#}", text, flags=re.DOTALL)
            lines = [words for words in (" ".join(part.split()) for part in between) if WORDS.search(words)]
        else:
            lines = list(messages_of(ast.parse(text), with_help=file.parent.name == "config"))
        if lines:
            blocks.append("\n".join([f"# {file.relative_to(ROOT).as_posix()}", *lines]))
    return "\n\n".join(blocks) + "\n"


def test_the_snapshot_holds_every_message():
    written = SNAPSHOT.read_text(encoding="utf-8").split("\n")
    there = snapshot().split("\n")
    different = [line for line in there if line not in written] + [line for line in written if line not in there]
    shown = "\n".join(different[:40])
    assert there == written, f"{len(different)} messages differ. Read them as prose, then: {WRITE}\n{shown}"


def test_strings_and_helps_are_found_and_docstrings_are_not():
    module = '''"""A module docstring."""
class Config:
    """A class docstring."""
    steps: int = 1
    """Number of optimizer updates."""
def go(n):
    """Raise an error."""
    raise ValueError(f"it took {n:.1f} s, " "which is too long", f"{'one two' if n else ''} left", "word", key["a b"])
'''
    found = list(messages_of(ast.parse(module), with_help=True))
    help_, *strings = found
    assert (help_, len(strings)) == ("Number of optimizer updates.", 3)
    assert strings[0] == "it took {n} s, which is too long"
    assert help_ not in messages_of(ast.parse(module), with_help=False)


if __name__ == "__main__" and "--write" in sys.argv:
    SNAPSHOT.write_text(snapshot(), encoding="utf-8")
