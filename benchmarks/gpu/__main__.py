"""Is the GPU path correct, and how fast is it?

Checks first, then measures; always ends within `--seconds` with one JSON line. Random weights of real shapes are made
on the device; `--model` uses a real checkpoint instead. On a CPU everything runs with tiny shapes.

    python -m benchmarks.gpu [--sections kernels,exactness,...] [--model DIRECTORY] [--device cuda] [--seconds 520]
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.decode import decode, other_shapes, recorded_or_not
from benchmarks.gpu.exactness import exactness, kernels
from benchmarks.gpu.formats import formats
from benchmarks.gpu.memory import memory
from benchmarks.gpu.shapes import build, load_checkpoint
from benchmarks.gpu.tiers import first_token, sessions, turns_recorded_or_not
from benchmarks.report import commit, device_name
from model_runtime.loading.loaded import LoadedModel

SECTIONS = ("kernels", "exactness", "decode", "recorded", "turns", "ttft", "sessions", "memory", "shapes", "formats")
_SPARE_S = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", default=",".join(SECTIONS), help=f"sections to run, from: {', '.join(SECTIONS)}")
    parser.add_argument("--model", help="a checkpoint for decode, ttft, sessions and exactness")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=520.0, help="time limit of the whole run")
    options = parser.parse_args()
    wanted = options.sections.split(",")
    if unknown := set(wanted) - set(SECTIONS):
        parser.error(f"unknown sections: {', '.join(sorted(unknown))}")
    bench = Bench(torch.device(options.device), options.seconds, is_tiny=options.device == "cpu")
    if bench.device.type == "cpu":
        torch.set_num_threads(min(2, torch.get_num_threads()))
    print(f"# {device_name(options.device)}, torch {torch.__version__}", flush=True)
    try:
        _run(bench, wanted, options.model)
    finally:
        print(json.dumps(_queue(bench, options.model)), flush=True)


def _run(bench: Bench, wanted: list[str], model: str | None) -> None:
    main_model: list[LoadedModel] = []

    def with_model(section: Callable[[Bench, LoadedModel], None]) -> Callable[[], None]:
        """The 8B model in NF4, or the given checkpoint; built once for the sections that share it."""

        def run() -> None:
            if not main_model:
                main_model.append(load_checkpoint(bench, model) if model else build(bench, "llama3_8b", "nf4"))
            section(bench, main_model[0])

        return run

    sections: dict[str, Callable[[], None]] = {
        "kernels": lambda: kernels(bench),
        "exactness": with_model(exactness) if model else lambda: exactness(bench),
        "decode": with_model(decode),
        "recorded": with_model(recorded_or_not),
        "turns": with_model(turns_recorded_or_not),
        "ttft": with_model(first_token),
        "sessions": with_model(sessions),
        "memory": lambda: memory(bench),
        "shapes": lambda: other_shapes(bench),
        "formats": lambda: formats(bench),
    }
    for name in SECTIONS:
        if name not in wanted:
            continue
        if bench.left_s < _SPARE_S:
            bench.note(f"section_{name}", "skipped: no time left")
            continue
        if name == "memory":
            main_model.clear()
        bench.clean()
        begun = time.perf_counter()
        print(f"== {name}", flush=True)
        try:
            sections[name]()
        except Exception as error:  # the other sections' figures are worth having
            traceback.print_exc()
            bench.check(f"section {name} ran through", False, f"{type(error).__name__}: {str(error)[:200]}")
        bench.figure(f"section_{name}_s", time.perf_counter() - begun)


def _queue(bench: Bench, model: str | None) -> dict[str, object]:
    failed = sorted(name for name, passed in bench.checks.items() if not passed)
    figures = {name: float(f"{value:.4g}") for name, value in bench.figures.items()}
    return {
        "benchmark": "gpu",
        "figures": {"checks_failed": len(failed), "checks_passed": len(bench.checks) - len(failed), **figures},
        "failed": failed,
        "notes": bench.notes,
        "device": device_name(str(bench.device)),
        "model": model or "random weights",
        "is_tiny": bench.is_tiny,
        "versions": {"python": platform.python_version(), **_versions()},
        "commit": commit(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "transformers", "bitsandbytes", "triton"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    found["cuda"] = str(torch.version.cuda)
    return found


if __name__ == "__main__":
    main()
