"""CUDA C++ compiled for the GPU at hand by NVRTC, which every CUDA build of torch brings along."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import torch


class NvrtcUnavailable(Exception):
    """Nothing can be compiled or loaded here; the text says why, as a clause."""


class CudaModule:
    """The kernels of one source, loaded on one device. Raises `NvrtcUnavailable`."""

    def __init__(self, source: bytes, device: torch.device) -> None:
        self._device = device
        major, minor = torch.cuda.get_device_capability(device)
        cubin = _compiled(source, f"sm_{major}{minor}")
        try:
            self._driver = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise NvrtcUnavailable(f"there is no CUDA driver ({error})") from error
        self._module = ctypes.c_void_p()
        with torch.cuda.device(device):  # the driver uses the thread's current one
            torch.cuda.current_stream(device).synchronize()
            _check(self._driver.cuModuleLoadData(ctypes.byref(self._module), cubin), "loading")

    def function(self, name: str) -> ctypes.c_void_p:
        """An `extern "C"` kernel."""
        found = ctypes.c_void_p()
        _check(self._driver.cuModuleGetFunction(ctypes.byref(found), self._module, name.encode()), name)
        return found

    def launch(self, function: ctypes.c_void_p, blocks: int, threads: int, argument: ctypes.Structure) -> None:
        """Starts it on torch's current stream, with one structure as its only argument. Raises `RuntimeError`."""
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
        with torch.cuda.device(self._device):
            stream = ctypes.c_void_p(torch.cuda.current_stream(self._device).cuda_stream)
            code = self._driver.cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, 0, stream, arguments, None)
        if code:
            raise RuntimeError(f"a kernel was not launched: the CUDA driver answered {code}")


def _compiled(source: bytes, architecture: str) -> bytes:
    nvrtc = _library()
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"keepwarm.cu", 0, None, None), "NVRTC")
    options = (ctypes.c_char_p * 2)(f"--gpu-architecture={architecture}".encode(), b"--std=c++17")
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
