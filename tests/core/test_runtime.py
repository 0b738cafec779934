import errno
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch
from conftest import P1

import headshotkit
from headshotkit.cli import main
from headshotkit.core import runtime
from headshotkit.core.errors import BadConfig, BaseUnavailable, BrokenPackage, MissingPackage, OutOfMemory


def test_importing_the_package_loads_nothing_heavy():
    """So it is quick, 0.02 s of the 0.3 s that were promised; seconds would be a busy machine's."""
    code = "import sys, headshotkit; print(*{name.partition('.')[0] for name in sys.modules})"
    home = Path(headshotkit.__file__).parents[1]
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=home, capture_output=True, text=True, check=True)
    loaded = {name for name in done.stdout.split() if name not in sys.stdlib_module_names}
    assert loaded <= {"headshotkit", "__main__", "__mp_main__", "sitecustomize", "usercustomize"}, loaded


def test_a_missing_package_names_its_extra():
    with pytest.raises(MissingPackage, match=r'pip install "headshotkit\[train\]"'):
        runtime.require("no_such_module_at_all", extra="train")


def test_a_stop_in_the_middle_of_an_import_waits_for_its_end(tmp_path, monkeypatch):
    """In C++ it would become an ImportError, and the next import of it would fail as well."""
    words = "import signal\nsignal.raise_signal(signal.SIGINT)\nimport decimal\nwhole = True\n"
    (tmp_path / "stopped_half_way.py").write_text(words)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        runtime.require("stopped_half_way", extra="faces")
    assert sys.modules.pop("stopped_half_way").whole
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("written", "error"),
    [("import no_such_part_of_it", MissingPackage),
     ("raise ImportError('libx.so.3: undefined symbol: f')", BrokenPackage),
     ("raise OSError('libx.so: cannot open shared object file')", BrokenPackage), ("raise MemoryError", OutOfMemory),
     ("raise ImportError('libx.so: failed to map segment from shared object')", OutOfMemory)],
)  # fmt: skip
def test_missing_broken_and_too_large_packages_are_told_apart(tmp_path, monkeypatch, written, error):
    """Injected at the package's import, in the words of Python and of the system's loader."""
    (tmp_path / "a_package.py").write_text(written)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(error) as caught:
        runtime.require("a_package", extra="train")
    assert type(caught.value) is error and ("pip install" in caught.value.next_step) == (error is not OutOfMemory)
    monkeypatch.delitem(sys.modules, "a_package", raising=False)


def test_memory_that_gives_out_anywhere_is_no_fault_of_the_program(monkeypatch, capsys):
    """Injected where the command line lists the prompts, which asks for no memory of its own."""
    monkeypatch.setattr(
        "headshotkit.generation.prompts.load_prompts", lambda path: (_ for _ in ()).throw(MemoryError("bad_alloc"))
    )
    assert main(["prompts"]) == 2
    assert "OutOfMemory" in capsys.readouterr().err


class Model:
    pass


@pytest.mark.parametrize(
    ("error", "freed"),
    [(KeyboardInterrupt(), True), (MissingPackage("a", "b", "c"), True), (RuntimeError("CUDA out of memory."), True),
     (RuntimeError("a bug"), False)],
)  # fmt: skip
def test_what_a_stopped_function_held_is_freed_but_a_bugs_frames_stay(error, freed):
    seen = []

    @runtime.frees_memory
    def work():
        model = Model()
        seen.append(weakref.ref(model))
        try:
            raise ValueError
        except ValueError:
            raise error from None

    with pytest.raises((type(error), OutOfMemory)) as caught:
        work()
    told = caught.value.__cause__ if isinstance(caught.value, OutOfMemory) else caught.value
    assert told is error and (seen[0]() is None) == freed
    assert isinstance(caught.value, OutOfMemory) == bool(runtime.out_of_memory(error))


class Fail(Exception):
    """As onnxruntime's: no RuntimeError."""


def caused(error, cause):
    error.__cause__ = cause
    return error


MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("unable to mmap 5135149760 bytes from file <a.safetensors>: Cannot allocate memory (12)"),
    MemoryError(),
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    Fail("[ONNXRuntimeError] : 1 : FAIL : bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 9"),
    caused(OSError("Unable to load weights"), RuntimeError("failed to map the file")),
    ImportError("libx.so: failed to map segment from shared object"),
    ImportError("libx.so: cannot allocate memory for program header"),
    caused(BaseUnavailable("a", "b", "c"), MemoryError("bad_alloc")),
]
"""Every class of running out of memory, in the libraries' own words."""


@pytest.mark.parametrize("error", MEMORY, ids=lambda error: f"{type(error).__name__} {error}"[:50])
def test_every_class_of_running_out_of_memory_is_told(error):
    assert runtime.out_of_memory(error)
    made, said = runtime.within_memory(lambda: (_ for _ in ()).throw(error))
    assert (made, said) == (None, runtime.out_of_memory(error)) and "\n" not in said


@pytest.mark.parametrize("error", [
    RuntimeError("The size of tensor a (4) must match the size of tensor b (3) at non-singleton dimension 1"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    ValueError("a layer named failed to map"), ModuleNotFoundError("No module named 'out of memory'"),
    ImportError("libx.so: failed to map segment from shared object: Operation not permitted"),
    ImportError("libgomp.so: cannot allocate memory in static TLS block"),
    KeyError("out of memory"), OSError(errno.ENOSPC, "No space left on device"), MissingPackage("out of memory"),
    KeyboardInterrupt(),
], ids=lambda error: f"{type(error).__name__} {error}"[:50])  # fmt: skip
def test_a_bug_is_not_taken_for_memory(error):
    assert runtime.out_of_memory(error) == ""
    with pytest.raises(type(error)):
        runtime.within_memory(lambda: (_ for _ in ()).throw(error))


@pytest.mark.parametrize(("free_gib", "is_memory"), [(0.2, True), (6.0, False)])
def test_what_cudnn_says_of_a_bug_too_is_memory_near_the_limit(monkeypatch, free_gib, is_memory):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(free_gib * 2**30), 2**34))
    assert bool(runtime.out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"))) == is_memory


def test_what_the_caller_was_handling_keeps_its_frames():
    @runtime.frees_memory
    def work():
        raise MissingPackage("a", "b", "c")

    try:
        mine = Model()
        next(item for item in [] if mine)
    except StopIteration as error:
        with pytest.raises(MissingPackage) as caught:
            work()
        assert caught.value.__context__ is error
        assert error.__traceback__.tb_frame.f_locals["mine"] is mine


@pytest.mark.parametrize(
    ("capability", "device", "dtype", "said"),
    [
        ((6, 0), "cpu", "float32", "sm_60"),
        ((7, 0), "cpu", "float32", "sm_70"),
        ((7, 5), "cuda", "float16", "fast fp16"),
        ((8, 9), "cuda", "bfloat16", "fast bf16"),
        ((12, 0), "cuda", "bfloat16", "fast bf16"),
    ],
)
def test_what_a_gpu_computes_in_is_said_truly(monkeypatch, capability, device, dtype, said):
    """As torch 2.11's CUDA 12.8 build would see each GPU; there is none here, so its answers are given in its place."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    monkeypatch.setattr("torch.cuda.get_arch_list", lambda: ["sm_75", "sm_80", "sm_90", "sm_120", "compute_120"])
    chosen, why = runtime.choose_device()
    kind, reason = runtime.choose_dtype(chosen)
    assert (chosen, str(kind)) == (device, f"torch.{dtype}") and said in why + reason


def test_an_older_torch_on_an_older_gpu_promises_no_speed(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (6, 0))
    assert "sm_60" in runtime.choose_dtype("cuda")[1]


def test_importing_the_package_sets_the_environment_in_a_notebook_too():
    """Telemetry and chatter of the libraries are off before they are imported, without the command line."""
    code = "import headshotkit, huggingface_hub.constants; print(huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY)"
    bare = {name: value for name, value in os.environ.items() if name not in runtime.ENVIRONMENT}
    home = Path(headshotkit.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=home, env=bare, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]


USED = """
import headshotkit, onnxruntime, torch
from headshotkit.evaluation import plots
from headshotkit.families import Sampling, load_family
family = load_family("mini")
family.render(["a man"], [""], [1], Sampling((64, 64), 1, 1.0))
torch.optim.AdamW(family.add_lora(2, 2, "attention", 0))
"""


def test_the_libraries_write_into_the_cache_alone_and_warn_of_nothing(tmp_path):
    """In a home and a temporary folder that are new: no settings, no numbers of the machine, no compiler's folder.

    Deprecations are left out. Python hides those of a library from its users, and Colab's matplotlib causes one.
    """
    places = {"HOME": "home", "TMPDIR": "tmp", "HEADSHOTKIT_CACHE": "cache"}
    for folder in places.values():
        (tmp_path / folder).mkdir()
    own = {*runtime.ENVIRONMENT, *runtime.CACHES, "XDG_CACHE_HOME", "XDG_CONFIG_HOME"}
    bare = {name: value for name, value in os.environ.items() if name not in own}
    environment = bare | {name: str(tmp_path / folder) for name, folder in places.items()}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", USED],
        capture_output=True, text=True, env=environment, cwd=Path(headshotkit.__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not [*(tmp_path / "home").rglob("*"), *(tmp_path / "tmp").iterdir()]


def test_own_settings_of_matplotlib_and_own_folders_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in runtime.CACHES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".config" / "matplotlib").mkdir(parents=True)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/own")
    runtime.set_environment()
    assert "MPLCONFIGDIR" not in os.environ and os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/own"


CHECK = """
import sys
class NoTorch:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "diffusers", "transformers", "peft"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NoTorch())
from headshotkit.cli import main
sys.exit(main(sys.argv[1:]))
"""


def process(*arguments, code="import sys; from headshotkit.cli import main; sys.exit(main(sys.argv[1:]))"):
    home = Path(headshotkit.__file__).parents[1]
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stderr=subprocess.PIPE, text=True,
                            stdout=subprocess.PIPE, cwd=home)  # fmt: skip


def test_photos_are_checked_without_torch(tmp_path):
    (tmp_path / "photos").mkdir()
    shutil.copy(P1 / "p1_01.jpg", tmp_path / "photos")
    done = process("check", tmp_path / "photos", "--min-photos", "1", "--out", tmp_path / "run", code=CHECK)
    told, errors = done.communicate()
    assert done.returncode == 0 and "kept 1 of 1" in told, errors


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM that is heard")
def test_sigterm_is_answered_outside_of_a_training_too(tmp_path):
    """Amid the check of the sample person's photos; the same command then goes on."""
    checking = process("check", P1, "--out", tmp_path / "run")
    while checking.poll() is None and not (tmp_path / "run" / "photos" / "manifest.json").exists():
        time.sleep(0.02)
    checking.terminate()
    _, errors = checking.communicate()
    assert checking.returncode == 143 and "SIGTERM" in errors and "again" in errors, errors


def test_seeds_of_places_differ_and_stay():
    seeds = {runtime.seed_for(7, a, b) for a in range(20) for b in range(20)}
    assert len(seeds) == 400 and all(0 <= seed < 2**63 for seed in seeds)
    assert (
        runtime.seed_for(0, 1, 2) == 1535930435702422785
    )  # the same on every machine, or old runs could not be resumed


def test_the_report_gives_reasons():
    text = runtime.report()
    assert "device: " in text and "dtype: " in text
    assert all("(" in line for line in text.splitlines() if line.startswith(("device: ", "dtype: ")))


def test_without_a_gpu_the_first_line_leads_to_one(monkeypatch):
    monkeypatch.setattr(runtime, "choose_device", lambda: ("cpu", "no GPU was found"))
    first = runtime.report().splitlines()[0]
    assert "colab.research.google.com/github/" in first and first.endswith("00_quickstart.ipynb")
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    assert "T4 GPU" in runtime.report().splitlines()[0] and "http" not in runtime.toy_words()
    monkeypatch.setattr(runtime, "choose_device", lambda: ("cuda", "Tesla T4"))
    monkeypatch.setattr(runtime, "choose_dtype", lambda device: (torch.float16, "it is fast"))
    assert runtime.report().startswith("device: ")


@pytest.mark.parametrize(("own", "heeded"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_torch_starts_with_the_waiting_time_that_is_set(own, heeded):
    """Told by the OpenMP runtime itself, in a process that has no setting, or the person's."""
    code = "import headshotkit, torch; print('spun', torch.__version__)"
    bare = {name: value for name, value in os.environ.items() if name not in runtime.ENVIRONMENT}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=bare | own | {"OMP_DISPLAY_ENV": "VERBOSE"}, cwd=Path(headshotkit.__file__).parents[1],
    )  # fmt: skip
    if "GOMP" not in done.stderr:
        pytest.skip("torch runs on another OpenMP than GNU's here")
    assert f"GOMP_SPINCOUNT = '{heeded}'" in done.stderr


def test_diffusers_does_without_jax():
    """Only `make test-colab` has JAX; newer diffusers never imports it."""
    if not runtime.has_module("jax"):
        pytest.skip("JAX is not installed")
    code = "import sys, headshotkit; from diffusers import StableDiffusionXLPipeline; print('jax' in sys.modules)"
    bare = {name: value for name, value in os.environ.items() if name not in runtime.ENVIRONMENT}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=bare)
    assert done.stdout.split()[-1] == "False" and "Flax" not in done.stderr


def test_the_dtype_can_be_set_from_outside(monkeypatch):
    monkeypatch.setenv("HEADSHOTKIT_DTYPE", "bfloat16")
    assert runtime.choose_dtype("cpu")[0] is torch.bfloat16
    monkeypatch.setenv("HEADSHOTKIT_DTYPE", "int8")
    with pytest.raises(BadConfig, match="int8"):
        runtime.choose_dtype("cpu")
