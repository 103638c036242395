"""The configurations in deploy/: valid by their published schemas, with flags, paths and ports that exist."""

from __future__ import annotations

import configparser
import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema_rs
import kubernetes_validate
import pytest
import yaml

from app.__main__ import parser
from app.cli.engine_flags import remote_config
from app.cli.model_flags import model_config
from app.paths import API_PATH, HEALTH_PATH, OLLAMA_PATH, TOKEN_PATHS, is_api

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = "1.33"  # the oldest version that is still looked after
MANIFESTS = sorted(path for path in (DEPLOY / "kubernetes").rglob("*.yaml") if path.name != "kustomization.yaml")
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
RAY = sorted((DEPLOY / "ray-serve").glob("*.yaml"))
UNIT = DEPLOY / "systemd" / "keepwarm@.service"
PORT = 7860


def objects(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def unit() -> configparser.ConfigParser:
    found = configparser.ConfigParser(strict=True, interpolation=None)
    found.optionxform = str  # type: ignore[assignment, method-assign]
    found.read(UNIT)
    return found


def containers(kind: str) -> list[dict[str, Any]]:
    every = itertools.chain.from_iterable(map(objects, MANIFESTS))
    return [one for found in every if found["kind"] == kind for one in found["spec"]["template"]["spec"]["containers"]]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_valid(path: Path) -> None:
    for one in objects(path):
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


def test_a_manifest_that_is_not_valid_is_noticed() -> None:
    one = objects(DEPLOY / "kubernetes" / "disruption.yaml")[0]
    one["spec"]["maxUnavailble"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


def test_everything_that_kustomize_names_is_there() -> None:
    for path in (DEPLOY / "kubernetes").rglob("kustomization.yaml"):
        (found,) = objects(path)
        assert all((path.parent / name).exists() for name in found["resources"])
        for generated in found.get("configMapGenerator", ()):
            assert all((path.parent / name).is_file() for name in generated["files"])
    shards = {path.parent.name for path in (DEPLOY / "kubernetes").glob("?/kustomization.yaml")}
    assert shards == set(re.findall(r"upstream keepwarm_(\w+)", (DEPLOY / "nginx" / "keepwarm.conf").read_text()))


def test_compose_is_valid() -> None:
    schema = json.loads((Path(__file__).with_name("compose-spec.json")).read_text())
    validator = jsonschema_rs.validator_for(schema)
    validator.validate(COMPOSE)
    assert (DEPLOY / "compose" / COMPOSE["services"]["keepwarm"]["build"] / "Dockerfile").is_file()
    with pytest.raises(jsonschema_rs.ValidationError):
        validator.validate({**COMPOSE, "servces": {}})


def test_the_image_can_write_to_every_volume() -> None:
    """A volume begins as what the image has at its place; a place that is not there becomes root's."""
    image = (ROOT / "Dockerfile").read_text()
    (made,) = re.findall(r"install -d -o keepwarm -g keepwarm (.+)$", image, re.MULTILINE)
    (declared,) = re.findall(r"^VOLUME (.+)$", image, re.MULTILINE)
    mounted = [volume.partition(":")[2] for volume in COMPOSE["services"]["keepwarm"]["volumes"]]
    assert {*json.loads(declared), *mounted} <= set(made.split())


def commands() -> dict[str, list[str]]:
    """Every command line of Keepwarm, by where it is."""
    settings = unit()["Service"]
    line = re.sub(r"\s*\$FLAGS", "", settings["ExecStart"]).replace("${PORT}", "7861").replace("%i", "a")
    ray = {path.stem: re.search(r"^# (keepwarm serve .+)$", path.read_text(), re.MULTILINE) for path in RAY}
    (shard,) = containers("StatefulSet")
    docker = re.search(r"^CMD (\[.+\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert docker is not None
    return {
        "compose": COMPOSE["services"]["keepwarm"]["command"],
        "kubernetes": shard["args"],
        "systemd": shlex.split(line)[1:],
        **{f"ray {name}": shlex.split(found[1])[1:] for name, found in ray.items() if found is not None},
        "Dockerfile": json.loads(docker[1]),
    }


@pytest.mark.parametrize("where", commands())
def test_every_flag_exists(where: str) -> None:
    arguments = parser().parse_args(commands()[where])
    assert arguments.command == "serve"
    model_config(arguments)
    remote_config(arguments)


def test_engines_are_where_they_are_looked_for() -> None:
    vllm = COMPOSE["services"]["vllm"]
    arguments = parser().parse_args(COMPOSE["services"]["keepwarm"]["command"])
    assert arguments.engine == ["http://vllm:8000"]
    assert f"--served-model-name={arguments.model}" in vllm["command"]
    assert vllm["command"][0] == arguments.tokenizer, "`vllm serve` takes the model without a flag"
    assert "--enable-prompt-tokens-details" in vllm["command"], "or receipts would not say what was reused"
    found = commands()
    for path in RAY:
        ray, arguments = yaml.safe_load(path.read_text()), parser().parse_args(found[f"ray {path.stem}"])
        assert arguments.engine == [f"http://{ray['http_options']['host']}:{ray['http_options']['port']}"]
        assert arguments.engine_header == "x-session-id", "what Ray's router hashes"
        settings = ray["applications"][0]["args"]
        if path.stem == "llama":
            assert settings["model"] == arguments.tokenizer
            continue
        (model,) = settings["llm_configs"]
        assert model["model_loading_config"] == {"model_id": arguments.model, "model_source": arguments.tokenizer}
        assert model["engine_kwargs"]["max_model_len"] == arguments.context_limit


def test_probes_hit_what_is_there() -> None:
    (shard,) = containers("StatefulSet")
    ports = {port["name"]: port["containerPort"] for port in shard["ports"]}
    assert ports == {"http": PORT}
    assert f"EXPOSE {PORT}" in (ROOT / "Dockerfile").read_text()
    for name in ("startupProbe", "readinessProbe"):
        assert shard[name]["tcpSocket"] == {"port": "http"}, "a full disk, or an engine that is away, hides no page"
        assert "httpGet" not in shard[name]
    script = shard["livenessProbe"]["exec"]["command"][-1]
    compile(script, "probe", "exec")
    assert f"http://127.0.0.1:{PORT}{HEALTH_PATH}" in script
    (front,) = containers("Deployment")
    for name in ("livenessProbe", "readinessProbe"):
        assert f"location = {front[name]['httpGet']['path']} " in (DEPLOY / "kubernetes" / "front.conf").read_text()


def test_the_front_of_the_cluster_is_the_same_front() -> None:
    """But for addresses and TLS."""

    def rules(path: Path) -> list[str]:
        lines = [line.strip() for line in path.read_text().splitlines()]
        other = ("#", "upstream", "listen", "server_name", "ssl_", "proxy_set_header X-Forwarded-Proto")
        return [line for line in lines if not line.startswith(other)]

    assert rules(DEPLOY / "nginx" / "keepwarm.conf") == rules(DEPLOY / "kubernetes" / "front.conf")


def test_the_front_knows_which_paths_are_for_programs() -> None:
    for conf in (DEPLOY / "nginx" / "keepwarm.conf", DEPLOY / "kubernetes" / "front.conf", DEPLOY / "caddy/Caddyfile"):
        text = conf.read_text()
        assert text.count("{") == text.count("}")
        found = re.search(r"location ~ (\S+) \{|@program path_regexp (\S+)", text)
        assert found is not None
        pattern = found[1] or found[2]
        assert text.count(pattern) == (3 if conf.name == "Caddyfile" else 1), "the same for errors"
        for path in (f"{API_PATH}/models", f"{OLLAMA_PATH}/chat", *TOKEN_PATHS, "/", HEALTH_PATH, "/tokenizer", "/v1x"):
            assert bool(re.search(pattern, path)) is is_api(path), path


def test_the_unit_is_hardened() -> None:
    settings = unit()["Service"]
    for name in ("NoNewPrivileges", "ProtectHome", "PrivateTmp", "ProtectKernelTunables", "RestrictNamespaces"):
        assert settings[name] == "yes"
    assert settings["ProtectSystem"] == "strict"
    assert settings["CapabilityBoundingSet"] == ""
    assert "keepwarm/%i" in settings["StateDirectory"]
    drain_s = parser().parse_args(commands()["systemd"]).drain_limit
    assert float(settings["TimeoutStopSec"]) > drain_s * 2
    (pod,) = [one["spec"]["template"]["spec"] for one in objects(MANIFESTS_SHARD) if one["kind"] == "StatefulSet"]
    assert pod["terminationGracePeriodSeconds"] > drain_s * 2


MANIFESTS_SHARD = DEPLOY / "kubernetes" / "shard" / "shard.yaml"
