"""cuda/coded.cu compiled by the system's C++ compiler, with the launches of `CudaCodedOperations`."""

from __future__ import annotations

import ctypes
import subprocess
from importlib import resources
from pathlib import Path

import torch

from model_runtime.forward.few_rows.coded.operations import Coded, CudaCodedOperations, macros_of
from model_runtime.forward.few_rows.coded.planes import CodedPlanes, Form

_AFTER = """
static void run_lane() { kernel(*argument); is_done[now] = true; }
LAUNCHED(multiply_1)
LAUNCHED(multiply_8)
LAUNCHED(dequantise)
"""


class OnACpu(CudaCodedOperations):
    """The same kernels, launched with the same arguments, on the CPU. `folder` keeps the compiled libraries."""

    def __init__(self, folder: Path) -> None:
        super().__init__(torch.device("cpu"))
        self._folder, self._libraries = folder, dict[tuple[Form, torch.dtype], ctypes.CDLL]()

    def _launch(
        self, name: str, planes: CodedPlanes, dtype: torch.dtype, blocks: tuple[int, int], argument: Coded
    ) -> None:
        key = (planes.form, dtype)
        if key not in self._libraries:
            self._libraries[key] = self._compiled(*key)
        launch = getattr(self._libraries[key], f"launch_{name}")
        launch(ctypes.byref(argument), *(ctypes.c_int(number) for number in (*blocks, 128)))

    def _compiled(self, form: Form, dtype: torch.dtype) -> ctypes.CDLL:
        macros = macros_of(form, dtype)
        name = "-".join(map(str, macros.values()))
        source, library = self._folder / f"{name}.cpp", self._folder / f"{name}.so"
        if not library.exists():
            kernels = resources.files("model_runtime.forward.few_rows").joinpath("cuda", "coded.cu").read_text()
            source.write_text(Path(__file__).with_name("cuda_on_a_cpu.h").read_text() + kernels + _AFTER)
            options = [f"-D{macro}={value}" for macro, value in macros.items()]
            command = ["c++", "-std=c++17", "-O1", "-w", "-ffp-contract=off", "-shared", "-fPIC", *options]
            subprocess.run([*command, str(source), "-o", str(library)], check=True)
        return ctypes.CDLL(str(library))
