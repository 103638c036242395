"""Compiles CUDA C++ for this GPU with NVRTC, which is part of every CUDA build of torch."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch

# Of cuda.h: CU_LAUNCH_ATTRIBUTE_..., CU_FUNC_ATTRIBUTE_...
_PROGRAMMATIC_STREAM_SERIALIZATION, _MAX_DYNAMIC_SHARED_SIZE_BYTES = 6, 8


class NvrtcUnavailable(Exception):
    """Kernels cannot be compiled or loaded here. The message says why, as a clause."""


class CudaModule:
    """The kernels of one source file in cuda/, compiled after common.cuh with the given macros and loaded on one
    device. Raises `NvrtcUnavailable`."""

    def __init__(self, name: str, device: torch.device, macros: Mapping[str, int]) -> None:
        major, minor = torch.cuda.get_device_capability(device)
        folder = resources.files("model_runtime.forward.few_rows").joinpath("cuda")
        source = b"".join(folder.joinpath(part).read_bytes() for part in ("common.cuh", name))
        cubin = _compiled(source, f"sm_{major}{minor}", macros)
        overlaps = [_Attribute(_PROGRAMMATIC_STREAM_SERIALIZATION, 0, 1)] if major >= 9 else []
        self._attributes = (_Attribute * len(overlaps))(*overlaps)
        try:
            self._driver = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise NvrtcUnavailable(f"there is no CUDA driver ({error})") from error
        self._module = ctypes.c_void_p()
        with torch.cuda.device(device):  # the driver uses the thread's current one
            torch.cuda.current_stream(device).synchronize()
            _check(self._driver.cuModuleLoadData(ctypes.byref(self._module), cubin), "loading")

    def kernel(self, name: str, threads: int, shared_bytes: int = 0) -> CudaKernel:
        """An `extern "C"` kernel, to be launched with `threads` threads per block and `shared_bytes` of dynamic shared
        memory. Raises `NvrtcUnavailable` if there is no such kernel or not enough memory."""
        function = ctypes.c_void_p()
        _check(self._driver.cuModuleGetFunction(ctypes.byref(function), self._module, name.encode()), name)
        _check(self._driver.cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes), name)
        return CudaKernel(self._driver, function, threads, shared_bytes, self._attributes)


@dataclass(frozen=True, slots=True)
class CudaKernel:
    """A kernel that takes one structure as its only argument."""

    driver: ctypes.CDLL
    function: ctypes.c_void_p
    threads: int
    shared_bytes: int
    attributes: ctypes.Array[_Attribute]

    def launch(self, blocks: tuple[int, int], argument: ctypes.Structure, stream: int) -> None:
        """Launches the kernel on a stream of its device, which must be the current one. From Hopper on it may start
        before the previous kernel has ended (`griddepcontrol` in the source marks where it waits). Raises
        `RuntimeError`."""
        launch = _Launch(
            *(*blocks, 1, self.threads, 1, 1, self.shared_bytes, stream, self.attributes, len(self.attributes))
        )
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
        code = self.driver.cuLaunchKernelEx(ctypes.byref(launch), self.function, arguments, None)
        if code:
            raise RuntimeError(f"a kernel was not launched: the CUDA driver answered {code}")


class _Attribute(ctypes.Structure):
    """`CUlaunchAttribute` of cuda.h."""

    _fields_ = (("id", ctypes.c_int), ("padding", ctypes.c_int), ("value", ctypes.c_int), ("rest", ctypes.c_int * 15))


class _Launch(ctypes.Structure):
    """`CUlaunchConfig` of cuda.h."""

    _fields_ = (
        *((f"{what}_{axis}", ctypes.c_uint) for what in ("grid", "block") for axis in "xyz"),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("attribute_count", ctypes.c_uint),
    )


def _compiled(source: bytes, architecture: str, macros: Mapping[str, int]) -> bytes:
    nvrtc = _library()
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"keepwarm.cu", 0, None, None), "NVRTC")
    texts = [f"--gpu-architecture={architecture}", "--std=c++17"]
    texts += [f"-D{name}={value}" for name, value in macros.items()]
    options = (ctypes.c_char_p * len(texts))(*(text.encode() for text in texts))
    try:
        if nvrtc.nvrtcCompileProgram(program, len(options), options):
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            raise NvrtcUnavailable(f"they could not be compiled ({log.value.decode(errors='replace')[:200].strip()})")
        _check(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)), "NVRTC")
        cubin = ctypes.create_string_buffer(size.value)
        _check(nvrtc.nvrtcGetCUBIN(program, cubin), "NVRTC")
        return cubin.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _library() -> ctypes.CDLL:
    name = f"libnvrtc.so.{str(torch.version.cuda).split('.')[0]}"
    beside = [path for folder in sys.path for path in sorted(Path(folder).glob(f"nvidia/*/lib/{name}"))]
    for path in (name, *map(str, beside)):
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    raise NvrtcUnavailable(f"there is no {name}")


def _check(code: int, what: str) -> None:
    if code:
        raise NvrtcUnavailable(f"{what} failed with code {code}")
