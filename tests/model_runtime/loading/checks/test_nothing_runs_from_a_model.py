"""No call that reads a model leaves open whether its own code, or a pickle, may run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("model_runtime", "sessions", "app")
ROOT = Path(__file__).resolve().parents[4]
LOADERS = ("from_pretrained", "from_config")


def loading_calls() -> Iterator[tuple[str, ast.Call, str]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOADERS:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node, ast.unparse(node.func)


def test_every_call_says_that_no_code_of_the_model_runs() -> None:
    calls = list(loading_calls())
    assert len(calls) >= 8
    for where, call, name in calls:
        if name.startswith("GenerationConfig."):
            continue  # only numbers and words; it would keep the argument as a setting
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert said.get("trust_remote_code") == "False", where
        if name.startswith("AutoModel") and name.endswith("from_pretrained"):
            assert said.get("use_safetensors") == "True", where


def test_nothing_else_reads_pickles() -> None:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            assert not any(word in text for word in ("torch.load(", "import pickle", "joblib", "eval(compile")), path
