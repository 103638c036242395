"""ModelRuntimeError
├── ModelLoadError      the model cannot be loaded, or cannot be run by this engine
├── TemplateRefused     the model's chat template cannot represent these messages
├── GrammarFailed       an answer cannot keep to the grammar it was asked to keep to
├── NotNumbers          the model computed NaN or infinite logits
├── DeviceOutOfMemory   the device has no memory left
├── SegmentRefused      a saved KV is incomplete, damaged or not the expected one; the caller re-reads
│   └── SegmentGone     its file no longer exists
├── SegmentNotSaved     a KV could not be written
└── EngineClosed        the engine was closed, or its thread died

Every message is a sentence that may be shown to the user.
"""

from __future__ import annotations


class ModelRuntimeError(Exception):
    """Base of all errors that `model_runtime` raises deliberately."""


class ModelLoadError(ModelRuntimeError):
    """The model cannot be loaded, or cannot be run by this engine."""


class TemplateRefused(ModelRuntimeError):
    """The model's chat template cannot represent these messages, or does not support tools."""


class NotNumbers(ModelRuntimeError):
    """The model computed NaN or infinite logits, from which no token can be chosen."""

    def __init__(self) -> None:
        super().__init__(
            "The model computed no valid numbers for the next token (NaN or infinity), so this answer ends here. Its "
            "file may be damaged, or its weights too large for this precision: try other words or another "
            "--quantization."
        )


class GrammarFailed(ModelRuntimeError):
    """An answer cannot keep to its grammar: it has an error, or became too complex."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The answer cannot keep to the format that was asked for: {reason}.")


class DeviceOutOfMemory(ModelRuntimeError):
    """The device has no memory left."""


class SegmentRefused(ModelRuntimeError):
    """A saved KV is incomplete, damaged or not the expected one. The caller re-reads the tokens."""


class SegmentGone(SegmentRefused):
    """The file of a saved KV no longer exists: another program deleted it."""


class SegmentNotSaved(ModelRuntimeError):
    """A KV could not be written, for example because the disk is full or a permission is missing."""


class EngineClosed(ModelRuntimeError):
    """The engine was closed, or its thread died."""
