"""The scripted engine behind the real server in a separate process, for tests that send it signals."""

from __future__ import annotations

import sys
from pathlib import Path

from app.access.auth import Owners
from app.access.callers import Callers
from app.access.public_link import Share
from app.server.drain import Drain
from app.server.listen import bind, url_of
from app.server.site import create_app
from app.server.uvicorn_server import Server
from app.services import Services
from sessions.config import SessionConfig
from sessions.manager import SessionManager
from sessions.store.store import Store
from tests.sessions.byte_template import END, ByteTemplate
from tests.sessions.scripted_engine import ScriptedEngine


def main(data_dir: str, token_delay_s: str, limit_s: str, password: str = "") -> None:
    store = Store(Path(data_dir))
    engine = ScriptedEngine(lambda ledger: (*b"word " * 40, END), token_delay_s=float(token_delay_s))
    manager = SessionManager(store, engine, ByteTemplate(), SessionConfig(device_kv_budget_bytes=2**26))
    manager.start()
    owners = Owners(b"secret", password or None, store.logins)
    services = Services(manager, owners, Share(), Callers(store.keys, owners))
    listener = bind("127.0.0.1", 0)

    def say(sentence: str) -> None:
        print(sentence, flush=True)

    port = listener.getsockname()[1]
    app = create_app(services, "127.0.0.1", headless=True)
    assert "gradio" not in sys.modules, "headless imports no gradio"
    server = Server(app, 2, lambda: say(f"ready {url_of('127.0.0.1', port)}"), Drain(manager, float(limit_s), say))
    server.run(sockets=[listener])
    manager.close()
    engine.close()
    store.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
