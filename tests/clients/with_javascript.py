"""The AI SDK over chat completions and responses, and OpenAI's own client for Node. Skipped without Node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import TURNS, Loop, Server

NODE = shutil.which("node")
PACKAGES = Path(sys.prefix).parent / "clients-js"  # beside the environment: the Makefile installs them
SCRIPT = Path(__file__).parent / "javascript" / "programs.mjs"
WITHIN_S = 300
pytestmark = pytest.mark.skipif(
    NODE is None or not (PACKAGES / "node_modules").is_dir(), reason="Node or its packages are not installed"
)


@pytest.fixture(scope="module")
def found(server: Server) -> dict[str, dict[str, Any]]:
    """What each part of the script found, by its name. Node looks for packages beside the script."""
    script = shutil.copy(SCRIPT, PACKAGES)
    surroundings = {**os.environ, "BASE_URL": f"{server.url}/v1", "MODEL": server.model}
    command = [str(NODE), "--no-warnings", str(script)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=WITHIN_S, env=surroundings)
    lines = [json.loads(line) for line in ran.stdout.split("\n") if line.startswith("{")]
    return {line["name"]: line for line in lines}


@pytest.mark.parametrize("protocol", ["compatible", "responses", "chat"])
@pytest.mark.parametrize("what", ["chat", "tools"])
def test_the_ai_sdk_stays_warm(found: dict[str, dict[str, Any]], loop: Loop, what: str, protocol: str) -> None:
    told = found[f"{what} {protocol}"]
    assert "error" not in told, told
    assert len(told["found"]) == TURNS
    for turn in told["found"]:
        loop.turn(turn["prompt"], turn["sampled"], turn["fed"])


@pytest.mark.parametrize("protocol", ["compatible", "responses", "chat"])
@pytest.mark.parametrize("what", ["object", "streamed object"])
def test_the_ai_sdk_gets_objects(found: dict[str, dict[str, Any]], what: str, protocol: str) -> None:
    told = found[f"{what} {protocol}"]
    assert "error" not in told, told
    assert told["found"]["city"] in ("Oslo", "Bergen")


def test_openais_client_for_node(found: dict[str, dict[str, Any]]) -> None:
    told = found["node"]["found"]
    assert (bool(told["text"]), told["items"]) == (True, 1)
    assert told["status"] in ("completed", "incomplete")
