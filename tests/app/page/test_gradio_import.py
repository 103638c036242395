"""Gradio writes nothing into the folder of its components."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

import app.page.mount  # noqa: F401 - as the server imports it
from app.page.gradio_import import gradio

COMPONENT = "import gradio\n\n\nclass Own(gradio.Textbox):\n    EVENTS = []\n"


def test_a_component_gets_no_stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_component.py").write_text(COMPONENT, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("own_component")
    monkeypatch.delitem(sys.modules, "own_component")
    create = importlib.import_module("gradio.component_meta").create_or_modify_pyi
    create(gradio.Textbox, class_name="Textbox", events=[])  # by keywords too
    assert not (tmp_path / "own_component.pyi").exists()
