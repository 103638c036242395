"""Checks a checkpoint's tokenizer: whether its files can be read, and whether the model has an embedding for every
token that it can produce."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from model_runtime.interface.errors import ModelLoadError
from model_runtime.text.plain_text import control_contents, exact_copy

WHOLE = "tokenizer.json"
MOST_BYTES = 256 << 20
_OBJECTS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
_MUST_BE: dict[str, type | tuple[type, ...]] = {  # in tokenizer_config.json, where it is given and not null
    "tokenizer_class": str,
    "chat_template": (str, list),
    "added_tokens_decoder": dict,
    "additional_special_tokens": (list, dict),
    "extra_special_tokens": (list, dict),
    "bos_token": (str, dict),
    "eos_token": (str, dict),
    "unk_token": (str, dict),
    "pad_token": (str, dict),
    "model_max_length": (int, float),
}


def check_tokenizer_files(directory: Path) -> None:
    """Raises `ModelLoadError` that names the damaged file."""
    for name in _OBJECTS:
        if (directory / name).exists():
            _check_object(directory, name)
    if (directory / WHOLE).exists():
        if not isinstance(_object_in(directory, WHOLE).get("added_tokens"), list):
            raise _damaged(directory, f"{WHOLE} is damaged: it has no list of added tokens")
        _check_whole(directory)
    elif (merges := directory / "merges.txt").exists():
        _check_merges(directory, merges)


def damaged_tokenizer(directory: Path) -> ModelLoadError:
    """For what the libraries refuse although each file alone can be read."""
    names = [name for name in (WHOLE, *_OBJECTS, "merges.txt", "tokenizer.model") if (directory / name).exists()]
    files = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)
    return _damaged(directory, f"its tokenizer cannot be built from {files or 'its files'}: one of them is damaged")


def check_producible(tokenizer: PreTrainedTokenizerFast, embeddings: int, name: str) -> None:
    """Raises `ModelLoadError` if text, or the chat template, can become a token that has no embedding. A model called
    with it would fail, or on a GPU compute from another model's memory."""
    beyond = sorted((id_, token) for token, id_ in tokenizer.get_vocab().items() if id_ >= embeddings)
    if not beyond:
        return
    template = json.dumps(tokenizer.chat_template, ensure_ascii=False) if tokenizer.chat_template else ""
    backend = exact_copy(tokenizer.backend_tokenizer, template)
    control = control_contents(backend, template)
    for id_, token in beyond:
        if token in control and not _is_in_template(tokenizer, token, template):
            continue  # cannot be typed: control tokens in a message are ordinary characters
        if token in control or any(id_ in ids for ids in _attempts(tokenizer, backend, token)):
            raise ModelLoadError(
                f"{name} cannot be loaded: its tokenizer has the token {token[:60]!r} with the id {id_:,}, but the "
                f"model has only {embeddings:,} embeddings. Its files do not belong together: download the model again."
            )


def _is_in_template(tokenizer: PreTrainedTokenizerFast, token: str, template: str) -> bool:
    if token in template:
        return True
    roles = (role for role in ("bos_token", "eos_token", "unk_token", "pad_token") if getattr(tokenizer, role) == token)
    return any(role in template for role in roles)


def _attempts(tokenizer: PreTrainedTokenizerFast, backend: Tokenizer, token: str) -> Iterator[list[int]]:
    """What the token's own text is tokenised to, alone and within a text."""
    text = str(tokenizer.convert_tokens_to_string([token]))
    for written in dict.fromkeys((token, text, f" {text}", f"a{text}", f"a {text}")):
        yield backend.encode(written, add_special_tokens=False).ids


def _check_object(directory: Path, name: str) -> None:
    found = _object_in(directory, name)
    if name != "tokenizer_config.json":
        return
    for key, kind in _MUST_BE.items():
        value = found.get(key)
        if value is not None and not isinstance(value, kind):
            raise _damaged(directory, f"{name} is damaged: its {key} is {_kind(value)}")
    declared = found.get("added_tokens_decoder") or {}
    assert isinstance(declared, dict)
    for number, token in declared.items():
        if not number.isdigit() or not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise _damaged(directory, f"{name} is damaged: its added token {number[:20]!r} has no number or no text")


def _check_whole(directory: Path) -> None:
    try:
        Tokenizer.from_file(str(directory / WHOLE))
    except Exception:  # the library has one kind of error for everything
        raise _damaged(directory, f"{WHOLE} is damaged: no tokenizer can be built from it") from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of the library's Rust code
            raise
        raise _damaged(directory, f"{WHOLE} is damaged: no tokenizer can be built from it") from None


def _check_merges(directory: Path, path: Path) -> None:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise _damaged(directory, f"{path.name} is damaged: it is not text in UTF-8") from None
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("#version") and len(line.split(" ")) != 2:
            raise _damaged(directory, f"{path.name} is damaged: line {number:,} is not a pair of tokens")


def _object_in(directory: Path, name: str) -> dict[str, object]:
    path = directory / name
    try:
        if not path.is_file():
            raise _damaged(directory, f"{name} is not a file")
        if path.stat().st_size > MOST_BYTES:
            raise _damaged(directory, f"{name} is too large to be part of a tokenizer")
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelLoadError(f"{directory.name} cannot be loaded: {name} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError:
        raise _damaged(directory, f"{name} is damaged: it is not text in UTF-8") from None
    except RecursionError:
        raise _damaged(directory, f"{name} is damaged: it is nested too deeply") from None
    except ValueError:
        what = "not JSON" if path.stat().st_size else "empty"
        raise _damaged(directory, f"{name} is damaged: it is {what}") from None
    if not isinstance(found, dict):
        raise _damaged(directory, f"{name} is damaged: it is {_kind(found)} instead of an object")
    return found


def _damaged(directory: Path, what: str) -> ModelLoadError:
    return ModelLoadError(f"{directory.name} cannot be loaded: {what}. Download the model again, or restore that file.")


def _kind(value: object) -> str:
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), "null")
