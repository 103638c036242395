"""Gradio, imported without its type stubs.

At every import Gradio writes a stub (`.pyi`) for each of its components into its own folder. That takes a third of the
import's time, serves editors only, and a server should write nothing there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class _WithoutStubs(MetaPathFinder):
    """Replaces the function that writes them as soon as its module is loaded, which is before its first call."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname == "gradio.component_meta" else None
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_replace(module: ModuleType) -> None:
                load(module)
                module.__dict__["create_or_modify_pyi"] = lambda *_, **__: None

            spec.loader.exec_module = load_and_replace  # type: ignore[method-assign]
        return spec


_finder = _WithoutStubs()
sys.meta_path.insert(0, _finder)
try:
    import gradio
finally:
    sys.meta_path.remove(_finder)

__all__ = ["gradio"]
