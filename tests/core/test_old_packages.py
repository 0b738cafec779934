"""A LoRA beside a quantization package that is too old for peft, as on Colab, which preinstalls torchao 0.10.0.

The packages are stand-ins: peft reads their versions and refuses them by that. `make test-colab` has the real torchao.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOO_OLD = {"torchao": "0.10.0", "gptqmodel": "1.0.0"}
PEFT_ALONE = """
import torch
from peft import LoraConfig, inject_adapter_in_model

inject_adapter_in_model(LoraConfig(r=2, target_modules=["0"]), torch.nn.Sequential(torch.nn.Linear(4, 4)))
"""
EVERY_LORA = """
import json, sys
from pathlib import Path

from headshotkit.families import Sampling, load_family
from headshotkit.families.controls import Guide, load_controls
from headshotkit.config.few_steps import FewSteps

file = Path(sys.argv[1], "person.safetensors")
family, counts = load_family("mini"), {}
counts["trained"] = len(family.add_lora(4, 4, "attention", seed=0)) // 2
file.write_bytes(family.lora_file({}))
family = load_family("mini")
family.use_lora(file, 0.8)
counts["fused"] = len(family.without_lora)
family.use_few_steps(FewSteps(str(file.parent), file.name, 2, "lcm"))
guide = Guide(refined=0.5)
counts["refined"] = len(load_controls(family).render(["photo"], [""], [5], Sampling((256, 256), 2, 1.0), guide))
print(json.dumps(counts))
"""


@pytest.fixture
def place(tmp_path):
    """A folder with empty packages of those versions, as pip would have installed them."""
    for name, version in TOO_OLD.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        facts = tmp_path / f"{name}-{version}.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (tmp_path / "torchao" / "quantization.py").write_text("quantize_ = None\n")  # diffusers 0.39 imports it
    return tmp_path


def run(code, place):
    """Runs Python in a process of its own, which finds the packages in `place` first."""
    found = os.pathsep.join([str(place), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": found, "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-c", code, place], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["torchao", pytest.param("gptqmodel", marks=pytest.mark.slow)])
def test_peft_alone_refuses_it(place, name):
    """Where peft no longer does, nothing has to be done about it."""
    for other in set(TOO_OLD) - {name}:
        shutil.rmtree(place / other)
    done = run(PEFT_ALONE, place)
    assert done.returncode == 1 and f"ImportError: Found an incompatible version of {name}" in done.stderr


@pytest.mark.slow
def test_every_lora_works_beside_them(place):
    done = run(EVERY_LORA, place)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["trained"] == counts["fused"] > 0 and counts["refined"] == 1
