"""SessionError
├── ConversationNotFound   no such conversation for this owner (also when it is somebody else's)
├── ConversationBusy       an answer is being written; stop it or wait
│   └── ShuttingDown       the server ends; no turn begins any more
├── MessageRefused         empty, or not text
├── CacheFull              the turn's KV can never fit the budget
├── ContextFull            the turn does not fit the model's context
└── StoreError             the database or the data directory cannot be used

Every message is a sentence that a person may be shown. Nothing was lost or half done when one of them is raised.
"""

from __future__ import annotations


class SessionError(Exception):
    """Base of everything `sessions` raises on purpose."""


class ConversationNotFound(SessionError):
    """No such conversation, or message in it, for this owner."""


class ConversationBusy(SessionError):
    """An answer is being written in this conversation."""


class ShuttingDown(ConversationBusy):
    """The server ends; no turn begins any more."""


class MessageRefused(SessionError):
    """The text cannot be sent as a message."""


class CacheFull(SessionError):
    """The KV of this turn can never fit the device budget."""


class ContextFull(SessionError):
    """The turn does not fit the model's context."""


class StoreError(SessionError):
    """The database or the data directory cannot be used."""
