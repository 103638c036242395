"""A folder for temporary files inside the data directory."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sessions.errors import StoreError

PAGE_FILES_NAME = "page-files"


@contextlib.contextmanager
def own_temporary_files(data_dir: Path) -> Iterator[Path]:
    """A folder for Gradio, which creates folders when it starts although the page uploads nothing: the machine's
    temporary directory may be full, or belong to another user. On a machine without any temporary directory it serves
    as that too. Call before Gradio is imported. Raises `StoreError`."""
    folder = data_dir / PAGE_FILES_NAME
    before = os.environ.get("GRADIO_TEMP_DIR")
    try:
        shutil.rmtree(folder, ignore_errors=True)  # left behind by a process that was killed
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
