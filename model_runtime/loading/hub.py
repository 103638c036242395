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

_PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt"]
_IGNORED = ["original/*", "consolidated*", "onnx/*", "*/*"]
_MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?")
_TIMEOUT_S = 10.0


def looks_like_model_id(name: str) -> bool:
    """Whether `name` could be the id of a model on the hub, rather than a path."""
    return _MODEL_ID.fullmatch(name) is not None and not name.endswith((".gguf", ".safetensors", ".bin"))


def hub_directory(model_id: str, say: Callable[[str], None]) -> Path:
    """The local directory of a hub model, downloaded if necessary. Raises `ModelLoadError`."""
    say(f"Looking for {model_id} on the model hub.")
    try:
        directory = Path(
            snapshot_download(model_id, allow_patterns=_PATTERNS, ignore_patterns=_IGNORED, etag_timeout=_TIMEOUT_S)
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
    if not any(directory.glob("*.safetensors")):
        raise ModelLoadError(f"{model_id} has no weights in safetensors format, the only format that is loaded.")
    return directory


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
