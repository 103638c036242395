"""Damaged models end in a working model or in a sentence, never in a crash: in a process of its own, the long run under
AddressSanitizer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
MOST_GROWN_BYTES = 200 << 20  # a tiny model's weights are 1 MB; what torch and ASan keep for themselves is more


def run_fuzz(seed: int, count: int, folder: Path, timeout_s: float, sanitizer: str = "") -> list[dict[str, object]]:
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    if sanitizer:
        options = "detect_leaks=0:abort_on_error=1:quarantine_size_mb=64"
        environment |= {"LD_PRELOAD": sanitizer, "ASAN_OPTIONS": options, "UBSAN_OPTIONS": "print_stacktrace=1"}
    command = [sys.executable, "-m", "tests.model_runtime.loading.loader_fuzz", str(seed), str(count), str(folder)]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, f"after {lines[-1:]}: {done.stderr[-4000:]}"
    assert "runtime error" not in done.stderr, done.stderr[-4000:]
    shutil.rmtree(folder)
    return lines


def check(lines: list[dict[str, object]], count: int) -> None:
    how = {line["case"]: line["how"] for line in lines if "how" in line}
    ended = [line for line in lines if "is" in line]
    assert len(ended) == count
    unexpected = [(how[line["case"]], line["what"]) for line in ended if line["is"] == "unexpected"]
    assert not unexpected
    slow = [(how[line["case"]], line["seconds"]) for line in ended if float(str(line["seconds"])) > 60]
    assert not slow
    assert {line["is"] for line in ended} == {"works", "refused"}, "mutations that all end alike test nothing"
    assert int(str(lines[-1]["grown_bytes"])) < MOST_GROWN_BYTES


def test_damaged_models_end_in_a_working_model_or_a_sentence(tmp_path: Path) -> None:
    """Without AddressSanitizer, which makes torch take half a minute to import: the C library's own checks remain."""
    check(run_fuzz(20, 60, tmp_path / "fuzz", 280), 60)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_thousand_damaged_models_under_address_sanitizer(tmp_path: Path) -> None:
    seed = int(os.environ.get("KEEPWARM_FUZZ_SEED", "1"))
    check(run_fuzz(seed, 1000, tmp_path / "fuzz", 3500, _asan_library()), 1000)


def _asan_library() -> str:
    """GCC's AddressSanitizer, which has to be there before Python; "" where there is none: then only what crashes
    without it is found."""
    gcc = shutil.which("gcc")
    if gcc is None:
        return ""
    found = subprocess.run([gcc, "-print-file-name=libasan.so"], capture_output=True, text=True, check=False)
    asan = found.stdout.strip()
    # Its C++ library, too: AddressSanitizer looks for what throws exceptions when it starts.
    found = subprocess.run([gcc, "-print-file-name=libstdc++.so.6"], capture_output=True, text=True, check=False)
    libraries = (asan, found.stdout.strip())
    return ":".join(libraries) if all(os.path.isabs(path) and os.path.exists(path) for path in libraries) else ""
