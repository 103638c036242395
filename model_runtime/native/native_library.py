"""The CPU kernels of `native/`, compiled for this processor at first start.

A C compiler is optional. Compiling takes a few seconds, once per processor, compiler and version of the sources; the
library is kept in the cache directory. Without a compiler torch's own kernels run, and a start-up line says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path

_INTEGER_HEADERS = ("amx", "activations", "dots", "integer_codes", "amx_matrix", "integer_matrix")
_HEADERS = ("vectors", "scales", "codes", "matrix", *_INTEGER_HEADERS, "keys", "attention", "phases")
_SOURCES = (*(f"{name}.h" for name in _HEADERS), "step.c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-ffp-contract=fast", "-fopenmp", "-fPIC", "-shared", "-Wno-psabi")
_COMPILE_TIMEOUT_S = 120
Say = Callable[[str], None]
_pointer, _int = ctypes.c_void_p, ctypes.c_int


class NativeUnavailable(Exception):
    """The library cannot be built or loaded here. The message says why, as a clause."""


class MatrixStruct(ctypes.Structure):
    """`Matrix` of scales.h."""

    _fields_ = (
        *((name, _pointer) for name in ("codes", "high", "scale", "minimum", "zero", "super_scale", "super_minimum")),
        *((name, _pointer) for name in ("levels", "level_bytes", "nested", "bias", "order")),
        ("offset", ctypes.c_float),
        ("unit", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("kind", "scales", "shift", "rows", "columns", "takes_bytes")),
    )


class LayerStruct(ctypes.Structure):
    """`Layer` of step.c."""

    _fields_ = (
        *((name, MatrixStruct) for name in ("query", "key", "value", "output", "gate", "up", "down")),
        *((name, _pointer) for name in ("input_norm", "attention_norm", "after_attention_norm", "after_mlp_norm")),
        *((name, _pointer) for name in ("query_norm", "key_norm")),
        *((name, ctypes.c_int32) for name in ("has_window", "rope")),
    )


class ModelStruct(ctypes.Structure):
    """`Model` of step.c."""

    _fields_ = (
        ("layers", ctypes.POINTER(LayerStruct)),
        ("final_norm", _pointer),
        ("head", MatrixStruct),
        ("norm_epsilon", ctypes.c_float),
        ("score_scale", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("layer_count", "hidden", "heads", "kv_heads", "dim", "intermediate")),
        *((name, ctypes.c_int32) for name in ("vocabulary", "window", "ropes", "has_gelu")),
    )


class SpanStruct(ctypes.Structure):
    """`Span` of step.c."""

    _fields_ = (
        ("keys", ctypes.POINTER(_pointer)),
        ("values", ctypes.POINTER(_pointer)),
        ("capacity", ctypes.c_int64),
        ("start", ctypes.c_int32),
        ("tokens", ctypes.c_int32),
        ("past", ctypes.c_int32),
        ("is_half", ctypes.c_int32),
    )


_MODEL, _MATRIX, _SPANS = ctypes.POINTER(ModelStruct), ctypes.POINTER(MatrixStruct), ctypes.POINTER(SpanStruct)
_SIGNATURES = {
    "keepwarm_lanes": (),
    "keepwarm_has_byte_products": (),
    "keepwarm_step": (
        *(_MODEL, _int, _int, _SPANS, _int, _int, _pointer, _pointer, _pointer),
        *(ctypes.POINTER(ctypes.c_int32), _int, _pointer, _int),
    ),
    "keepwarm_to_halves": (_pointer, _pointer, _int),
    "keepwarm_multiply": (_MATRIX, _int, _pointer, _pointer, _int),
    "keepwarm_rows": (_MATRIX, _int, _pointer, _pointer, _int),
}


def native_library(cache_dir: Path, say: Say, flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The library for this processor, compiled if necessary. `flags` follow our own compiler flags.

    A call releases the GIL. Raises `NativeUnavailable`.
    """
    compiler = _compiler()
    path = cache_dir / "native" / f"keepwarm-{_build_name(compiler, flags)}.so"
    if path.exists():
        with contextlib.suppress(NativeUnavailable):  # a damaged library is compiled again
            return _load(path)
    say("Compiling the CPU kernels for this processor (once, a few seconds).")
    _build(compiler, flags, path)
    return _load(path)


def _compiler() -> str:
    for name in (os.environ.get("CC", ""), "gcc", "cc"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise NativeUnavailable("there is no C compiler")


def _build(compiler: str, flags: tuple[str, ...], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            for name in _SOURCES:
                (Path(folder) / name).write_bytes(_source(name))
            fresh = Path(folder) / path.name
            command = [compiler, *FLAGS, *flags, "-o", str(fresh), str(Path(folder) / "step.c"), "-lm"]
            built = subprocess.run(  # noqa: S603 - the compiler found above, our own sources, no shell
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_COMPILE_TIMEOUT_S,
                check=False,
                env=os.environ | {"TMPDIR": folder},  # the system's own may be full or missing
            )
            if built.returncode != 0:
                line = next((line for line in built.stderr.splitlines() if "error" in line), "no reason given")
                raise NativeUnavailable(f"{Path(compiler).name} failed: {line.strip()[:200]}")
            os.replace(fresh, path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailable(f"they could not be compiled ({error})") from error


@cache
def _load(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
        for name, arguments in _SIGNATURES.items():
            getattr(library, name).argtypes = arguments
    except (OSError, AttributeError) as error:
        raise NativeUnavailable(f"they could not be loaded ({error})") from error
    return library


def _build_name(compiler: str, flags: tuple[str, ...]) -> str:
    """A name that changes with the sources, the flags, the compiler and the processor's features."""
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update(_source(name))
    stat = Path(compiler).resolve().stat()
    digest.update(repr((*FLAGS, *flags, compiler, stat.st_size, stat.st_mtime_ns, platform.machine())).encode())
    digest.update(_processor().encode())
    return digest.hexdigest()[:16]


def _source(name: str) -> bytes:
    return resources.files("model_runtime.native").joinpath(name).read_bytes()


def _processor() -> str:
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        wanted = ("model name", "flags", "Features", "CPU part")
        return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
    return platform.processor()
