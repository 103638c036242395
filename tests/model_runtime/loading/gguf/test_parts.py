"""A model in several GGUF files: loaded from any of its parts, or refused with what is missing or mixed up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import PreTrainedModel

from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checks.gguf_parts import gguf_files, read_gguf_files
from model_runtime.loading.fingerprint import gguf_key
from model_runtime.loading.gguf.conversion import convert_gguf
from tests.model_runtime.loading.gguf.cases import CASES
from tests.model_runtime.loading.gguf.test_families import Load, logits_of
from tests.model_runtime.tiny_gguf import Value, write_file

_CASE = CASES["llama heads"]
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return _CASE.model()


def write_parts(
    directory: Path,
    model: PreTrainedModel,
    cuts: tuple[int, ...],
    changes: Mapping[int, Mapping[str, Value]] | None = None,
    name: str = "model",
) -> list[Path]:
    """The model in several files, the way llama.cpp's gguf-split does: `cuts` are the tensors of each but the last.
    `changes` replace what a part says."""
    tensors = list(_CASE.all_tensors(model).items())
    starts = [0, *np.cumsum(cuts).tolist(), len(tensors)]
    count = len(starts) - 1
    paths = []
    for part in range(count):
        keys: dict[str, Value] = dict(_CASE.all_keys(model)) if part == 0 else {}
        keys |= {"split.no": part, "split.count": count, "split.tensors.count": len(tensors)}
        keys |= (changes or {}).get(part, {})
        path = directory / f"{name}-{part + 1:05d}-of-{count:05d}.gguf"
        some = dict(tensors[starts[part] : starts[part + 1]])
        paths.append(write_file(path, "llama", keys, some, GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q8_0))
    return paths


def test_any_part_loads_the_whole_model(model: PreTrainedModel, tmp_path: Path, load: Load) -> None:
    whole = write_file(
        *(tmp_path / "whole.gguf", "llama", _CASE.all_keys(model), _CASE.all_tensors(model)),
        *(GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q8_0),
    )
    expected = logits_of(load(whole, "shipped").model)
    parts = write_parts(tmp_path, model, (4, 7))
    assert len({gguf_key(part) for part in parts}) == 1
    for part in (parts[0], parts[2]):
        loaded = load(part, "shipped")
        assert loaded.name == "model"
        assert torch.equal(logits_of(loaded.model), expected)
    parts[1].touch()
    assert gguf_key(parts[0]) != gguf_key(whole)


def test_a_first_part_may_have_no_tensors(model: PreTrainedModel, tmp_path: Path, load: Load) -> None:
    parts = write_parts(tmp_path, model, (0, 9))
    assert torch.isfinite(logits_of(load(parts[0], "shipped").model)).all()


def test_a_directory_says_which_file_to_name(model: PreTrainedModel, tmp_path: Path, load: Load) -> None:
    (tmp_path / "folder").mkdir()
    write_parts(tmp_path / "folder", model, (4,))
    with pytest.raises(ModelLoadError, match=r"It contains model-00001-of-00002\.gguf: name that file\."):
        load(tmp_path / "folder", "shipped")


def _missing(paths: list[Path]) -> None:
    paths[1].unlink()


def _of_another_count(paths: list[Path]) -> None:
    paths[1].replace(paths[1].with_name("model-00002-of-00004.gguf"))


def _swapped(paths: list[Path]) -> None:
    kept = paths[1].read_bytes()
    paths[1].write_bytes(paths[2].read_bytes())
    paths[2].write_bytes(kept)


def _twice(paths: list[Path]) -> None:
    paths[2].write_bytes(paths[1].read_bytes())


def _cut_off(paths: list[Path]) -> None:
    paths[2].write_bytes(paths[2].read_bytes()[:-40_000])


DAMAGES: dict[str, tuple[Callable[[list[Path]], None], str]] = {
    "missing": (_missing, r"one part of 3 of a model, and 1 of them .* missing .*: model-00002-of-00003\.gguf"),
    "another count": (_of_another_count, r"missing .*: model-00002-of-00003\.gguf"),
    "swapped": (_swapped, "it says that it is part 3 of 3"),
    "twice": (_twice, "it says that it is part 2 of 3"),
    "cut off": (_cut_off, "model-00003-of-00003.gguf is not a GGUF file, or is incomplete"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_parts_that_are_not_all_there_are_refused(
    damage: str, model: PreTrainedModel, tmp_path: Path, load: Load
) -> None:
    paths = write_parts(tmp_path, model, (4, 7))
    change, sentence = DAMAGES[damage]
    change(paths)
    with pytest.raises(ModelLoadError, match=sentence):
        load(paths[0], "shipped")


MIXED: dict[str, tuple[dict[int, dict[str, Value]], str]] = {
    "another model's count": ({1: {"split.tensors.count": 99}}, "says that all parts have 99 tensors, the first one"),
    "too few tensors": ({part: {"split.tensors.count": 99} for part in range(3)}, "have 99 tensors, and they have"),
    "another setting": ({1: {"llama.rope.freq_base": 7.0}}, "its entry llama.rope.freq_base is not that of the first"),
    "an unknown entry": ({2: {"general.name": "other"}}, "its entry general.name is not that of the first part"),
}


@pytest.mark.parametrize("case", MIXED)
def test_parts_of_different_models_are_refused(case: str, model: PreTrainedModel, tmp_path: Path) -> None:
    changes, sentence = MIXED[case]
    paths = write_parts(tmp_path, model, (4, 7), changes)
    with pytest.raises(ModelLoadError, match=sentence):
        convert_gguf(paths[1], tmp_path / "out")


def test_a_tensor_in_two_parts_is_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    paths = write_parts(tmp_path, model, (4, 7))
    data = paths[2].read_bytes()
    names = [list(_CASE.all_tensors(model))[place] for place in (5, 12)]
    same = next(n for n in read_gguf_files(gguf_files(paths[0])).tensors if len(n) == len(names[1]) and n != names[1])
    paths[2].write_bytes(data.replace(names[1].encode(), same.encode()))
    with pytest.raises(
        ModelLoadError, match=f"its tensor {same} is also in another part|its tensor '{same}' occurs twice"
    ):
        convert_gguf(paths[0], tmp_path / "out")


def test_a_part_that_lost_its_name_is_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    path = write_parts(tmp_path, model, (4, 7))[0].replace(tmp_path / "renamed.gguf")
    with pytest.raises(ModelLoadError, match=r"renamed\.gguf is one part of 3 of a model, but its name does not say"):
        convert_gguf(path, tmp_path / "out")


def test_a_whole_file_with_the_name_of_a_part_says_so(model: PreTrainedModel, tmp_path: Path) -> None:
    keys, tensors = _CASE.all_keys(model), _CASE.all_tensors(model)
    for part in (1, 2):
        write_file(tmp_path / f"m-0000{part}-of-00002.gguf", "llama", keys, tensors)
    with pytest.raises(ModelLoadError, match="is named like one part of 2 of a model, but does not say so itself"):
        convert_gguf(tmp_path / "m-00001-of-00002.gguf", tmp_path / "out")
    only = write_file(tmp_path / "m-00001-of-00001.gguf", "llama", keys, tensors)
    assert gguf_files(only) == (only,)
    (tmp_path / "out").mkdir()
    convert_gguf(only, tmp_path / "out")
