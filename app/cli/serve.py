"""`keepwarm serve`: opens the sockets, loads the model and runs the web server until a signal ends it."""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import secrets
import signal
import socket

from app import units
from app.access.password import given_password
from app.access.visitors import Visitors, is_loopback
from app.budgets import Budgets
from app.cli.engine_flags import remote_config
from app.cli.model_flags import model_config
from app.cli.page_import import import_page
from app.cli.terminal import Say
from app.server.drain import Drain
from app.server.listen import bind, url_of
from model_runtime.native import heap
from model_runtime.native.free_memory import free_memory_bytes
from sessions.config import DAY_S

GRACEFUL_STOP_S = 2


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Serves until a signal. Raises `SessionError`, `ModelRuntimeError` or `ValueError` with a sentence."""
    password = _password(arguments, say)
    model, remote = model_config(arguments), remote_config(arguments)
    # Ends at once, as in any process; but the first process of a container gets no signal without a handler for it.
    signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
    _refuse_sizes(arguments)
    with contextlib.ExitStack() as sockets:
        opened = [sockets.enter_context(one) for one in listeners(arguments.host, arguments.port, arguments.share)]
        tunnel_port = opened[1].getsockname()[1] if arguments.share else None
        from app.model_names import ModelNames
        from app.wiring import Access, IdleFeatures, ServiceSettings, open_services

        budgets = Budgets(
            arguments.device_kv_budget,
            arguments.disk_kv_budget,
            arguments.host_kv_budget,
            arguments.kv_dtype,
            arguments.cold_kv_dtype,
        )
        origins = tuple(dict.fromkeys(arguments.allow_origin))
        idle_work = IdleFeatures(arguments.read_ahead, arguments.titles and not arguments.headless)
        settings = ServiceSettings(
            arguments.data_dir,
            model,
            budgets,
            Access(password, Visitors(arguments.trusted_proxy, tunnel_port), arguments.require_key, origins),
            arguments.prompt_lookup,
            idle_work,
            arguments.keep_unnamed * DAY_S,
            ModelNames(tuple(dict.fromkeys(arguments.alias)), arguments.any_model_name),
            remote,
        )
        with open_services(settings, say, (lambda: None) if arguments.headless else import_page) as services:
            from app.server.site import create_app
            from app.server.uvicorn_server import Server

            port = opened[0].getsockname()[1]

            def on_ready() -> None:
                _freeze()
                say(f"Keepwarm is ready: {url_of(arguments.host, port)}")
                if tunnel_port is not None:
                    services.share.open("127.0.0.1", tunnel_port, say)
                if not services.callers.has_keys and (services.callers.needs_key or not is_loopback(arguments.host)):
                    answered = "no program is" if services.callers.needs_key else "only programs on this machine are"
                    say(f"There is no API key: {answered} answered. Add one: keepwarm key add NAME.")

            # uvicorn raises the signal that ended it once more; everything must still be closed in order after that.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: None)
            app = create_app(services, arguments.host, arguments.headless, arguments.root_path)
            drain = Drain(services.manager, arguments.drain_limit, say)
            Server(app, GRACEFUL_STOP_S, on_ready, drain).run(sockets=opened)
            say("Saving the conversations.")
    return 0


def listeners(host: str, port: int, share: bool) -> list[socket.socket]:
    """A socket on the requested address and, with a share link, a second one that only its tunnel knows: what comes
    through the tunnel looks like a program on this machine, whatever its headers say. Raises `PortError`."""
    requested = bind(host, port)
    return [requested, bind("127.0.0.1", 0)] if share else [requested]


def _refuse_sizes(arguments: argparse.Namespace) -> None:
    """Raises `ValueError` for a budget that is no size: now, and not after the model was loaded."""
    if arguments.device_kv_budget is not None:
        units.parse_budget(arguments.device_kv_budget, free_memory_bytes())
    for budget in (arguments.host_kv_budget, arguments.disk_kv_budget):
        if budget is not None and budget.strip() != "0":
            units.parse_budget(budget, free_memory_bytes())
    nothing_is_saved = {str(arguments.host_kv_budget).strip(), str(arguments.disk_kv_budget).strip()} == {"0"}
    if arguments.cold_kv_dtype != "exact" and nothing_is_saved:
        raise ValueError(
            f"--cold-kv-dtype {arguments.cold_kv_dtype} is for caches in host memory and on disk, and both budgets are "
            "0: leave it out, or give one of them room."
        )


def _freeze() -> None:
    """Exempts everything imported and loaded so far from garbage collection: it stays until the end. Going through it
    again took the collector 0.4 s, with every stream standing still, and three times that at the end."""
    gc.collect()
    gc.freeze()
    heap.give_back()


def _password(arguments: argparse.Namespace, say: Say) -> str | None:
    """The page's password, None for none. Raises `ValueError` where other machines could reach the page without one."""
    password = given_password(arguments.password, arguments.password_file, os.environ, say)
    if arguments.headless and arguments.share:
        raise ValueError("A share link is for the page: leave out --share or --headless.")
    if password is not None or arguments.headless:
        return password
    if arguments.share:
        password = secrets.token_urlsafe(12)
        say(f"Password for the shared chat (shown once): {password}")
        return password
    if not is_loopback(arguments.host):
        raise ValueError(
            f"Listening on {arguments.host} lets other machines in: add --password-file, or leave --host at 127.0.0.1."
        )
    if arguments.trusted_proxy:
        raise ValueError("A proxy lets other machines in: add --password-file as well as --trusted-proxy.")
    return None
