"""At the start the server is asked what it is, and it and the tokenizer must belong together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from model_runtime.interface.config import RemoteConfig
from model_runtime.interface.errors import ModelLoadError
from model_runtime.remote.address import base_address
from model_runtime.remote.texts import RemoteTexts, load_texts
from tests.model_runtime.remote.conftest import Connect, Start
from tests.model_runtime.remote.remote_harness import GREEDY, ask, connected, tiny_texts
from tests.model_runtime.remote.scripted_dialects import LlamaCppScript
from tests.model_runtime.remote.scripted_server import ScriptedServer
from tests.model_runtime.tiny_tokenizers import ADDED, END, wrapped


def refusal(server: ScriptedServer, texts: RemoteTexts | None = None, **config: object) -> str:
    with pytest.raises(ModelLoadError) as refused:
        connected(server, texts=texts or tiny_texts(), **config)
    return str(refused.value)


@pytest.mark.parametrize("family", ["byte-level", "byte fallback", "unigram"])
def test_every_kind_of_tokenizer_agrees_with_itself(start: Start, connect: Connect, family: str) -> None:
    server = start(tokenizer=wrapped(family))
    engine = connect(server, texts=tiny_texts(family))
    assert ["one cache for all users" in note for note in engine.info.notes] == [True]
    assert ask(engine, (40, 41, 42)).end.error is None


def test_facts_are_the_servers(server: ScriptedServer, connect: Connect) -> None:
    engine = connect(server)
    info = engine.info
    assert (info.device, info.context_limit_tokens) == (server.address, 2048)
    assert info.vocabulary_tokens == len(server.tokenizer)
    assert engine.max_concurrent == server.slots
    assert connect(server, context_limit_tokens=100).info.context_limit_tokens == 100
    assert "at most 2,048 tokens" in refusal(server, context_limit_tokens=3000)


def test_padded_matrices_agree(start: Start, connect: Connect) -> None:
    server = start()
    server.vocabulary_tokens += 300
    assert connect(server).info.vocabulary_tokens == len(server.tokenizer), "no text stands for the others"


@pytest.mark.parametrize("more", [-1, 5000])
def test_another_size_of_vocabulary_is_refused(server: ScriptedServer, more: int) -> None:
    server.vocabulary_tokens += more
    said = refusal(server)
    assert f"{server.vocabulary_tokens:,} tokens and the tokenizer {len(server.tokenizer):,}" in said


def with_controls_swapped() -> PreTrainedTokenizerFast:
    """The same vocabulary, in which two control tokens have each other's ids."""
    return changed(lambda text: text.replace(ADDED[0], "@1").replace(ADDED[1], ADDED[0]).replace("@1", ADDED[1]))


def with_letters_swapped() -> PreTrainedTokenizerFast:
    """The same vocabulary, in which two letters have each other's ids."""
    return changed(lambda text: text.replace('"q":', '"@1":').replace('"z":', '"q":').replace('"@1":', '"z":'))


def changed(change: object) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer

    own = wrapped("byte-level")
    assert callable(change)
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(change(own.backend_tokenizer.to_str())), eos_token=END
    )
    other.chat_template = own.chat_template
    return other


def test_another_id_of_a_control_token_is_named(start: Start) -> None:
    server = start(tokenizer=with_controls_swapped())
    own = wrapped("byte-level").convert_tokens_to_ids(ADDED[0])
    assert f"{ADDED[0]} is {own} here and {own + 1} there" in refusal(server)


def test_other_text_of_an_id_is_named(start: Start) -> None:
    said = refusal(start(tokenizer=with_letters_swapped()))
    assert "the same" in said
    assert "'q" in said


def test_a_missing_control_token_is_named(start: Start) -> None:
    server = start()
    texts = tiny_texts()
    more = wrapped("byte-level")
    more.add_special_tokens({"additional_special_tokens": [AddedToken("<|im_end|>", special=True)]})
    more.chat_template = f"{more.chat_template}<|im_end|>"
    server.vocabulary_tokens += 1
    said = refusal(server, replace(texts, tokenizer=more))
    assert "<|im_end|> is" in said
    assert "no token of its own there" in said


def test_a_server_without_ids_is_refused(start: Start) -> None:
    dialect = LlamaCppScript()
    dialect.returns_tokens = False
    assert "token ids" in refusal(start(dialect))


@pytest.mark.parametrize("setting", ["repeat_penalty", "samplers", "min_p"])
def test_a_server_that_drops_a_setting_is_refused(start: Start, setting: str) -> None:
    dialect = LlamaCppScript()
    dialect.drops = setting
    assert f"did not honour {setting}" in refusal(start(dialect))


def test_something_else_than_an_engine_is_refused(start: Start) -> None:
    class Silent(LlamaCppScript):
        def get(self, server: ScriptedServer, path: str) -> None:
            return None

    assert "speaks no dialect in which token ids are sent and returned" in refusal(start(Silent()))


def test_no_server_is_refused(start: Start) -> None:
    server = start()
    server.close()
    assert refusal(server) == f"The engine at {server.address} cannot be reached (connection refused)."


def test_a_wrong_key_is_refused_and_a_right_one_is_sent(server: ScriptedServer, connect: Connect) -> None:
    server.key = "s3cret"
    assert "--engine-key-file" in refusal(server, key="other")
    assert "s3cret" not in repr(RemoteConfig((server.address,), key="s3cret"))
    assert ask(connect(server, key="s3cret"), (40, 41), GREEDY).end.error is None


def test_a_server_that_loads_is_waited_for(server: ScriptedServer, connect: Connect) -> None:
    import threading

    server.is_loading, said = True, []  # type: ignore[var-annotated]

    def load() -> None:
        server.is_loading = False

    timer = threading.Timer(0.3, load)
    timer.start()
    assert connect(server, said=said).info.device == server.address
    timer.join()
    assert ["Waiting for it." in sentence for sentence in said] == [True]


@pytest.mark.parametrize(
    ("typed", "used"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://127.0.0.1:8080/v1/", "http://127.0.0.1:8080"),
        ("https://example.org/llm/v1", "https://example.org/llm"),
        (" http://[::1]:80/ ", "http://[::1]:80"),
    ],
)
def test_addresses(typed: str, used: str) -> None:
    assert base_address(typed) == used


@pytest.mark.parametrize(
    "typed", ["", "127.0.0.1:8080", "ftp://x", "http://", "http://x:99999", "http://a:b@x", "http://x?y", "http://x:0"]
)
def test_what_is_no_address_is_refused(typed: str) -> None:
    with pytest.raises(ValueError, match=r"address|port|password"):
        base_address(typed)


def test_texts_come_from_a_directory(tmp_path: Path) -> None:
    wrapped("byte-level").save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 6], "temperature": 0.4, "do_sample": true}')
    texts = load_texts(RemoteConfig(("http://x",), model="big", tokenizer=str(tmp_path)), lambda sentence: None)
    assert {5, 6} < texts.stop_token_ids
    assert texts.sampling.temperature == 0.4
    assert texts.name == tmp_path.name


@pytest.mark.parametrize("settings", [{"model": "big"}, {"model": "big", "tokenizer": "/nowhere"}])
def test_an_unknown_tokenizer_is_refused(settings: dict[str, str]) -> None:
    with pytest.raises(ModelLoadError, match="--tokenizer"):
        load_texts(RemoteConfig(("http://x",), **settings), lambda sentence: None)
