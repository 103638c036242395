"""The GPU's one command goes through all of it on a CPU, with nothing installed but what it says it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_NEEDED = ("accelerate", "gradio", "fastapi", "sqlite_utils", "sqlite3", "gguf", "psutil", "itsdangerous")
FIGURES = (
    *("checks_failed", "decode_vs_generate", "decode_vs_limit", "host_restore_vs_copy", "warm_vs_reread"),
    *("warm_ttft_ms", "host_ttft_ms", "disk_ttft_ms", "cold_ttft_ms", "sessions_turns_per_s", "fed_only_delta_share"),
    *(
        f"octocoder_{precision}_{what}_gib"
        for precision in ("bf16", "int8", "fp4", "nf4")
        for what in ("weights", "peak")
    ),
    *(
        "prompt_math_s",
        "prompt_flash_s",
        "prompt_math_peak_gib",
        "prompt_flash_peak_gib",
        "host_waits_greedy",
        "host_waits_sampled",
        "decode_tok_s_sampled",
        "warm_ttft_ms_launched",
        "warm_ttft_ms_recorded",
    ),
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    blocked = f"import sys, runpy; [sys.modules.__setitem__(name, None) for name in {NOT_NEEDED!r}]"
    command = (
        f"{blocked}; sys.argv = ['gpu', *{list(arguments)!r}]; runpy.run_module('benchmarks.gpu', run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )


def last_line(ran: subprocess.CompletedProcess[str]) -> dict[str, object]:
    line = json.loads(ran.stdout.splitlines()[-1])
    assert isinstance(line, dict)
    return line


@pytest.mark.long
def test_all_of_it_runs_on_a_cpu_with_tiny_shapes() -> None:
    ran = run("--device", "cpu")
    assert ran.returncode == 0, ran.stderr[-3000:]
    line = last_line(ran)
    figures = line["figures"]
    assert isinstance(figures, dict)
    assert line["failed"] == []
    assert figures["checks_failed"] == 0
    assert figures["checks_passed"] > 30
    assert figures["fed_only_delta_share"] == 1
    assert not [name for name in FIGURES if name not in figures]


def test_a_section_that_fails_costs_only_its_own_figures() -> None:
    ran = run("--device", "cpu", "--sections", "kernels,ttft", "--model", "/nowhere")
    line = last_line(ran)
    assert ran.returncode == 0
    assert line["failed"] == ["section ttft ran through"]
    assert line["figures"]["checks_passed"] == 1  # type: ignore[index]
