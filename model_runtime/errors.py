"""ModelRuntimeError
├── ModelLoadError      the model cannot be loaded, or cannot be run by this engine
├── PromptTooLong       more tokens than the context holds
├── DeviceOutOfMemory   the device refused memory
└── EngineClosed        the engine was closed, or its thread died

Every message is a sentence that a person may be shown.
"""

from __future__ import annotations


class ModelRuntimeError(Exception):
    """Base of everything `model_runtime` raises on purpose."""


class ModelLoadError(ModelRuntimeError):
    """The model cannot be loaded, or cannot be run by this engine."""


class PromptTooLong(ModelRuntimeError):
    """More tokens than the context holds."""


class DeviceOutOfMemory(ModelRuntimeError):
    """The device refused memory."""


class EngineClosed(ModelRuntimeError):
    """The engine was closed, or its thread died."""
