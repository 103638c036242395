"""ModelRuntimeError
├── ModelLoadError      the model cannot be loaded, or cannot be run by this engine
├── PromptTooLong       more tokens than the context holds
├── TemplateRefused     the model's chat template has no place for such messages
├── NotNumbers          the model computed NaN or infinite logits
├── DeviceOutOfMemory   the device refused memory
├── SegmentRefused      a saved KV is not whole, or not the expected one; answered by a re-read
│   └── SegmentGone     its file is not there any more
├── SegmentNotSaved     a KV could not be written
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


class TemplateRefused(ModelRuntimeError):
    """The model's chat template has no place for these messages, or for tools."""


class NotNumbers(ModelRuntimeError):
    """The model computed NaN or infinite logits: no token can be chosen from them."""

    def __init__(self) -> None:
        super().__init__(
            "The model computed no numbers for the next word (NaN or infinity), so this answer ends here. Its file may "
            "be damaged, or its weights too large for this precision: try other words, or another --quantization."
        )


class DeviceOutOfMemory(ModelRuntimeError):
    """The device refused memory."""


class SegmentRefused(ModelRuntimeError):
    """A saved KV is not whole, or not the expected one. Answered by a re-read."""


class SegmentGone(SegmentRefused):
    """The file of a saved KV is not there any more: somebody deleted it."""


class SegmentNotSaved(ModelRuntimeError):
    """A KV could not be written: a full disk, a missing permission."""


class EngineClosed(ModelRuntimeError):
    """The engine was closed, or its thread died."""
