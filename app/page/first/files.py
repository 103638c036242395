"""The page's own scripts and style sheets: compressed once, and named by their content so that browsers keep them."""

from __future__ import annotations

import gzip
import hashlib
import threading
from importlib.resources import as_file, files
from mimetypes import guess_type
from pathlib import Path

import brotli
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

# The style sheets in their order, sent as one file.
STYLES = ("base", "layout", "thread", "prose", "composer", "panels", "memory", "form", "media")
PAGE_STYLES = "page.css"
BROTLI_QUALITY = 9  # 11 takes ten times as long for a few per cent
WORTH_COMPRESSING_BYTES = 400
KEPT = "public, max-age=31536000, immutable"
FRESH = "no-cache"  # kept, but asked for each time


class PageFiles:
    """An ASGI application with the files of one directory, each at its name and at `<version>/` and its name.

    The version is a hash of all files: what has it never changes, and a browser keeps it without asking again. A file
    without it is asked for every time. Files are read once. Any thread.
    """

    def __init__(self, directory: Path) -> None:
        self._files = {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()}
        self._files[PAGE_STYLES] = b"\n".join(self._files[f"{name}.css"] for name in STYLES)
        digest = hashlib.sha256()
        for name, content in self._files.items():
            digest.update(f"{name} {len(content)} ".encode() + content)
        self.version = digest.hexdigest()[:16]
        self._lock = threading.Lock()
        self._packed: dict[tuple[str, str], bytes] = {}  # by name and encoding

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of the scripts that are modules."""
        return tuple(name for name in self._files if name.endswith(".js") and name != "first.js")

    def text(self, name: str) -> str:
        """A file's text."""
        return self._files[name].decode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        name = scope["path"].removeprefix(scope.get("root_path", "")).removeprefix("/")
        version, _, versioned = name.partition("/")
        is_kept = version == self.version
        name = versioned if is_kept else name
        if request.method not in ("GET", "HEAD"):
            raise HTTPException(405)
        if name not in self._files:
            raise HTTPException(404)
        await self._response(name, request.headers, is_kept)(scope, receive, send)

    def _response(self, name: str, asked: Headers, is_kept: bool) -> Response:
        content = self._files[name]
        kind = guess_type(name)[0] or "application/octet-stream"
        encoding = _encoding(asked.get("accept-encoding", ""))
        packs = kind.startswith("text/") or kind in ("application/javascript", "image/svg+xml")
        if not packs or len(content) < WORTH_COMPRESSING_BYTES:
            encoding = ""
        tag = f'"{self.version}{encoding and "-"}{encoding}"'
        headers = {"Cache-Control": KEPT if is_kept else FRESH, "ETag": tag, "Vary": "Accept-Encoding"}
        if encoding:
            headers["Content-Encoding"] = encoding
            content = self._pack(name, encoding)
        if tag in asked.get("if-none-match", ""):
            return Response(status_code=304, headers={k: v for k, v in headers.items() if k != "Content-Encoding"})
        return Response(content, media_type=kind, headers=headers)

    def _pack(self, name: str, encoding: str) -> bytes:
        with self._lock:
            if (name, encoding) not in self._packed:
                content = self._files[name]
                packed = (
                    brotli.compress(content, quality=BROTLI_QUALITY) if encoding == "br" else gzip.compress(content)
                )
                self._packed[name, encoding] = packed
            return self._packed[name, encoding]


def page_files() -> PageFiles:
    """The files of `app/page/assets`."""
    with as_file(files("app.page") / "assets") as directory:
        return PageFiles(directory)


def _encoding(accepted: str) -> str:
    """The better of the encodings that a browser takes, "" for neither. One with q=0 is refused."""
    offers = {}
    for part in accepted.lower().split(","):
        name, _, parameter = part.partition(";")
        offers[name.strip()] = parameter.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return next((name for name in ("br", "gzip") if offers.get(name)), "")
