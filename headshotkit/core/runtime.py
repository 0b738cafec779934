"""The machine: device, dtype with its reason, seeds, memory, versions, optional packages, progress."""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import importlib.util
import os
import platform
import signal
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from headshotkit.core.errors import BadConfig, BrokenPackage, HeadshotError, MissingPackage, OutOfMemory, notebook_words

PACKAGE = Path(__file__).parents[1]
REPOSITORY = "https://github.com/headshotkit/headshotkit"
"""As in pyproject.toml; `make address` writes it here."""
REPORTED = ("torch", "diffusers", "peft", "transformers", "accelerate", "numpy", "pillow", "insightface",
            "onnxruntime", "bitsandbytes", "dlib-bin", "pillow-heif")  # fmt: skip
# GOMP_SPINCOUNT: how long a thread of torch's (GNU OpenMP's) spins for work before it sleeps. The default is fastest on
# free cores and slowest by far on busy ones; this is close to the best on both (tests/benchmarks/README.md).
ENVIRONMENT = {
    "GOMP_SPINCOUNT": "1000",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # else onnxruntime 1.32 assigns the machine an id and reports to Microsoft
    "TRANSFORMERS_VERBOSITY": "error",
    "USE_FLAX": "0",  # diffusers 0.39 imports JAX if installed, as on Colab: 0.1 GB of memory, and warnings
}

DTYPES = ("float32", "bfloat16", "float16")
"""Values of HEADSHOTKIT_DTYPE."""

MEMORY_WORDS = (
    "out of memory", "cublas_status_alloc_failed", "cudnn_status_alloc_failed",
    "unable to find an engine to execute this computation",  # cuDNN, without memory for a workspace
    "bad_alloc", "failed to map", "cannot allocate memory", "can't allocate memory", "not enough memory",
    "failed to allocate memory", "insufficient memory",
)  # fmt: skip
"""Libraries' messages when memory runs out: CUDA, cuBLAS, cuDNN, C++, mmap, torch's CPU allocator, ONNX, OpenCV."""
AMBIGUOUS_WORDS = (
    "cublas_status_not_initialized", "cudnn_status_not_initialized", "cudnn_status_internal_error",
    "cublas_status_internal_error", "cudnn_status_execution_failed", "cublas_status_execution_failed",
)  # fmt: skip
"""Messages of cuBLAS and cuDNN for a bug as well; near the GPU's limit they mean memory."""
NEAR_LIMIT_GIB = 0.75
"""Free memory of the GPU below which it is near its limit, GiB."""
MORE_MEMORY = (
    "Close other notebooks and programs that use this machine's memory, then give the same command again: "
    "finished work is kept. If that is not enough, use a machine with more memory."
)
NEVER_MEMORY = (ModuleNotFoundError, LookupError, TypeError, ValueError)
"""Exceptions of a program, not of a machine, whatever their message is."""
LIBRARY_WORDS = ("static tls", "not permitted", "permission denied")
"""The system loader's messages, next to words of memory, when a library fails to load for another reason."""


CACHES = {"MPLCONFIGDIR": "matplotlib", "TORCHINDUCTOR_CACHE_DIR": "torchinductor"}
"""Variable -> the project's cache folder for files that a library would write elsewhere, even if it is not used."""


def set_environment() -> None:
    """Set the environment variables that the libraries need at their start; keep those that the person set.

    A person's own matplotlib settings stay as well: matplotlib then writes to its usual place.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with contextlib.suppress(RuntimeError):  # no home folder is known
        own = [Path.home() / place for place in (".config/matplotlib", ".matplotlib")]
        for name, folder in CACHES.items():
            if name != "MPLCONFIGDIR" or not any(place.is_dir() for place in own):
                os.environ.setdefault(name, str(cache_path(folder)))


def data_path(*parts: str) -> Path:
    """Return a file or folder of the project's data: inside the installed package, or in the checkout's `data/`."""
    installed = PACKAGE / "_data"
    return (installed if installed.is_dir() else PACKAGE.parent / "data").joinpath(*parts)


def sample_person() -> Path:
    """Return the folder with the sample person's photos, good and bad; the person does not exist."""
    return data_path("people", "p1")


def cache_path(*parts: str) -> Path:
    """Return a place for files that can be made or downloaded again; HEADSHOTKIT_CACHE moves it."""
    root = os.environ.get("HEADSHOTKIT_CACHE") or Path.home() / ".cache" / "headshotkit"
    return Path(root).joinpath(*parts)


def typed_path(path: Path | str) -> Path:
    """Return a path as a person types it, with ~ resolved, which no shell does in a notebook."""
    return Path(os.path.expanduser(path))


def shown_path(path: Path) -> str:
    """Return a path as a run may hold it, without a user's name: from ~ or the cache folder, else the name alone."""
    for root, name in ((cache_path(), "$HEADSHOTKIT_CACHE"), (Path.home(), "~")):
        if path.is_relative_to(root) and (name == "~" or os.environ.get("HEADSHOTKIT_CACHE")):
            return f"{name}/{path.relative_to(root).as_posix()}"
    return path.name


def import_whole(module: str):
    """Import a module, and delay Ctrl-C or a notebook's stop button until it is imported.

    A C++ module whose import was interrupted can't be imported again in the same process.

    Raises:
        KeyboardInterrupt: it was requested during the import.
    """
    if threading.current_thread() is not threading.main_thread() or not callable(signal.getsignal(signal.SIGINT)):
        return importlib.import_module(module)
    stops: list[int] = []
    earlier = signal.signal(signal.SIGINT, lambda number, _: stops.append(number))
    try:
        return importlib.import_module(module)
    finally:
        signal.signal(signal.SIGINT, earlier)
        if stops:
            signal.raise_signal(stops[0])


def require(module: str, extra: str):
    """Import an optional module.

    Raises:
        MissingPackage: it, or a package that it needs, is not installed; the error names the extra to install.
        BrokenPackage: it is installed but can't be loaded.
        OutOfMemory: memory ran out during the import.
    """
    install = f'pip install "headshotkit[{extra}]"'
    try:
        return import_whole(module)
    except ModuleNotFoundError as error:
        raise MissingPackage(
            f"the package {module!r} can't be imported: {error}.",
            f"It is optional; the extra {extra!r} installs it.",
            f"Install it: {install}",
        ) from error
    except (ImportError, MemoryError, OSError) as error:
        if said := out_of_memory(error):
            raise OutOfMemory(f"out of memory while loading {module!r}.", said, MORE_MEMORY) from error
        raise BrokenPackage(
            f"the package {module!r} is installed but can't be loaded: {error}.",
            "A library that it needs is missing, damaged, or of an incompatible version.",
            f"Reinstall it: {install.replace('install', 'install --force-reinstall', 1)}",
        ) from error


def has_module(module: str) -> bool:
    """Return whether a top-level module is installed, without importing it."""
    return importlib.util.find_spec(module) is not None


def choose_device() -> tuple[str, str]:
    """Choose the device to compute on, and return it with the reason: ("cuda" | "mps" | "cpu", reason)."""
    torch = import_whole("torch")  # mostly the first import of it

    if torch.cuda.is_available():
        name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        built = [int(arch[3:]) for arch in torch.cuda.get_arch_list() if arch[:3] == "sm_" and arch[3:].isdigit()]
        if built and 10 * major + minor < min(built):
            return "cpu", f"{name} is sm_{major}{minor}, but this torch supports only sm_{min(built)} and newer"
        return "cuda", f"found CUDA GPU {name}"
    if torch.backends.mps.is_available():
        return "mps", "found Apple GPU"
    return "cpu", "found no GPU"


def gpu_memory() -> tuple[str, float] | None:
    """Return the name of CUDA's GPU and its total memory, GiB; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1] / 2**30


def choose_dtype(device: str):
    """Choose the dtype for the frozen weights and autocast, and return it with the reason: (torch dtype, reason).

    fp16 on CUDA, because a T4 (sm_75) computes bf16 about 20 times slower; fp32 on a CPU, where bf16 is mostly
    emulated, and slower for small batches even if it isn't. HEADSHOTKIT_DTYPE overrides it: in bfloat16 a large base
    takes half of a CPU's memory.

    Raises:
        BadConfig: HEADSHOTKIT_DTYPE names no dtype of DTYPES.
    """
    import torch

    if wanted := os.environ.get("HEADSHOTKIT_DTYPE"):
        if wanted not in DTYPES:
            raise BadConfig(
                f"HEADSHOTKIT_DTYPE is {wanted!r}.",
                f"The known dtypes are: {', '.join(DTYPES)}.",
                "Set it to one of them, or unset it: the device then decides.",
            )
        return getattr(torch, wanted), "set by HEADSHOTKIT_DTYPE"
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        if major >= 8:
            return torch.bfloat16, f"sm_{major}{minor} has fast bf16, which needs no loss scaling"
        if major == 7:
            return torch.float16, f"sm_{major}{minor} has fast fp16, but no fast bf16"
        return torch.float16, f"sm_{major}{minor} has no fast half precision; fp16 needs half of fp32's memory"
    if device == "mps":
        return torch.float32, "Apple GPUs run in fp32, the only dtype tested"
    return torch.float32, "a CPU computes small batches fastest in fp32"


def seed_for(seed: int, *place: int) -> int:
    """Derive a seed for one place (a step, a prompt, an attempt), so that it can be redone independently.

    Returns: an int in [0, 2**63). The same arguments give the same seed on every machine.

    >>> seed_for(7, 1) == seed_for(7, 1), seed_for(7, 1) == seed_for(7, 2)
    (True, False)
    """
    import numpy as np

    return int(np.random.SeedSequence([seed, *place]).generate_state(1, np.uint64)[0] >> 1)


def peak_memory_gib() -> dict[str, float]:
    """Return the peak memory of this process so far, GiB: host RAM, and the GPU's if torch has used one."""
    peak: dict[str, float] = {}
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak["host"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)
    with contextlib.suppress(OSError):  # Linux: getrusage also counts the parent process
        status = Path("/proc/self/status").read_text()
        peak["host"] = round(int(status.split("VmHWM:")[1].split()[0]) / 2**20, 3)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        peak["gpu"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
    return peak


def free_gpu_gib() -> float | None:
    """Return the GPU memory that a process can still take, GiB, torch's own cache included; None without CUDA."""
    import torch

    if not torch.cuda.is_available():
        return None
    cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return (torch.cuda.mem_get_info()[0] + cached) / 2**30


def free_host_gib(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the memory that this process can still take of the host, GiB; None if it is unknown.

    It is the minimum of what the system has available and of what each control group of the process (such as a
    container's) leaves; cached files count as available.

    Args:
        proc, groups: Linux's folders of processes and control groups.
    """
    free: list[float] = []
    with contextlib.suppress(OSError, IndexError, ValueError):
        free.append(int((proc / "meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024)
    if not free:
        with contextlib.suppress(ImportError, OSError):  # not Linux; accelerate installs it
            free.append(importlib.import_module("psutil").virtual_memory().available)
    with contextlib.suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            number, kinds, place = line.split(":", 2)
            if number == "0" or "memory" in kinds.split(","):
                root = groups if number == "0" else groups / "memory"
                own = root / place.strip("/")
                free += [left for one in (own, *own.parents) if one.is_relative_to(root) and (left := _left_in(one))]
    return min(free) / 2**30 if free else None


def _left_in(group: Path) -> float | None:
    """Return the bytes that a control group of either version leaves, at least 1; None if it has no limit."""
    for limit, used, cached in (
        ("memory.max", "memory.current", ("inactive_file", "active_file")),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
    ):
        with contextlib.suppress(OSError, ValueError):
            most, now = (int((group / name).read_text()) for name in (limit, used))
            facts = dict(line.split(" ", 1) for line in (group / "memory.stat").read_text().splitlines())
            return max(1, most - now + sum(int(facts.get(name, 0)) for name in cached))
    return None


def usable_gpu_gib() -> float | None:
    """Return the GPU memory that this process can use in total, including what it holds, GiB; None without a GPU."""
    import torch

    free = free_gpu_gib()
    return None if free is None else free + torch.cuda.memory_allocated() / 2**30


def out_of_memory(error: BaseException | None) -> str:
    """Return the first line of an exception's message, if it or its cause means out of memory; else "".

    Every stage uses this one function, for the GPU's memory and the host's.

    >>> out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    'cuDNN error: CUDNN_STATUS_ALLOC_FAILED'
    >>> out_of_memory(RuntimeError("The size of tensor a (4) must match the size of tensor b (3)"))
    ''
    """
    while error is not None:
        said, words = str(error).strip().split("\n")[0], str(error).lower()
        known = any(word in words for word in MEMORY_WORDS)
        known = known or (any(word in words for word in AMBIGUOUS_WORDS) and _near_the_gpus_limit())
        known = known and isinstance(error, Exception) and not isinstance(error, (HeadshotError, *NEVER_MEMORY))
        known = known and not (isinstance(error, ImportError) and any(word in words for word in LIBRARY_WORDS))
        known = known or isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
        if known or type(error).__name__ == "OutOfMemoryError":  # torch's; torch may not be imported
            return said or type(error).__name__
        error = error.__cause__
    return ""


def _near_the_gpus_limit() -> bool:
    """Return whether the driver has almost no memory left; cuBLAS and cuDNN can't use torch's cache."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return False
    return torch.cuda.mem_get_info()[0] / 2**30 < NEAR_LIMIT_GIB


def within_memory(work: Callable[[], Any]) -> tuple[Any, str]:
    """Return the result of some work and "", or None and the message when memory ran out; the memory is freed then.

    Other errors propagate.
    """
    try:
        return work(), ""
    except Exception as error:
        said = out_of_memory(error)
        if not said:
            raise
    free_memory()  # only here: before, the exception held the frames and their objects
    return None, said


def batches_of(items: Iterable, size: int, kind: Callable[[Any], Any]) -> list[list]:
    """Return the items in order as batches of at most `size`, each of one kind.

    >>> batches_of([1, 2, 3, 5, 7], 2, kind=lambda n: n % 2)
    [[1, 3], [2], [5, 7]]
    """
    batches: list[list] = []
    for item in items:
        fitting = [b for b in batches if len(b) < size and kind(b[0]) == kind(item)]
        if fitting:
            fitting[0].append(item)
        else:
            batches.append([item])
    return batches


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect a result."""
    found = {"python": platform.python_version()}
    for name in REPORTED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


LARGE_BLOCK = 4 * 2**20
"""Bytes; a base's activations are larger, the embedded one's smaller."""


def return_large_blocks() -> None:
    """Make GNU's C library return each large block to the system as soon as it is freed; do nothing on others.

    By default it keeps blocks of up to 32 MB in its heap, between smaller ones that are still in use.
    """
    import ctypes

    with contextlib.suppress(AttributeError, OSError, TypeError):  # no such call, or no C library
        ctypes.CDLL(None).mallopt(-3, LARGE_BLOCK)  # M_MMAP_THRESHOLD


def free_memory() -> None:
    """Free the memory of dropped models: Python's garbage, the C library's free blocks, and the GPU's cache."""
    import ctypes
    import gc

    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # GNU's C library only
        ctypes.CDLL(None).malloc_trim(0)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def frees_memory(work: Callable) -> Callable:
    """Make a function free its models when it is interrupted or ends in an error that is shown to people.

    A notebook keeps the last traceback, whose frames hold all their objects: rerunning the cell would put two bases on
    the GPU. Other errors keep their frames for a debugger. If memory ran out and no inner function continued with
    less, the error shown is OutOfMemory, from what the library raised.
    """

    @functools.wraps(work)
    def wrapped(*args, **options):
        handled = sys.exception()  # by the caller; its frames are not touched
        try:
            return work(*args, **options)
        except BaseException as error:
            said = out_of_memory(error)
            if said or isinstance(error, (KeyboardInterrupt, HeadshotError)):
                _clear_frames(error, handled)
                free_memory()
            if said and not isinstance(error, OutOfMemory):
                peak = ", ".join(f"{gib:.1f} GiB of {place} memory" for place, gib in peak_memory_gib().items())
                happened = f"{work.__name__} ran out of memory; it used at most {peak}."
                raise OutOfMemory(happened, said, MORE_MEMORY) from error
            raise

    return wrapped


def _clear_frames(error: BaseException | None, end: BaseException | None) -> None:
    """Clear the frames of an error and of its causes, up to `end`, except frames that still run."""
    seen = {id(end)}
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def in_notebook() -> bool:
    """Return whether this runs in a notebook or an IPython shell, not whether their packages are imported."""
    return "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None


def progress(items: Iterable, title: str, total: int | None = None):
    """Show a progress bar over `items`: text in a terminal, a widget in a notebook, silent if not interactive.

    The bar's `postfix` (`bar.set_postfix`) shows a stage's own values next to it.
    """
    from tqdm.auto import tqdm

    quiet = not (sys.stderr.isatty() or in_notebook())
    return tqdm(items, desc=title, total=total, disable=quiet, leave=False)


def say(line: str) -> None:
    """Print a line that should be read before something slow begins.

    It goes to standard error, because standard output may hold JSON. A notebook shows that as an error, so there it
    goes to standard output, in a notebook's words.
    """
    if in_notebook():
        print(notebook_words(line), flush=True)
    else:
        print(line, file=sys.stderr, flush=True)


def tell(line: str) -> None:
    """Print a stage's own line to standard output, which the command line redirects if it prints JSON.

    In a notebook it is in a notebook's words.
    """
    print(notebook_words(line) if in_notebook() else line, flush=True)


def clock_in(minutes: float) -> str:
    """Return the time of day in `minutes` minutes, "14:05" for example."""
    return time.strftime("%H:%M", time.localtime(time.time() + 60 * minutes))


def folded(text: str, width: int = 110) -> str:
    """Return a command's lines, folded at a width, with what follows set below the text, not below its first word.

    >>> folded("check      kept 17 of 30 photos", 24)
    'check      kept 17 of 30\\n           photos'
    """
    whole = {"break_long_words": False, "break_on_hyphens": False}  # a path can be copied
    lines = (textwrap.wrap(line, width, subsequent_indent=" " * 11, **whole) for line in text.split("\n"))
    return "\n".join(part if len(part) <= width else part.strip() for parts in lines for part in parts)


def toy_words() -> str:
    """Return the most important warning about the embedded base, and how to get real headshots."""
    if "google.colab" in sys.modules:
        way = "choose Runtime, Change runtime type, T4 GPU in the menu, and run the notebook again"
    else:
        page = REPOSITORY.replace("github.com", "colab.research.google.com/github")
        way = f"use a GPU, for example Colab's free one: {page}/blob/main/notebooks/00_quickstart.ipynb"
    return f"This run uses a small test model. For real headshots, {way}"


def report() -> str:
    """Describe this machine for a notebook's first cell and for bug reports; begin with what a missing GPU means."""
    device, why = choose_device()
    dtype, dtype_why = choose_dtype(device)
    found = ", ".join(f"{name} {version}" for name, version in versions().items())
    without = f"No GPU was found. {toy_words()}\n" if device == "cpu" else ""
    return (
        f"{without}device: {device} ({why})\ndtype: {str(dtype).removeprefix('torch.')} ({dtype_why})\n"
        f"cores: {os.cpu_count()}\n{found}"
    )
