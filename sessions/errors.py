"""SessionError
├── ConversationNotFound   this owner has no such conversation (it may be another owner's)
├── ConversationBusy       an answer is being written; stop it or wait
│   └── ShuttingDown       the server is shutting down; no new turn begins
├── MessageRefused         empty, or not text
├── SettingRefused         the engine cannot honour a setting of the answer
├── NotKeptHere            the memory is in a remote engine, which alone decides about it
├── CacheFull              the turn's KV can never fit the budget
├── ContextFull            the turn does not fit the model's context
└── StoreError             the database or the data directory cannot be used

Every message is a sentence that can be shown to a person. When one of these is raised, nothing was lost or half done.
"""

from __future__ import annotations


class SessionError(Exception):
    """Base of all errors that `sessions` raises on purpose."""


class ConversationNotFound(SessionError):
    """This owner has no such conversation, or it has no such message."""


class ConversationBusy(SessionError):
    """An answer is being written in this conversation."""


class ShuttingDown(ConversationBusy):
    """The server is shutting down; no new turn begins."""


class MessageRefused(SessionError):
    """The text cannot be sent as a message."""


class SettingRefused(SessionError):
    """The engine cannot honour a setting of the answer."""


class NotKeptHere(SessionError):
    """The memory is in a remote engine, which alone decides what it keeps."""


class CacheFull(SessionError):
    """The KV of this turn can never fit the device budget."""


class ContextFull(SessionError):
    """The turn does not fit the model's context."""


class StoreError(SessionError):
    """The database or the data directory cannot be used."""
