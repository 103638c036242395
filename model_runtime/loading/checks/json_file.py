"""Reads the JSON object in a file that describes a model. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path

from model_runtime.interface.errors import ModelLoadError

MOST_CONFIG_BYTES = 16 << 20


def read_config(path: Path) -> dict[str, object]:
    """The JSON object in a file. Raises `FileNotFoundError`, or `ModelLoadError`."""
    try:
        if path.exists() and not path.is_file():
            raise ModelLoadError(f"{path} is not a regular file.")
        if path.stat().st_size > MOST_CONFIG_BYTES:
            raise ModelLoadError(f"{path} is too large to be a model's description.")
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except RecursionError:
        raise ModelLoadError(f"{path} cannot be read: it is nested too deeply.") from None
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}.") from error
    if not isinstance(found, dict):
        raise ModelLoadError(f"{path} does not contain a model description.")
    return found
