"""The kernel is chosen by measuring, once for each machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from model_runtime.native.native_library import NativeUnavailable, native_library
from model_runtime.weights import kernel_choice as module
from model_runtime.weights.kernel_choice import PLAN_FILE, kernel_plan
from model_runtime.weights.linear_int4 import KernelPlan


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's ways are measured only where our own kernels cannot be compiled."""

    def refuse(*arguments: object) -> None:
        raise NativeUnavailable("there is no C compiler")

    monkeypatch.setattr(module, "native_library", refuse)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts measurements and gives a fixed answer."""
    calls: list[int] = []

    def measure() -> tuple[KernelPlan, str]:
        calls.append(1)
        return KernelPlan(True, 77, torch.bfloat16), "Measured."

    monkeypatch.setattr(module, "measure", measure)
    return calls


def test_the_answer_is_remembered(measured: list[int], tmp_path: Path) -> None:
    first = kernel_plan(tmp_path, print)
    why = " Our own, faster kernels cannot run here: there is no C compiler."
    assert kernel_plan(tmp_path, print) == first == (KernelPlan(True, 77, torch.bfloat16), f"Measured.{why}")
    assert len(measured) == 1


def test_with_a_compiler_our_own_kernels_run_unmeasured(
    measured: list[int], embedded_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "native_library", native_library)
    plan, sentence = kernel_plan(embedded_cache, print)
    assert plan.kernels is not None
    assert sentence.startswith("Our own kernels run the weights at the bits they were shipped with")
    assert measured == []


def test_each_machine_has_its_own_answer(measured: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for threads in (2, 64, 2, 64):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        kernel_plan(tmp_path, print)
    assert len(measured) == 2
    assert len(json.loads((tmp_path / PLAN_FILE).read_text())) == 2


def test_a_damaged_answer_is_measured_again(measured: list[int], tmp_path: Path) -> None:
    kernel_plan(tmp_path, print)
    saved = json.loads((tmp_path / PLAN_FILE).read_text())
    for damage in (None, {}, {"packed": True, "crossover_rows": "many"}):
        (tmp_path / PLAN_FILE).write_text(json.dumps(dict.fromkeys(saved, damage)))
        assert kernel_plan(tmp_path, print)[0].crossover_rows == 77
    assert len(measured) == 4


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 1}', "null"])
def test_a_damaged_memory_costs_a_measurement(measured: list[int], tmp_path: Path, content: str) -> None:
    (tmp_path / PLAN_FILE).write_text(content)
    assert kernel_plan(tmp_path, print)[0].crossover_rows == 77
    assert len(measured) == 1


def test_a_cache_that_cannot_be_written_costs_a_measurement(measured: list[int], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert kernel_plan(tmp_path / "file", print)[0].packed
    assert len(measured) == 1


def test_measuring_gives_a_plan_and_a_sentence(torch_threads: int) -> None:
    plan, sentence = module.measure()
    assert plan.gemm_dtype in (torch.float32, torch.bfloat16)
    assert plan.crossover_rows >= (1 if plan.packed else 0)
    assert sentence.endswith(".")


def test_without_the_packed_kernel_the_plan_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "packed_kernel_exists", lambda: False)
    plan, sentence = module.measure()
    assert not plan.packed
    assert "has no packed 4-bit kernel" in sentence


def test_a_packed_kernel_that_is_slower_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_times_ms", lambda first, second: (9.0, 3.0))
    plan, sentence = module.measure()
    assert not plan.packed
    assert "slower on this processor (9.0 ms against 3.0 ms)" in sentence
