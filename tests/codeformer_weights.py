"""Files that are weights of CodeFormer, or are not, for the tests of restoring."""

import io
import os
import pickle

import pytest
import torch

from headshotkit.core import runtime
from headshotkit.restoration import codeformer


class Bomb:
    """Makes a folder when a pickle of it is run."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def saved(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def bad_weights(folder) -> dict[str, bytes]:
    """Files that are no weights of a `torch.nn.Linear(2, 2)`, the stand-in for CodeFormer's network here."""
    right = {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}
    return {
        "empty": b"", "a web page": b"<html>404</html>", "cut": saved({"params_ema": right})[:300],
        "another network's": saved({"params_ema": {"a": torch.zeros(2)}}), "a list": saved([1]),
        "a pickle": pickle.dumps(Bomb(folder / "run")),
        "a pickle in a zip": saved({"params_ema": Bomb(folder / "run")}),
        "not finite": saved(right | {"bias": torch.full((2,), torch.nan)}),
        "other shapes": saved(right | {"bias": torch.zeros(3)}), "no table": saved({"params_ema": 3}),
    }  # fmt: skip


@pytest.fixture
def stand_in(monkeypatch):
    """CodeFormer's package as if it were installed, with a small network in its network's place."""
    monkeypatch.setattr(runtime, "has_module", lambda name: True)
    monkeypatch.setattr(codeformer, "codeformer_class", lambda: lambda: torch.nn.Linear(2, 2))


@pytest.fixture(scope="module")
def random_codeformer(tmp_path_factory):
    """Weights for the real network class, made at random: they prove loading, pasting and the identity wall.

    They prove nothing about how a restored face looks: CodeFormer's own weights can't be had offline.
    """
    if not runtime.has_module(codeformer.PACKAGE):
        pytest.skip(f"CodeFormer's package is not installed: {codeformer.PIP}")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("codeformer") / "random.pth"
    torch.save({"params_ema": codeformer.codeformer_class()().state_dict()}, path)
    return path
