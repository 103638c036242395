"""Fixtures of the API's tests: a headless site over loopback, and OpenAI's own client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.app.site import Site

MODEL = "Scripted-1B"
Serve = Callable[..., Site]
Connect = Callable[..., OpenAI]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """`connect(site, key)`: a client that never retries by itself."""
    clients: list[OpenAI] = []

    def start(site: Site, key: str = "unused") -> OpenAI:
        clients.append(OpenAI(base_url=f"{site.url}/v1", api_key=key, max_retries=0, timeout=30))
        return clients[-1]

    yield start
    for client in clients:
        client.close()


@pytest.fixture
def site(serve: Serve) -> Site:
    return serve(headless=True)


@pytest.fixture
def http(site: Site) -> Iterator[httpx.Client]:
    """Plain HTTP to the site."""
    with httpx.Client(base_url=site.url, timeout=30) as client:
        yield client


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}
