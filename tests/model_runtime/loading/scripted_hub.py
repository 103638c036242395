"""A model hub on this machine for the real client: repositories are folders, and what was asked for is recorded."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class ScriptedHub:
    """Serves every folder `root/org/name` as a repository. `asked` are the files whose content was sent."""

    def __init__(self, root: Path) -> None:
        self.root, self.asked = root, list[str]()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        parts = [unquote(part) for part in urlsplit(path).path.strip("/").split("/")]
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            repository = self.root / parts[2] / parts[3]
            if not repository.is_dir():
                return 401, {"X-Error-Code": "RepoNotFound"}, b'{"error": "Repository not found"}'
            rest = parts[4] if len(parts) > 4 else ""
            body = _tree(repository) if rest == "tree" else {"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": []}
            return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()
        if len(parts) > 4 and parts[2] == "resolve":
            file = self.root.joinpath(*parts[:2], *parts[4:])
            if file.is_file():
                return 200, {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": COMMIT}, file.read_bytes()
        return 404, {"X-Error-Code": "EntryNotFound"}, b""


def _tree(repository: Path) -> list[dict[str, object]]:
    files = sorted(file for file in repository.rglob("*") if file.is_file())
    return [
        {
            "type": "file",
            "path": file.relative_to(repository).as_posix(),
            "size": file.stat().st_size,
            "oid": _etag(file),
        }
        for file in files
    ]


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()


@contextmanager
def serve(root: Path) -> Iterator[tuple[str, ScriptedHub]]:
    """The hub's address, and the hub."""
    hub = ScriptedHub(root)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._send(is_whole=False)

        def do_GET(self) -> None:
            if "/resolve/" in self.path:
                hub.asked.append(unquote(self.path.rsplit(f"/{COMMIT}/", 1)[-1].rsplit("/main/", 1)[-1]))
            self._send(is_whole=True)

        def _send(self, *, is_whole: bool) -> None:
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if is_whole:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
