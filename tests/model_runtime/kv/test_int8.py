"""KVs at 8 bits below the device: a quarter of the bytes, close to exact, and never taken for exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from model_runtime.engine.engine import LocalEngine
from model_runtime.interface.config import EngineConfig
from model_runtime.interface.errors import ModelLoadError, SegmentRefused
from model_runtime.interface.numerics import with_long_rope
from model_runtime.interface.segments import identify
from model_runtime.kv.geometry import KVGeometry, LayerShape
from model_runtime.kv.saved_rows import SavedRows
from model_runtime.kv.segment import copy_in, copy_out
from model_runtime.kv.slab import KVSlab
from tests.model_runtime.harness import GREEDY, WatchedEngine, loaded_tiny
from tests.model_runtime.tiny_models import tiny_llama, tiny_long_rope

GEOMETRY = KVGeometry((LayerShape(2, 64, 64), LayerShape(2, 64, 32)), torch.float32, torch.device("cpu"))
IDS = tuple(range(150))
ROWS = SavedRows(GEOMETRY, "int8")


def with_outliers(geometry: KVGeometry = GEOMETRY) -> KVSlab:
    """Some channels of the keys and some tokens of the values are thirty times as large as the rest."""
    slab = KVSlab(geometry)
    slab.ensure_room(len(IDS))
    generator = torch.Generator().manual_seed(3)
    for keys, values in zip(slab.keys, slab.values, strict=True):
        keys.copy_(torch.randn(keys.shape, generator=generator))
        keys[:, :, :3] *= 30
        values.copy_(torch.randn(values.shape, generator=generator))
        values[:, ::7] *= 30
    slab.appended(IDS)
    return slab


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_come_back_through_files_within_half_a_step(dtype: torch.dtype, tmp_path: Path) -> None:
    geometry = replace(GEOMETRY, dtype=dtype)
    rows, slab, back = SavedRows(geometry, "int8"), with_outliers(geometry), KVSlab(geometry)
    segment = rows.packed(copy_out(slab, geometry, identify(None, IDS, "a int8 cold")))
    size_bytes = rows.save(segment, tmp_path / "x")
    assert segment.data_bytes == rows.bytes_for(len(IDS))
    assert size_bytes < 0.29 * geometry.bytes_per_token * len(IDS) * 4 / dtype.itemsize
    copy_in(back, geometry, rows.unpacked(rows.load(segment.identity, tmp_path / "x")))
    with safe_open(tmp_path / "x", framework="pt") as file:  # other tools can look inside
        assert file.get_tensor("layers.1.keys").dtype is torch.int8
    for layer in range(2):
        keys, there = back.keys[layer][:, :150].float(), slab.keys[layer][:, :150].float()
        for group in range(0, 150, 64):
            part = slice(group, group + 64)
            step = there[:, part].abs().amax(1, keepdim=True) / 127
            assert ((keys[:, part] - there[:, part]).abs() <= step * 0.51 + there[:, part].abs() * 0.008).all()
        values, there = back.values[layer][:, :150].float(), slab.values[layer][:, :150].float()
        step = there.abs().amax(2, keepdim=True) / 127
        assert ((values - there).abs() <= step * 0.51 + there.abs() * 0.008).all()


def test_a_key_channel_that_is_always_large_costs_the_others_nothing() -> None:
    """What the scale a channel is for: one a token would lose the small channels."""
    slab, back = with_outliers(), KVSlab(GEOMETRY)
    copy_in(back, GEOMETRY, ROWS.unpacked(ROWS.packed(copy_out(slab, GEOMETRY, identify(None, IDS, "a")))))
    error = (back.keys[0][:, :150, 3:] - slab.keys[0][:, :150, 3:]).abs().mean()
    assert error < 0.01  # a scale a token: 0.2


def test_zeros_stay_zeros() -> None:
    slab, back = KVSlab(GEOMETRY), KVSlab(GEOMETRY)
    slab.ensure_room(len(IDS))
    for tensor in (*slab.keys, *slab.values):
        tensor.zero_()
    slab.appended(IDS)
    copy_in(back, GEOMETRY, ROWS.unpacked(ROWS.packed(copy_out(slab, GEOMETRY, identify(None, IDS, "a")))))
    assert all(not t[:, :150].any() for t in (*back.keys, *back.values))


def test_an_exact_reader_refuses_int8_and_vice_versa(tmp_path: Path) -> None:
    exact, identity = SavedRows(GEOMETRY, "exact"), identify(None, IDS, "a")
    raw = copy_out(with_outliers(), GEOMETRY, identity)
    ROWS.save(ROWS.packed(raw), tmp_path / "int8")
    exact.save(exact.packed(raw), tmp_path / "exact")
    for rows, name in ((exact, "int8"), (ROWS, "exact")):
        with pytest.raises(SegmentRefused):
            rows.load(identity, tmp_path / name)
    own = GEOMETRY.dtype
    rounded = SavedRows(replace(GEOMETRY, dtype=torch.float16), "exact")
    names = [exact.fingerprint("a", own), ROWS.fingerprint("a", own), rounded.fingerprint("a", own)]
    assert names[0] == "a"
    assert len(set(names)) == 3


def test_odd_heads_are_refused_at_the_start() -> None:
    with pytest.raises(ModelLoadError, match="odd sizes"):
        SavedRows(replace(GEOMETRY, layers=(LayerShape(1, 3, 3),)), "int8")


@pytest.mark.parametrize("tiny", [tiny_llama, tiny_long_rope])
def test_the_drift_is_measured_at_the_start_and_answers_go_on_behind_int8(
    tiny: Callable[[Path], Path], tmp_path: Path
) -> None:
    loaded = loaded_tiny(tiny(tmp_path / "model"))
    plain = LocalEngine(loaded, EngineConfig(), 512)
    assert plain.info.int8_drift is None
    watched = WatchedEngine(loaded, EngineConfig(cold_kv_dtype="int8"))
    engine = watched.engine
    drift = engine.info.int8_drift
    assert drift is not None
    assert drift.times_smaller > 3
    assert abs(drift.nll - drift.exact_nll) < 0.01
    assert drift.top1_agreement > 0.85  # a random model has near-ties everywhere
    assert "not exact" in drift.sentence
    assert engine.info.fingerprint != plain.info.fingerprint
    ledger = list(range(5, 90))
    kv = engine.new_kv()
    watched.submit(kv, ledger).wait()
    fingerprint = engine.info.fingerprint
    identity = identify(None, ledger, with_long_rope(fingerprint) if kv.is_long_rope else fingerprint)
    segment = engine.stage(kv, identity)
    assert segment.data_bytes == engine.segment_bytes(len(ledger))
    back = engine.new_kv()
    engine.restore(back, [segment])
    finished = watched.submit(back, [*ledger, 7], GREEDY).wait()
    assert (finished.fed_tokens, finished.reused_tokens) == (1, len(ledger))
    watched.close()
    plain.close()
