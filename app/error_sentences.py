"""What went wrong, as a sentence. Never a traceback on the page: the log has it, under an id the page shows."""

from __future__ import annotations

import logging
import uuid

from model_runtime.interface.errors import ModelRuntimeError
from sessions.errors import SessionError

log = logging.getLogger(__name__)


def sentence(error: Exception, doing: str) -> str:
    """The sentence a person sees. An error nobody expected is logged with its traceback."""
    if isinstance(error, SessionError | ModelRuntimeError | ValueError):
        return str(error)
    problem_id = uuid.uuid4().hex[:8]
    log.error("unexpected doing=%s id=%s", doing, problem_id, exc_info=error)
    return f"Something went wrong on the server (id {problem_id}); its log has the details. Please try again."
