"""The memory panel as JSON, and the health and metrics routes."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.app.conftest import MODEL, Serve, user
from tests.app.site import Site
from tests.polling import until


def begin(http: httpx.Client, text: str = "Hello", **more: Any) -> str:
    made = http.post("/v1/chat/completions", json={"model": MODEL, "messages": [user(text)], **more}).json()
    return str(made["keepwarm"]["session_id"])


def saved(http: httpx.Client, session_id: str) -> bool:
    """Whether its KV has been written to disk, which happens after the answer."""
    return bool(http.get(f"/v1/sessions/{session_id}").json()["disk"]["used_bytes"])


def test_a_session_is_described_pinned_parked_warmed_dropped_and_deleted(site: Site, http: httpx.Client) -> None:
    session_id = begin(http)
    until(lambda: saved(http, session_id))
    (listed,) = http.get("/v1/sessions").json()["data"]
    found = http.get(f"/v1/sessions/{session_id}").json()
    assert found == listed
    assert (found["id"], found["tier"], found["title"]) == (session_id, "device", "Hello")
    assert found["device"]["tokens"] == found["tokens"] - 1
    assert found["device"]["used_bytes"] > 0
    assert found["device"]["reserved_bytes"] == 0
    assert 0 < found["predicted_ttft_ms"] < found["cold_ttft_ms"]

    def act(name: str, **params: str) -> httpx.Response:
        return http.post(f"/v1/sessions/{session_id}/{name}", params=params)

    assert act("pin").json()["is_pinned"]
    assert act("drop").status_code == 409
    assert not act("unpin").json()["is_pinned"]
    checked = act("verify")
    assert checked.status_code == 200, checked.text
    assert checked.json()["check"]["sentence"]
    parked = act("park").json()
    assert (parked["tier"], parked["device"]["used_bytes"]) == ("disk", 0)
    assert parked["disk"]["used_bytes"] > 0
    assert act("park", tier="moon").status_code == 400
    assert act("warm").status_code == 202
    until(lambda: http.get(f"/v1/sessions/{session_id}").json()["tier"] == "device")
    assert act("drop").json()["tier"] == "cold"
    assert http.delete(f"/v1/sessions/{session_id}").json()["deleted"]
    assert http.get(f"/v1/sessions/{session_id}").status_code == 404
    assert http.get("/v1/sessions").json()["data"] == []


def test_a_strangers_session_does_not_exist(site: Site, http: httpx.Client) -> None:
    session_id = begin(http)
    stranger = {"Authorization": f"Bearer {site.store.keys.add('stranger')[1]}"}
    assert http.get("/v1/sessions", headers=stranger).json()["data"] == []
    for method, path in [
        ("GET", ""),
        ("DELETE", ""),
        *(("POST", f"/{name}") for name in ("pin", "unpin", "park", "warm", "drop", "verify")),
    ]:
        refused = http.request(method, f"/v1/sessions/{session_id}{path}", headers=stranger)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "session_not_found")
        assert http.request(method, f"/v1/sessions/{session_id}{path}").status_code == 401
    assert len(site.manager.list_conversations("local")) == 1


def test_long_lists_come_in_pages(http: httpx.Client) -> None:
    made = [begin(http, f"Number {number}") for number in range(5)]
    first = http.get("/v1/sessions", params={"limit": 3}).json()
    assert first["has_more"]
    second = http.get("/v1/sessions", params={"limit": 3, "after": first["data"][-1]["id"]}).json()
    assert not second["has_more"]
    assert [row["id"] for row in first["data"] + second["data"]] == made[::-1]


def test_a_session_that_answers_says_so_and_is_busy(serve: Serve) -> None:
    site = serve(headless=True, token_delay_s=0.02)
    with httpx.Client(base_url=site.url, timeout=30) as http:
        body = {"model": MODEL, "messages": [user("a long one")], "stream": True}
        with http.stream("POST", "/v1/chat/completions", json=body) as stream:
            lines = stream.iter_lines()  # kept: an iterator that goes closes the connection
            next(lines)
            (row,) = http.get("/v1/sessions").json()["data"]
            assert row["is_running"]
            busy = http.post(f"/v1/sessions/{row['id']}/drop")
            assert (busy.status_code, busy.headers["Retry-After"]) == (409, "1")


def test_health_and_metrics_tell_those_who_may_know(serve: Serve) -> None:
    site = serve(headless=True)
    with httpx.Client(base_url=site.url, timeout=30) as http:
        begin(http)
        begin(http)
        http.post("/v1/chat/completions", json={"model": "other", "messages": [user("x")]})
        known = http.get("/health").json()
        assert (known["live"], known["ready"], known["model"], known["kernel"]) == (True, True, MODEL, "script")
        assert known["tiers"]["device"]["used"] > 0
        families = {family.name: family for family in text_string_to_metric_families(http.get("/metrics").text)}
        values = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in families.values()
            for sample in family.samples
        }
        assert values["keepwarm_turns_total",] == 2
        assert values["keepwarm_tokens_total", "reused"] > 0
        assert values["keepwarm_kv_bytes", "device", "used"] == known["tiers"]["device"]["used"]
        assert values["keepwarm_refusals_total", "model_not_found"] == 1
        assert values["keepwarm_requests_total", "/chat/completions", "200"] == 2
        assert values["keepwarm_ttft_seconds_count",] == 2
        assert values["keepwarm_inter_token_seconds_count",] > 10
        assert values["keepwarm_queue", "waiting"] == 0
        stranger = {"Host": "chat.example.org"}
        assert http.get("/health", headers=stranger).json() == {"live": True, "ready": True}
        assert http.get("/metrics", headers=stranger).status_code == 403


def test_moves_are_counted_with_their_seconds(site: Site, http: httpx.Client) -> None:
    session_id = begin(http)
    until(lambda: saved(http, session_id))
    text = http.get("/metrics").text
    (written,) = [float(line.split()[1]) for line in text.splitlines() if line.startswith("keepwarm_write_bytes_total")]
    assert written == http.get(f"/v1/sessions/{session_id}").json()["disk"]["used_bytes"]
    assert "keepwarm_writes_total 0.0\n" not in text
    assert "keepwarm_write_seconds_total 0.0\n" not in text
    assert http.post(f"/v1/sessions/{session_id}/park").json()["tier"] == "disk"
    assert http.post(f"/v1/sessions/{session_id}/warm").status_code == 202
    until(lambda: 'keepwarm_moves_total{origin="disk",target="device"} 1.0' in http.get("/metrics").text)
    text = http.get("/metrics").text
    assert 'keepwarm_moves_total{origin="device",target="disk"} 1.0' in text
    assert 'keepwarm_move_seconds_total{origin="disk",target="device"} 0.0\n' not in text


def test_the_log_has_no_word_of_what_was_said(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        begin(http, "hush-hush", prompt_cache_key="hush-key")
        http.post("/v1/chat/completions", json={"model": "x", "messages": [user("hush-hush")]})
        http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": {"text": "hush-hush"}}]})
    assert "completion owner=local session=" in caplog.text
    assert "request method=POST path='/v1/chat/completions' status=200" in caplog.text
    assert "hush" not in caplog.text
