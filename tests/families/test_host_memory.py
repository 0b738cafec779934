"""How much of the host's memory SDXL takes: loading its U-Net at its real size, of random numbers, and what waits.

The other parts are the embedded base's. Free Colab has 12.7 GB of RAM in all.
"""

import errno
import json
import shutil
import struct
import subprocess
import sys

import counting
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from headshotkit.core import runtime
from headshotkit.families.on_disk import copies_on_disk

NEEDED_DISK, NEEDED_RAM = 6e9, 11e9
LOADING = """
import sys, torch
from headshotkit.core import runtime
from headshotkit.config.bases import Base
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


def anonymous_mb() -> float:
    with open("/proc/self/status") as file:
        return int(file.read().split("RssAnon:")[1].split()[0]) / 1024


def test_copies_on_the_disk_take_no_memory_and_keep_their_numbers():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(33, 7, generator=generator).half()
    weights = {"odd": first, "large": torch.zeros(16, 2**20).bfloat16(), "scalar": torch.tensor(3.0)}
    weights["large"][:, ::2] = 1
    wanted = {name: weight.clone() for name, weight in weights.items()}
    before = anonymous_mb()
    copies = copies_on_disk(weights)
    grown = anonymous_mb() - before
    for weight in weights.values():
        weight.fill_(9)
    assert all(torch.equal(copies[name], wanted[name]) for name in wanted)
    assert {copy.dtype for copy in copies.values()} == {torch.half, torch.bfloat16, torch.float32}
    assert grown < 8, "the large one has 32 MB"
    assert not list(runtime.cache_path("waiting").iterdir())


def test_without_room_on_the_disk_the_copies_are_in_memory(monkeypatch):
    """The error is put in where the file is made; the disk itself can't be filled here."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    assert torch.equal(copies_on_disk({"weight": torch.arange(5.0)})["weight"], torch.arange(5.0))


BLOCKS = """
import sys, torch
from headshotkit.core import runtime
if sys.argv[1] == "returned":
    runtime.return_large_blocks()
torch.ones(7 * 2**20)  # 28 MB, freed: the C library then keeps what is smaller
large, small = [], []
for _ in range(20):
    large.append(torch.ones(2 * 2**20))
    small.append(torch.ones(100_000))
large.clear()
with open("/proc/self/status") as file:
    print(int(file.read().split("RssAnon:")[1].split()[0]) / 1024)
"""


def test_large_blocks_are_returned_though_small_ones_lie_between_them():
    """In processes of their own, for the setting stays: 20 blocks of 8 MB, all freed."""
    command = [sys.executable, "-c", BLOCKS]
    kept, returned = (
        float(subprocess.run([*command, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "returned")
    )
    assert kept - returned > 120


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
