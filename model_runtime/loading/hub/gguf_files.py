"""Chooses a GGUF model among a repository's files by what its name says of its bits: `org/name:Q4_K_M`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checks.gguf_parts import model_name, part_of
from model_runtime.loading.progress import size_text

_CHOICE = re.compile(r"(?P<id>[^/:]+/[^/:]+):(?P<choice>[\w.-]{1,120})")
_OTHERS = ("mmproj", "imatrix")  # a projector for pictures, a table that quantising needs
_MOST_LISTED = 20


@dataclass(frozen=True, slots=True)
class GgufFiles:
    """One model of a repository: its files in order, as paths within it, and their size together."""

    paths: tuple[str, ...]
    size_bytes: int

    @property
    def name(self) -> str:
        """The model's name, without the number of a part."""
        return model_name(PurePosixPath(self.paths[0]))


def split_choice(name: str) -> tuple[str, str | None]:
    """("org/name", "Q4_K_M") of "org/name:Q4_K_M"; (name, None) without a choice."""
    match = _CHOICE.fullmatch(name)
    return (match["id"], match["choice"]) if match else (name, None)


def gguf_models(files: Mapping[str, int]) -> list[GgufFiles]:
    """The GGUF models among a repository's files, which are paths with sizes in bytes."""
    models: dict[tuple[str, str], list[str]] = {}
    for path in sorted(files):
        pure = PurePosixPath(path)
        if pure.suffix.lower() == ".gguf" and not any(other in pure.name.lower() for other in _OTHERS):
            models.setdefault((str(pure.parent), model_name(pure)), []).append(path)
    found = (GgufFiles(tuple(paths), sum(files[path] for path in paths)) for paths in models.values())
    return sorted(found, key=lambda model: model.name)


def chosen_gguf(model_id: str, choice: str | None, files: Mapping[str, int]) -> GgufFiles:
    """The model of the repository that `choice` means: the end of its name, or all of it; the only one without a
    choice. Raises `ModelLoadError`, which lists what is there, if none or several fit, or if parts are missing."""
    models = gguf_models(files)
    if not models:
        raise ModelLoadError(f"{model_id} has no GGUF files: name it without ':{choice}'.")
    fitting = [model for model in models if choice is None or _means(choice, model)]
    if len(fitting) > 1 and choice is not None:
        fitting = [model for model in fitting if choice.lower() in _names(model)] or fitting
    if len(fitting) != 1:
        raise ModelLoadError(_refusal(model_id, choice, fitting, models))
    _refuse_missing_parts(model_id, fitting[0])
    return fitting[0]


def _names(model: GgufFiles) -> tuple[str, ...]:
    return model.name.lower(), PurePosixPath(model.paths[0]).name.lower()


def _means(choice: str, model: GgufFiles) -> bool:
    wanted = choice.lower()
    return wanted in _names(model) or re.search(rf"[-.]{re.escape(wanted)}$", model.name.lower()) is not None


def _refusal(model_id: str, choice: str | None, fitting: list[GgufFiles], models: list[GgufFiles]) -> str:
    if fitting and choice is not None:
        problem, shown = f"has several GGUF files whose names end with {choice}", fitting
    elif choice is None:
        problem, shown = "has several GGUF files", models
    else:
        problem, shown = f"has no GGUF file whose name ends with {choice}", models
    listed = ", ".join(f"{model.name} ({size_text(model.size_bytes)})" for model in shown[:_MOST_LISTED])
    more = f" and {len(shown) - _MOST_LISTED} more" if len(shown) > _MOST_LISTED else ""
    example = shown[0].name
    return (
        f"{model_id} {problem}. Choose one by the end of its name, or all of it ({model_id}:{example}): {listed}{more}."
    )


def _refuse_missing_parts(model_id: str, model: GgufFiles) -> None:
    found = [part_of(PurePosixPath(path)) for path in model.paths]
    counts = {count for _, count in found}
    if len(counts) > 1 or {number for number, _ in found} != set(range(1, max(counts) + 1)):
        raise ModelLoadError(
            f"{model_id} has {len(found)} parts of {model.name}, and its files say that there are {max(counts)}. "
            "Choose another file, or another repository."
        )
