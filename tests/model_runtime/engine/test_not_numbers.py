"""NaN and infinite logits end one answer with a sentence and no other answer, and nothing of them is kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType

from model_runtime.decoding.sampling import are_numbers
from model_runtime.forward.native_forward import NativeForward
from model_runtime.interface.config import EngineConfig, ModelConfig
from model_runtime.interface.events import Finished, FinishReason
from model_runtime.interface.protocol import ReadRequest
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.interface.segments import identify
from model_runtime.kv.geometry import KVGeometry, LayerShape
from model_runtime.kv.slab import KVSlab
from model_runtime.loading.loaded import LoadedModel
from model_runtime.loading.loading import load_model
from model_runtime.weights.native_matrix import NativeEmbedding
from tests.conftest import TinyDir
from tests.model_runtime.harness import GREEDY, WatchedEngine, loaded_tiny
from tests.model_runtime.tiny_gguf import write_gguf
from tests.model_runtime.tiny_models import tiny_wide_llama
from tests.polling import until

BAD = 77  # its embedding is NaN
GOOD = (3, 70, 71, 72, 73, 70, 71, 72)
SENTENCE = "The model computed no valid numbers for the next token"
WAYS = {
    "greedy": GREEDY,
    "sampled": SamplingParams(temperature=0.9, seed=3, max_new_tokens=12),
    "all of them": SamplingParams(temperature=0.9, top_k=0, top_p=1.0, min_p=0.1, seed=3, max_new_tokens=12),
    "penalties": replace(GREEDY, repetition_penalty=1.2, presence_penalty=0.5),
    "log-probabilities": replace(GREEDY, top_logprobs=3),
}


def spoilt(loaded: LoadedModel) -> LoadedModel:
    embedding = loaded.model.get_input_embeddings()
    if isinstance(embedding, NativeEmbedding):  # its blocks are refused with such numbers
        embedding.register_forward_hook(without_number)
        return loaded
    with torch.no_grad():
        embedding.weight[BAD] = torch.nan
    return loaded


def without_number(_: torch.nn.Module, asked: tuple[torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    return rows.masked_fill((asked[0] == BAD).unsqueeze(-1), torch.nan)


@pytest.fixture(scope="module")
def native_model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """A GGUF file and the directory of its conversion, which one load makes and the others find."""
    directory = tmp_path_factory.mktemp("native")
    path = write_gguf(tiny_wide_llama(directory / "wide"), directory / "wide.gguf", GGMLQuantizationType.Q4_1)
    return ModelConfig(str(path), "shipped", cache_dir=directory / "cache", device="cpu")


@pytest.fixture(params=["torch", "native", "arena"])
def watched(request: pytest.FixtureRequest, tiny_dir: TinyDir, tmp_path: Path) -> Iterator[WatchedEngine]:
    config = EngineConfig(prefill_chunk_tokens=32, prompt_lookup="on")
    if request.param == "native":
        loaded = load_model(request.getfixturevalue("native_model"), print)
        loaded = replace(loaded, stop_token_ids=frozenset())
    else:
        loaded = loaded_tiny(shutil.copytree(tiny_dir("llama"), tmp_path / "llama"))
        if request.param == "arena":
            config = replace(config, kv_arena_bytes=4 << 20)
    engine = WatchedEngine(spoilt(loaded), config)
    if request.param == "native":
        assert isinstance(engine.engine.runtime.forward, NativeForward)
    yield engine
    engine.close()


@pytest.mark.parametrize("way", WAYS)
def test_one_answer_ends_with_a_sentence_and_its_neighbours_go_on(way: str, watched: WatchedEngine) -> None:
    expected = watched.submit(watched.engine.new_kv(), GOOD, GREEDY)
    expected.wait()
    kv, bad_kv = watched.engine.new_kv(), watched.engine.new_kv()
    neighbour = watched.submit(kv, GOOD, GREEDY)
    failing = watched.submit(bad_kv, (*GOOD, BAD, 5, 6), WAYS[way])
    finished = failing.wait()
    assert (finished.reason, failing.token_ids) == (FinishReason.FAILED, ())
    assert finished.error is not None
    assert finished.error.startswith(SENTENCE)
    assert neighbour.wait().reason is FinishReason.LENGTH
    assert neighbour.token_ids == expected.token_ids
    watched.rest()
    kept = bad_kv.length_tokens  # rows of the same forward may be spoilt, too: no weight times NaN is NaN
    assert kept <= len(GOOD)
    assert list(bad_kv.token_ids) == list(GOOD[:kept])
    assert all(torch.isfinite(tensor[:, :kept]).all() for tensor in (*bad_kv.keys, *bad_kv.values))
    again = watched.submit(bad_kv, GOOD, GREEDY)
    assert again.wait().reused_tokens == min(kept, len(GOOD) - 1)
    assert again.token_ids == expected.token_ids


def test_rows_that_a_read_ahead_left_are_not_saved(watched: WatchedEngine) -> None:
    kv, done = watched.engine.new_kv(), list[object]()
    fingerprint = watched.engine.info.fingerprint
    for ids in (GOOD, (*GOOD, BAD, 5)):  # one after the other: the good rows are of a forward of their own
        done.clear()
        watched.engine.read(ReadRequest(ids, kv), done.append)
        until(lambda: any(isinstance(event, Finished) for event in done), 60.0, 0.0005)
    assert kv.length_tokens == len(GOOD) + 2
    good = identify(None, GOOD, fingerprint)
    assert watched.engine.stage(kv, good).data_bytes > 0
    with pytest.raises(ValueError, match="not numbers"):
        watched.engine.stage(kv, identify(good, (BAD, 5), fingerprint))


def test_infinite_logits_count_as_none(tiny_dir: TinyDir, tmp_path: Path) -> None:
    loaded = loaded_tiny(shutil.copytree(tiny_dir("llama"), tmp_path / "llama"))
    watched = WatchedEngine(loaded)
    try:
        first = watched.submit(watched.engine.new_kv(), GOOD, GREEDY)
        first.wait()
        run, bad_length = watched.engine.runtime.forward.run, len(GOOD) + 4

        @torch.inference_mode()
        def overflowing(feeds: object, abort_if: Callable[[], bool] = lambda: False) -> torch.Tensor:
            logits = run(feeds, abort_if)
            for row, feed in zip(logits, [f for f in feeds if f.logit_rows], strict=True):  # type: ignore[attr-defined]
                if feed.slab.length_tokens == bad_length:
                    row[3] = -torch.inf if feed.slab is minus else torch.inf
            return logits

        watched.engine.runtime.forward.run = overflowing  # type: ignore[method-assign]
        plus, minus = watched.engine.new_kv(), watched.engine.new_kv()
        for kv in (plus, minus):
            answer = watched.submit(kv, GOOD, GREEDY)
            finished = answer.wait()
            assert finished.error is not None
            assert finished.error.startswith(SENTENCE)
            assert answer.token_ids == first.token_ids[:4]  # what was said before stays
            watched.rest()
            assert kv.length_tokens == bad_length - 1
    finally:
        watched.close()


def test_every_kind_of_row() -> None:
    rows = torch.randn(6, 500)
    rows[1, 499], rows[2, 0], rows[3, 250] = torch.nan, torch.inf, -torch.inf
    rows[4] = torch.nan
    assert are_numbers(rows).tolist() == [True, False, False, False, False, True]


def test_a_slab_is_cropped_before_its_first_bad_row() -> None:
    geometry = KVGeometry((LayerShape(2, 4, 4),) * 3, torch.float16, torch.device("cpu"))
    for layer, row in ((0, 5), (2, 0), (1, 9)):
        slab = KVSlab(geometry)
        slab.ensure_room(12)
        for tensor in (*slab.keys, *slab.values):
            tensor.zero_()
        slab.values[layer][1, row, 3] = torch.nan
        slab.values[layer][0, 11] = torch.nan  # garbage behind what it holds
        slab.appended(range(10))
        slab.crop_to_numbers(10)
        assert slab.token_ids == list(range(row))


def test_an_id_that_the_model_does_not_know_is_a_sentence(tiny_dir: TinyDir) -> None:
    watched = WatchedEngine(loaded_tiny(tiny_dir("llama")))
    try:
        for bad in (512, 2**31, -1):
            finished = watched.submit(watched.engine.new_kv(), (3, bad, 5)).wait()
            assert finished.error == "This conversation has tokens that the model does not know."
        assert watched.submit(watched.engine.new_kv(), (3, 511, 5)).wait().reason is FinishReason.LENGTH
    finally:
        watched.close()
