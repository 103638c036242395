"""Imports the page, and with it Gradio, whatever proxies the environment names."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from sessions.errors import SessionError


class PageUnavailable(SessionError):
    """The page's libraries cannot be imported."""


def import_page() -> None:
    """Imports Gradio. At import it opens an HTTP client, which rejects proxy settings that it does not know, although
    the page makes no requests: the proxy variables are hidden meanwhile. Raises `PageUnavailable`."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        with _without_proxies():
            import app.page.mount  # noqa: F401
    except Exception as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PageUnavailable(
            f"The page cannot be shown, because Gradio cannot be imported ({line.rstrip('.')}). Install Keepwarm "
            "again, or start it without the page: --headless."
        ) from error


@contextlib.contextmanager
def _without_proxies() -> Iterator[None]:
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.lower().endswith("_proxy")}
    try:
        yield
    finally:
        os.environ.update(hidden)
