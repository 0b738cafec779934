"""Does CodeFormer's network alone give what the whole package gives? Run:

    pip install --no-deps --target FOLDER torchvision==0.28.0 lpips
    python tests/benchmarks/codeformer_whole.py FOLDER

headshotkit imports one file of the package. Here the package is imported as its authors mean it, with all that this
needs, and both networks get the same random weights and picture. torchvision's compiled operators may be missing or
made for another torch: the network uses none of them, so their names are enough.
"""

import argparse
import importlib
import sys

import torch

from headshotkit.restoration.codeformer import PACKAGE, codeformer_class

OPERATORS = (
    "nms", "qnms", "roi_align", "qroi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "deform_conv2d",
    "_roi_align_backward", "_ps_roi_align_backward", "_roi_pool_backward", "_ps_roi_pool_backward",
    "_deform_conv2d_backward",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="with torchvision and lpips")
    args = parser.parse_args()
    torch.manual_seed(0)
    alone = codeformer_class()().eval()
    imported = [name for name in sys.modules if name.split(".")[0] == PACKAGE]
    for name in imported:
        del sys.modules[name]
    sys.path.insert(0, args.folder)
    for name in OPERATORS:
        torch.library.define(f"torchvision::{name}", "(Tensor a) -> Tensor")
    whole = importlib.import_module(f"{PACKAGE}.basicsr.archs.codeformer_arch").CodeFormer().eval()
    whole.load_state_dict(alone.state_dict(), strict=True)
    there = [name for name in sys.modules if name.split(".")[0] == PACKAGE]
    print(f"modules of the package: {len(imported)} alone, {len(there)} whole")
    picture = torch.rand(1, 3, 512, 512) * 2 - 1
    with torch.no_grad():
        for fidelity in (0.0, 0.5, 1.0):
            one, other = (net(picture, w=fidelity, adain=True)[0] for net in (alone, whole))
            print(f"fidelity {fidelity}: largest difference {float((one - other).abs().max())}")


if __name__ == "__main__":
    main()
