"""The few of Gradio's routes that the page uses. Every other route does not exist: Gradio's own proxy and file server,
uploads, its queue, its API and its documentation, and any route that a later version may add."""

from __future__ import annotations

import re
from enum import Enum, auto

from starlette.types import Scope


class Route(Enum):
    """What a request to Gradio is for."""

    PAGE = auto()
    FILE = auto()  # one of Gradio's scripts or style sheets
    EVENT = auto()  # a handler of the page's events
    QUESTION = auto()  # a server function of a component


# Matched against the raw path exactly as sent: none of these needs an escape, a double slash or a dot segment.
_ROUTES: tuple[tuple[frozenset[str], re.Pattern[str], Route], ...] = (
    (frozenset({"GET", "HEAD"}), re.compile(r"/"), Route.PAGE),
    (frozenset({"GET"}), re.compile(r"/assets/[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.(js|css)"), Route.FILE),
    (frozenset({"GET"}), re.compile(r"/theme\.css"), Route.FILE),
    (frozenset({"POST"}), re.compile(r"/gradio_api/run/predict"), Route.EVENT),
    (frozenset({"POST"}), re.compile(r"/gradio_api/component_server/"), Route.QUESTION),
)


def route_of(scope: Scope) -> Route | None:
    """The route of an HTTP request, None if the page has no such route."""
    if scope["type"] != "http" or scope.get("root_path"):
        return None
    path: str = scope["path"]
    if scope.get("raw_path", path.encode("utf-8", "replace")).partition(b"?")[0] != path.encode("utf-8", "replace"):
        return None
    for methods, pattern, route in _ROUTES:
        if scope["method"] in methods and pattern.fullmatch(path):
            return route
    return None
