"""Judges 5,000 damaged, hostile and oddly named photo files; fails on a traceback, a slow file or much memory.

    python tests/benchmarks/fuzz_photos.py [--count 5000] [--batch 250] [--seed 1]

Each batch is a folder that `check_photos` judges in a process of its own. The first holds the hostile files and the
entries that are no files; the second is judged without permission to open half of its files (only root can try that).
A file's time is its process time, so that a busy machine changes nothing; a batch that hangs is killed after half an
hour.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from damaged import awkward_entries, damage, hostile_files, valid_files
from PIL import Image

from headshotkit.core import runtime
from headshotkit.core.run import Run
from headshotkit.photos import check

MAX_FILE_S, MAX_PEAK_GIB, MAX_BATCH_S = 5.0, 2.0, 1800
NOBODY = 65534


def write_batches(folder: Path, count: int, size: int, seed: int) -> list[Path]:
    """Folders of files, `count` in all, at most `size` in each."""
    rng, portrait = np.random.default_rng(seed), runtime.data_path("people", "p1", "p1_02.jpg")
    with Image.open(portrait) as image:
        valid = [valid_files(image.convert("RGB").resize((side, side))) for side in (96, 256, 640)]
    batches = [folder / f"{start:05d}" / "photos" for start in range(0, count, size)]
    for number, batch in enumerate(batches):
        batch.mkdir(parents=True)
        if number == 0:
            awkward_entries(batch)
            for name, data in hostile_files().items():
                (batch / name).write_bytes(data)
        for place in range(len(os.listdir(batch)), min(size, count - number * size)):
            how, suffix, data = damage(rng, valid[rng.integers(len(valid))])
            file = batch / f"{place:05d} {how}{suffix}"
            file.write_bytes(data)
            if number == 1 and place % 2:
                file.chmod(0)
    return batches


def judge_batch(batch: Path, as_nobody: bool) -> None:
    """Judges one folder and prints what happened as JSON. Runs in a process of its own."""
    times: list[float] = []

    def timed(items, label):
        for item in items:
            started = time.process_time()
            yield item
            times.append(time.process_time() - started)

    if as_nobody:  # models and modules are loaded first, for nobody may not be allowed to read them
        warm = Path(tempfile.mkdtemp()) / "run"
        check.check_photos(runtime.sample_person(), Run(warm))
        batch.parent.chmod(0o777)
        os.seteuid(NOBODY)
    runtime.progress, started = timed, time.process_time()
    verdicts = check.check_photos(batch, Run(batch.parent / "run"))
    slowest = int(np.argmax(times))
    report = {
        "verdicts": len(verdicts),
        "codes": Counter(v.reasons[0].code if v.reasons else "kept" for v in verdicts),
        "slowest_s": times[slowest],
        "slowest": verdicts[slowest].photo,
        "seconds": time.process_time() - started,
        "peak_gib": runtime.peak_memory_gib()["host"],
    }
    print(json.dumps(report))


def run_batch(batch: Path, as_nobody: bool) -> dict:
    """A batch's report, or {"failed": the end of what it said}."""
    command = [sys.executable, __file__, "--judge", str(batch), *(["--as-nobody"] if as_nobody else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MAX_BATCH_S)
    except subprocess.TimeoutExpired:
        return {"failed": f"no end after {MAX_BATCH_S} s"}
    if done.returncode:
        return {"failed": f"exit code {done.returncode}\n{done.stderr[-2000:]}"}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--judge", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--as-nobody", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.judge:
        judge_batch(given.judge, given.as_nobody)
        return 0
    codes: Counter = Counter()
    wrong, slowest, peak_gib, seconds = [], (0.0, ""), 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        for number, batch in enumerate(write_batches(Path(folder), given.count, given.batch, given.seed)):
            files = len(os.listdir(batch))
            report = run_batch(batch, as_nobody=number == 1 and os.geteuid() == 0)
            if "failed" in report or report["verdicts"] != files:
                said = report.get("failed", f"{report.get('verdicts')} verdicts on {files} files")
                wrong.append(f"batch {number}: {said}")
                print(wrong[-1], flush=True)
                continue
            codes.update(report["codes"])
            slowest = max(slowest, (report["slowest_s"], report["slowest"]))
            peak_gib, seconds = max(peak_gib, report["peak_gib"]), seconds + report["seconds"]
            print(f"batch {number}: {files} files, {report['seconds']:.0f} s, slowest {report['slowest_s']:.2f} s "
                  f"({report['slowest']}), peak {report['peak_gib']:.2f} GiB", flush=True)  # fmt: skip
    print(f"\n{codes.total()} verdicts: " + ", ".join(f"{n} {code}" for code, n in codes.most_common()))
    print(
        f"slowest file {slowest[0]:.2f} s of process time ({slowest[1]}), all {seconds:.0f} s; peak {peak_gib:.2f} GiB"
    )
    wrong += [f"a file took {slowest[0]:.1f} s"] * (slowest[0] > MAX_FILE_S)
    wrong += [f"the peak was {peak_gib:.1f} GiB"] * (peak_gib > MAX_PEAK_GIB)
    print("failed: " + "; ".join(wrong) if wrong else "passed")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
