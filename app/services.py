"""The long-lived objects that the page, the API and the server work with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from app.access.auth import Owners
from app.access.callers import Callers
from app.access.guard import cookies_of
from app.access.public_link import Share
from app.model_names import ModelNames
from app.process_memory import ProcessMeter
from sessions.manager import SessionManager


@dataclass(frozen=True, slots=True)
class Services:
    """What every request handler may use. `app/wiring.py` builds it for a real server."""

    manager: SessionManager
    owners: Owners
    share: Share
    callers: Callers
    allowed_origins: tuple[str, ...] = ()  # of other sites' pages that may call the API before there is a key
    names: ModelNames = field(default_factory=ModelNames)
    process: ProcessMeter = field(default_factory=ProcessMeter)

    def owner_of(self, request: Any) -> str | None:
        """The owner a Gradio or Starlette request comes from, None before the login. Reads only the signed cookie."""
        return self.owners.owner_of(cookies_of(getattr(request, "request", request).headers))
