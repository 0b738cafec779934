"""Find artefacts that generators and restorers leave in a face: in eyes, mouth, ears, glasses, and hair across it.

A small network was trained for this package on faces that do not exist, with planted artefacts
(data/mini/artefacts.py). It reads what the first half of the recogniser sees of the whole head. Where it can't be used
faces are not rated, and `not_rated` says why.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from headshotkit.core import runtime
from headshotkit.faces import recognition

KINDS = ("eyes", "mouth", "ears_glasses", "hair")
"""Kinds of artefact: uneven or smeared eyes, a smeared mouth, melted ears or glasses, hair across the face."""
HEAD_PX = 144
HEAD_TEMPLATE = ((recognition.ARCFACE_TEMPLATE - 0.5) * 0.86 + [0.5, 0.47]).astype(np.float32)
"""Where eyes, nose and mouth lie in the square that is rated, in fractions of its side: the ears are in it."""
MAPS = "397", "451"
"""Names of the recogniser's maps that the network reads: at a fourth and at an eighth of the square's side."""


def weights_file() -> Path:
    """Return the place of the weights."""
    return runtime.data_path("artefacts", "artefacts.safetensors")


def not_rated() -> str:
    """Return why faces are not rated, or nothing if they are.

    Raises:
        BadWeights: the weights are damaged.
    """
    if not weights_file().is_file():
        return f"{runtime.shown_path(weights_file())} is missing"
    if not recognition.norm_is_known():
        return "they need the recogniser w600k_mbf, and another one is used"
    try:
        recogniser_maps_session(recognition.model_folder()[0])
        _net(weights_file())
    except ImportError as error:
        return f"a package can't be imported: {error}"
    return ""


def rate_artefacts(image: np.ndarray, face: recognition.Face) -> dict[str, float]:
    """Rate how likely a face has each kind of artefact.

    Args:
        image: RGB, uint8, shape (H, W, 3).
    Returns: kind, one of KINDS, -> rating in [0, 1]; 0.5 is the limit at which few good photos are wrongly rated as
        having it. Empty if faces are not rated.
    Raises:
        BadWeights: the weights are damaged.
    """
    if not_rated():
        return {}
    import torch

    head = recognition.align_face(image, face.points, HEAD_PX, HEAD_TEMPLATE, repeat_edge=True)
    maps = recogniser_maps(recogniser_maps_session(recognition.model_folder()[0]), head)
    with torch.no_grad():
        rated = torch.sigmoid(_net(weights_file())(*(torch.from_numpy(one) for one in maps)))[0]
    return {kind: round(float(value), 4) for kind, value in zip(KINDS, rated, strict=True)}


def recogniser_maps(session, head: np.ndarray) -> list[np.ndarray]:
    """Return what the recogniser's first layers see of a head, RGB, uint8, shape (HEAD_PX, HEAD_PX, 3), as MAPS."""
    given = (head.transpose(2, 0, 1)[None].astype(np.float32) - 127.5) / 127.5
    return session.run(list(MAPS), {session.get_inputs()[0].name: given})


@functools.lru_cache(maxsize=1)
def recogniser_maps_session(folder: Path, threads: int = 0):
    """Return a session of the recogniser's layers up to MAPS, for squares of any size.

    Args:
        threads: of the CPU; 0: one for each core.
    Raises:
        ImportError: onnx or onnxruntime is not installed.
    """
    import onnx
    import onnxruntime

    model = onnx.load(folder / "w600k_mbf.onnx")
    for axis in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.dim_param = "side"
    del model.graph.value_info[:]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in MAPS]
    last = max(n for n, node in enumerate(model.graph.node) if set(node.output) & set(MAPS))
    nodes = list(model.graph.node)[: last + 1]
    used = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in model.graph.initializer if tensor.name in used]
    graph = onnx.helper.make_graph(nodes, "first layers", list(model.graph.input)[:1], ends, weights)
    cut = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(cut.SerializeToString(), options, providers=["CPUExecutionProvider"])


@functools.lru_cache(maxsize=2)
def _net(file: Path):
    """Return the network of a file, loaded once per process."""
    from headshotkit.faces.artefact_net import load_detector

    return load_detector(file)
