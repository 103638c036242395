"""What a start needs of the machine around it: a place for temporary files, and Gradio in spite of proxies."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sessions.errors import SessionError, StoreError

PAGE_FILES_NAME = "page-files"


class PageUnavailable(SessionError):
    """The page's libraries cannot be imported."""


@contextlib.contextmanager
def own_temporary_files(data_dir: Path) -> Iterator[Path]:
    """A folder in the data directory for Gradio, which makes folders at its start although the page uploads nothing:
    the machine's temporary directory may be full, or another user's. Where the machine has none at all, it is that as
    well. Call before Gradio is imported. Raises `StoreError`."""
    folder = data_dir / PAGE_FILES_NAME
    before = os.environ.get("GRADIO_TEMP_DIR")
    try:
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StoreError(f"The data directory {data_dir} cannot be used ({error.strerror or error}).") from error
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    try:
        yield folder
    finally:
        if before is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = before
        if tempfile.tempdir == str(folder):
            del os.environ["TMPDIR"]
            tempfile.tempdir = None
        shutil.rmtree(folder, ignore_errors=True)


def import_page() -> None:
    """Imports Gradio. It opens an HTTP client as it is imported, which refuses proxies that it does not know, although
    the page asks nobody anything: proxies are out of its sight meanwhile. Raises `PageUnavailable`."""
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
