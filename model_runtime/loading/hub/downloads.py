"""Downloads a model from the Hugging Face hub into its usual cache. Every failure becomes a message within seconds."""

from __future__ import annotations

import glob
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import get_cached_repo_tree, snapshot_download, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from model_runtime.interface.config import EMBEDDED
from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.hub.gguf_files import GgufFiles, chosen_gguf, split_choice
from model_runtime.loading.progress import size_text

_DESCRIPTION = ["*.json", "*.jinja", "*.model", "*.txt"]  # config, tokenizer, template: a few megabytes
_PATTERNS = ["*.safetensors", *_DESCRIPTION]
_IGNORED = ["original/*", "consolidated*", "onnx/*", "*/*"]
_MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?")
_TIMEOUT_S = 10.0


def looks_like_model_id(name: str) -> bool:
    """Whether `name` could be the id of a model on the hub, rather than a path."""
    return _MODEL_ID.fullmatch(name) is not None and not name.endswith((".gguf", ".safetensors", ".bin"))


def refuse_absent(name: str) -> None:
    """Raises `ModelLoadError` for a model that can be nowhere: no file, no directory, no id. It takes no time."""
    if name == EMBEDDED or looks_like_model_id(split_choice(name)[0]):
        return
    try:
        Path(name).expanduser().stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelLoadError(f"There is no file or directory {name}.") from error
    except (OSError, RuntimeError) as error:  # not allowed, too long a name; no such user's home
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise ModelLoadError(f"{name} cannot be read: {reason}.") from error


@dataclass(frozen=True, slots=True)
class Repository:
    """A model on the hub: the local directory with what describes it, and its files as paths with sizes in bytes, {}
    where these cannot be known."""

    model_id: str
    description: Path
    files: Mapping[str, int]

    @property
    def has_safetensors(self) -> bool:
        """Whether it has weights that Keepwarm reads as a checkpoint."""
        return any(map(_is_weights, self.files))


def hub_repository(model_id: str, say: Callable[[str], None]) -> Repository:
    """What the hub has under this id; without a network what it had at the last download. Raises `ModelLoadError`."""
    say(f"Looking for {model_id} on the model hub.")
    description = _fetched(model_id, _DESCRIPTION)
    try:
        files = {file.path: file.size for file in get_cached_repo_tree(model_id)}
    except CachedRepoTreeNotFoundError:  # downloaded by an older version of the hub's library, and offline now
        files = {}
    return Repository(model_id, description, files)


def hub_gguf(repository: Repository, choice: str | None, check: Callable[[GgufFiles], None]) -> Path:
    """The first file of a GGUF model, downloaded with its other parts if necessary. `check` is called before, and
    raises what is to end the download. Raises `ModelLoadError`."""
    model = chosen_gguf(repository.model_id, choice, repository.files)
    check(model)
    _refuse_full_disk(repository.model_id, {path: repository.files[path] for path in model.paths})
    directory = _fetched(repository.model_id, [glob.escape(path) for path in model.paths], ignored=[])
    return directory / model.paths[0]


def hub_directory(repository: Repository, check: Callable[[Path], None]) -> Path:
    """The local directory of a checkpoint, downloaded if necessary. `check` is called with what describes the model,
    before its weights are downloaded, and raises what is to end the download. Raises `ModelLoadError`."""
    check(repository.description)
    if repository.files and not repository.has_safetensors:
        raise ModelLoadError(_no_safetensors(repository.model_id))
    weights = {path: size for path, size in repository.files.items() if _is_weights(path)}
    _refuse_full_disk(repository.model_id, weights)
    directory = _fetched(repository.model_id, _PATTERNS)
    if not any(directory.glob("*.safetensors")):
        raise ModelLoadError(_no_safetensors(repository.model_id))
    return directory


def _is_weights(path: str) -> bool:
    return path.endswith(".safetensors") and "/" not in path and not path.startswith("consolidated")


def _refuse_full_disk(model_id: str, files: Mapping[str, int]) -> None:
    """Raises `ModelLoadError` if those of the files that are not there yet cannot be stored."""
    cache = Path(HF_HUB_CACHE)
    missing = sum(size for path, size in files.items() if not isinstance(try_to_load_from_cache(model_id, path), str))
    folder = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise ModelLoadError(
            f"{model_id} cannot be downloaded: {size_text(missing)} of weights are to come, and {size_text(free)} "
            f"are free in {cache}. Free some space there, or name another directory with HF_HOME."
        )


def _no_safetensors(model_id: str) -> str:
    return (
        f"{model_id} has no weights in safetensors format. Other formats of weights are Python pickles, which can run "
        "any program, and are never loaded. If you trust its source, convert it with transformers (from_pretrained, "
        "then save_pretrained), and name the new directory."
    )


def hub_description(model_id: str, say: Callable[[str], None]) -> Path:
    """The local directory with what describes a hub model: tokenizer, template, configs. Raises `ModelLoadError`."""
    say(f"Looking for the tokenizer of {model_id} on the model hub.")
    return _fetched(model_id, _DESCRIPTION)


def _fetched(model_id: str, patterns: list[str], ignored: list[str] = _IGNORED) -> Path:
    try:
        return Path(
            snapshot_download(model_id, allow_patterns=patterns, ignore_patterns=ignored, etag_timeout=_TIMEOUT_S)
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
