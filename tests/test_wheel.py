"""The wheel alone: what is in it, and that a server installed from it answers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.app.cli.start_process import StartedProcess, ask, clean_environment
from tests.model_runtime.tiny_models import tiny_llama

ROOT = Path(__file__).parents[1]
PACKAGES = ("app", "sessions", "model_runtime")
SOURCES = (*PACKAGES, "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since a build folder of an earlier build may hold files that are gone."""
    copy, built = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(built), str(copy))
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare environment with the wheel in it. Torch and the like come from this environment's folder through a .pth
    file: the .pth files of that folder, which lead to the source tree, are not followed from there."""
    environment = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    _pip("--python", str(environment / "bin" / "python"), "install", "--no-deps", "--no-index", str(wheel))
    site_packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(environment)}))
    (site_packages / "shared.pth").write_text(sysconfig.get_path("purelib"))
    return environment


def _pip(*arguments: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_file_of_the_packages_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    there = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert there - inside == set()
    assert {f"{package}/py.typed" for package in PACKAGES} <= inside
    assert {Path(name).suffix for name in inside} >= {".js", ".css", ".html", ".svg", ".c", ".h", ".cu", ".cuh"}
    assert not {name for name in inside if name.startswith(("tests/", "benchmarks/"))}


def test_the_installed_server_gives_its_first_answer(installed: Path, tmp_path: Path) -> None:
    environment = clean_environment(HOME=str(tmp_path / "home"))
    environment.pop("PYTHONPATH", None)
    environment.pop("VIRTUAL_ENV", None)
    (tmp_path / "home").mkdir()
    where = "import app, model_runtime, sessions; print(app.__file__, model_runtime.__file__, sessions.__file__)"
    python = installed / "bin" / "python"
    printed = subprocess.run(
        [python, "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert printed.returncode == 0, printed.stderr
    assert all(Path(path).is_relative_to(installed) for path in printed.stdout.split()), printed.stdout

    model = tiny_llama(tmp_path / "model")
    server = StartedProcess(
        tmp_path / "server",
        ["--headless", "--model", str(model), "--quantization", "none"],
        environment,
        program=[str(installed / "bin" / "keepwarm")],
        directory=tmp_path,
    )
    try:
        answer = ask(server.url(), "first", "Hello")
        assert answer["keepwarm"]["fed"] > 0
        assert answer["usage"]["completion_tokens"] > 0
    finally:
        assert server.stop() == 0
