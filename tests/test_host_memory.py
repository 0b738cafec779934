"""How much of the host's memory loading SDXL takes: its U-Net at its real size, of random numbers, from a real file.

The other parts are the embedded base's. Free Colab has 12.7 GB of RAM in all.
"""

import json
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from headshotkit import counting, runtime

NEEDED_DISK, NEEDED_RAM = 6e9, 11e9
LOADING = """
import sys, torch
from headshotkit import runtime
from headshotkit.bases import Base
runtime.choose_dtype = lambda device: (torch.float16, "as on a T4")
from headshotkit.families.sdxl import SdxlFamily
before = runtime.peak_memory_gib()["host"]
family = SdxlFamily(Base("large", "sdxl", sys.argv[1], "random numbers"))
weights = sum(p.nbytes for p in family.pipeline.unet.parameters())
assert {p.dtype for p in family.pipeline.unet.parameters()} == {torch.float16}
loaded = runtime.peak_memory_gib()["host"]
for parameter in family.pipeline.unet.parameters():
    parameter.clone()  # reads it, as the transfer to a GPU does; until then the file is only mapped
print(before * 2**30, weights, loaded * 2**30, runtime.peak_memory_gib()["host"] * 2**30)
"""


def write_random_unet(folder):
    """SDXL's U-Net in float16, streamed to a safetensors file; no more than 32 MiB are in memory."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel", **counting.UNET}))
    with torch.device("meta"):
        shapes = {name: list(p.shape) for name, p in UNet2DConditionModel(**counting.UNET).state_dict().items()}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    block = (0.02 * np.random.default_rng(0).standard_normal(2**24, np.float32)).astype(np.float16).tobytes()
    with open(folder / "diffusion_pytorch_model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for start in range(0, end, len(block)):
            file.write(block[: end - start])
    return end


@pytest.mark.slow
def test_loading_sdxl_takes_less_than_ten_gigabytes(tmp_path):
    """In a process of its own; the peak counts the pages of the mapped file as well, which the system can drop."""
    free = shutil.disk_usage(tmp_path).free
    with open("/proc/meminfo") as file:
        ram = 1024 * int(file.read().split("MemAvailable:")[1].split()[0])
    if free < NEEDED_DISK or ram < NEEDED_RAM:
        pytest.skip(f"{free / 1e9:.0f} GB of disk and {ram / 1e9:.0f} of RAM are free, it needs 6 and 11")
    base = shutil.copytree(runtime.data_path("mini", "base"), tmp_path / "base", ignore=lambda *_: ["unet"])
    try:
        size = write_random_unet(base / "unet")
        assert size == 2 * 2_567_463_684
        told = subprocess.run([sys.executable, "-c", LOADING, str(base)], capture_output=True, text=True)
        assert told.returncode == 0, told.stderr
    finally:
        shutil.rmtree(base)
    before, weights, loaded, peak = (float(number) for number in told.stdout.split())
    gb = [round(number / 1e9, 2) for number in (before, weights, loaded, peak)]
    print(f"GB: {gb[0]} before, {gb[1]} of weights, {gb[2]} loaded, {gb[3]} read")
    assert weights == size and size < peak < 10e9
