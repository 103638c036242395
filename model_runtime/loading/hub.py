"""Downloads a model from the Hugging Face hub into its usual cache. Every failure becomes a message within seconds."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from model_runtime.interface.errors import ModelLoadError

_DESCRIPTION = ["*.json", "*.jinja", "*.model", "*.txt"]  # config, tokenizer, template: a few megabytes
_PATTERNS = ["*.safetensors", *_DESCRIPTION]
_IGNORED = ["original/*", "consolidated*", "onnx/*", "*/*"]
_MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?")
_TIMEOUT_S = 10.0


def looks_like_model_id(name: str) -> bool:
    """Whether `name` could be the id of a model on the hub, rather than a path."""
    return _MODEL_ID.fullmatch(name) is not None and not name.endswith((".gguf", ".safetensors", ".bin"))


def hub_directory(model_id: str, say: Callable[[str], None], check: Callable[[Path], None]) -> Path:
    """The local directory of a hub model, downloaded if necessary. `check` is called with what describes the model,
    before its weights are downloaded, and raises what is to end the download. Raises `ModelLoadError`."""
    say(f"Looking for {model_id} on the model hub.")
    check(_fetched(model_id, _DESCRIPTION))
    directory = _fetched(model_id, _PATTERNS)
    if not any(directory.glob("*.safetensors")):
        raise ModelLoadError(
            f"{model_id} has no weights in safetensors format. Other formats of weights are Python pickles, which can "
            "run any program, and are never loaded. If you trust its source, convert it with transformers "
            "(from_pretrained, then save_pretrained), and name the new directory."
        )
    return directory


def hub_description(model_id: str, say: Callable[[str], None]) -> Path:
    """The local directory with what describes a hub model: tokenizer, template, configs. Raises `ModelLoadError`."""
    say(f"Looking for the tokenizer of {model_id} on the model hub.")
    return _fetched(model_id, _DESCRIPTION)


def _fetched(model_id: str, patterns: list[str]) -> Path:
    try:
        return Path(
            snapshot_download(model_id, allow_patterns=patterns, ignore_patterns=_IGNORED, etag_timeout=_TIMEOUT_S)
        )
    except GatedRepoError as error:
        raise ModelLoadError(
            f"{model_id} requires you to accept its licence on the hub first; then log in with `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelLoadError(f"The hub has no model {model_id}, or it is private. Check the spelling.") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ModelLoadError(
            f"{model_id} is neither a file nor a directory here, and the model hub cannot be reached. Name a "
            "directory, a .gguf file, or leave --model out for the embedded model."
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ModelLoadError(f"{model_id} could not be downloaded: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
