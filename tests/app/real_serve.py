"""The real engine with a tiny model behind the real server, in a separate process, for tests that stop it, starve it or
hang it. SIGUSR1 makes the next step hang forever."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from app.access.auth import Owners
from app.access.callers import Callers
from app.access.public_link import Share
from app.server.drain import Drain
from app.server.listen import bind, url_of
from app.server.site import create_app
from app.server.uvicorn_server import Server
from app.services import Services
from sessions.store.store import Store
from tests.model_runtime.harness import WatchedEngine
from tests.polling import pause
from tests.sessions.real_session_harness import load, manager_of


def main(model_dir: str, data_dir: str, step_s: str, hang_after_s: str) -> None:
    loaded = load(Path(model_dir))
    engine, store = WatchedEngine(loaded), Store(Path(data_dir))
    hangs = threading.Event()

    def slowly(*_: object) -> None:
        if hangs.is_set():
            hangs.clear()
            threading.Event().wait()
        pause(float(step_s))

    loaded.model.get_input_embeddings().register_forward_pre_hook(slowly)
    signal.signal(signal.SIGUSR1, lambda *_: hangs.set())
    manager = manager_of(store, engine, loaded, hang_after_s=float(hang_after_s))
    manager.start()
    owners = Owners(b"secret", None)
    services = Services(manager, owners, Share(), Callers(store.keys, owners))
    listener = bind("127.0.0.1", 0)

    def say(sentence: str) -> None:
        print(sentence, flush=True)

    port = listener.getsockname()[1]
    app = create_app(services, "127.0.0.1", headless=True)
    server = Server(app, 2, lambda: say(f"ready {url_of('127.0.0.1', port)}"), Drain(manager, 5.0, say))
    server.run(sockets=[listener])
    manager.close()
    engine.close()
    store.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
