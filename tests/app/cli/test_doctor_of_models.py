"""`keepwarm doctor --model`: what it prints, its JSON, its exit codes, and the flags that it refuses together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.__main__ import main
from app.cli.model_report import lines_of
from model_runtime.reference.findings import IdsFinding, ModelComparison, ReadingFinding, Verdict
from tests.conftest import TinyDir


def test_a_right_model_is_well(tiny_dir: TinyDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--model", str(tiny_dir("llama")), "--quantization", "none"]) == 0
    said = capsys.readouterr().out
    for words in (
        "Keepwarm:     float32, SDPA",
        "transformers: LlamaForCausalLM, float32",
        "second turn, behind an answer:",
        "Exact: the largest gap of logits is",
    ):
        assert words in said


def test_json_is_one_object(tiny_dir: TinyDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--model", str(tiny_dir("llama")), "--quantization", "none", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "exact"
    assert all(row["agrees"] for row in (*found["ids"], *found["readings"]))
    assert {"keepwarm", "transformers", "notes", "sentence", "refusal"} <= set(found)


def test_what_is_no_model_cannot_be_examined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--model", str(tmp_path), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "refused"
    assert "it has no config.json" in found["refusal"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--no-verify", "--model", "x"], "--no-verify loads no model"),
        (["--no-verify", "--context-limit", "64"], "--no-verify loads no model"),
        (["--json"], "--json and --longest-prompt are for a model"),
        (["--longest-prompt", "512"], "--json and --longest-prompt are for a model"),
        (["--model", "x", "--json", "--data-dir", "y"], "--json is for a model alone"),
        (["--model", "x.gguf", "--quantization", "nf4"], "transformers cannot quantise a .gguf file"),
    ],
)
def test_flags_without_an_effect_together(
    flags: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.gguf").touch()
    assert main(["doctor", *flags]) == 2
    assert sentence in capsys.readouterr().err


def test_what_differs_stands_side_by_side() -> None:
    found = ModelComparison(
        "m",
        Verdict.DIFFERS,
        "Differs.",
        "float32",
        "LlamaForCausalLM",
        ids=(IdsFinding("first turn", (1, 2, 3, 4, 5, 9), (1, 2, 3, 4, 5)),),
        readings=(ReadingFinding("first turn", 5, 0.5, 0.001, "largest difference", ("a", "b"), ("a", "c")),),
        notes=("One thing.",),
    )
    lines = list(lines_of(found))
    assert "  ! first turn: differs from id 6 on" in lines
    assert "        Keepwarm:     ... 3 4 5 9 (6 ids)" in lines
    assert "        transformers: ... 3 4 5 (5 ids)" in lines
    assert "  ! first turn, behind 5 ids: 0.5 std, 0.001 allowed (largest difference)" in lines
    assert "        transformers: 'a' 'c' (differs here)" in lines
    assert lines[-2:] == ["  Note: One thing.", "Differs."]
