"""A server for an engine elsewhere starts and answers where torch is not there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.model_runtime.remote.scripted_dialects import LlamaCppScript
from tests.model_runtime.remote.scripted_server import ScriptedServer, byte_level

PROGRAM = """
import sys
sys.modules["torch"] = None  # importing it fails
import json
from pathlib import Path
from app.budgets import Budgets
from app.wiring import ServiceSettings, open_services
from model_runtime.interface.config import ModelConfig, RemoteConfig
from sessions.types import RunPhase

folder, address = sys.argv[1:]
remote = RemoteConfig((address,), model="tiny", tokenizer=folder + "/tokenizer")
settings = ServiceSettings(Path(folder) / "data", ModelConfig(), Budgets(None, None), remote=remote)
with open_services(settings, lambda sentence: None) as services:
    import app.server.site
    manager = services.manager
    conversation_id = manager.create_conversation("ada").conversation_id
    run = manager.send("ada", conversation_id, "Hello")
    while (snapshot := run.snapshot()).phase is not RunPhase.DONE:
        run.wait(snapshot.version, 1.0)
    print(json.dumps([snapshot.message.status.value, snapshot.message.text]))
"""


def test_it_answers_without_torch(tmp_path: Path) -> None:
    byte_level().save_pretrained(tmp_path / "tokenizer")
    server = ScriptedServer(LlamaCppScript())
    try:
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path), server.address],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        server.close()
    assert ended.returncode == 0, ended.stderr
    status, text = json.loads(ended.stdout.splitlines()[-1])
    assert status == "complete"
    assert text.startswith("I read ")
