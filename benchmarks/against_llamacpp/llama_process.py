"""Runs llama.cpp through `llama-cpp-python`, with the Python that has it: MODEL.gguf THREADS TOKENS FLASH.

FLASH is "on" or "off". KVs are float16. Prints what the library was built for, then answers each line of JSON on its
standard input with one: `read` feeds ids behind the first `kept` tokens, `decode` goes on greedily and takes its tokens
back, `loss` is the mean negative log-likelihood of ids, `recall` takes the memory of ids from a file.
`benchmarks.against_llamacpp` starts it.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time

import llama_cpp as library
import numpy as np

MOST_TOKENS = 2048  # of one call


class Llama:
    """A model and its context. The best token is numpy's: llama.cpp's own sampler copies all logits first."""

    def __init__(self, path: str, threads: int, tokens: int, flash: str) -> None:
        library.llama_log_set(_SILENT, ctypes.c_void_p(0))
        library.llama_backend_init()
        self._model = library.llama_model_load_from_file(path.encode(), library.llama_model_default_params())
        params = library.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = tokens, MOST_TOKENS, 512
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = int(flash == "on")
        self._context = library.llama_init_from_model(self._model, params)
        assert self._context, "llama.cpp cannot open the model"
        self._memory = library.llama_get_memory(self._context)
        self._vocabulary = library.llama_vocab_n_tokens(library.llama_model_get_vocab(self._model))
        self._length = 0
        self._next = 0

    def read(self, ids: list[int], kept: int) -> float:
        """Seconds until the token behind all `ids` is known, the first `kept` of which are in memory."""
        self._crop(kept)
        begin = time.perf_counter()
        for start in range(kept, len(ids), MOST_TOKENS):
            self._feed(ids[start : start + MOST_TOKENS])
        self._next = self._best()
        return time.perf_counter() - begin

    def recall(self, ids: list[int], kept: int, path: str) -> float:
        """Has `ids` in memory afterwards: from the file, or read, and then kept there."""
        if os.path.exists(path):
            self._crop(0)
            room, count = (library.llama_token * len(ids))(), ctypes.c_size_t()
            file = path.encode()
            assert library.llama_state_seq_load_file(self._context, file, 0, room, len(ids), ctypes.byref(count))
            assert list(room[: count.value]) == ids, f"{path} is another history: delete it"
            self._length, self._next = len(ids), ids[-1]
            return 0.0
        seconds = self.read(ids, kept)
        tokens = (library.llama_token * len(ids))(*ids)
        assert library.llama_state_seq_save_file(self._context, path.encode(), 0, tokens, len(ids))
        return seconds

    def decode(self, tokens: int) -> float:
        """Seconds of `tokens` steps. The memory is as before afterwards."""
        length, first = self._length, self._next
        begin = time.perf_counter()
        for _ in range(tokens):
            self._feed([self._next])
            self._next = self._best()
        seconds = time.perf_counter() - begin
        self._crop(length)
        self._next = first
        return seconds

    def loss(self, ids: list[int], piece: int) -> float:
        """The mean negative log-likelihood in nats of each id behind the first, read `piece` at a time."""
        self._crop(0)
        total = 0.0
        for start in range(0, len(ids) - 1, piece):
            part, then = ids[start : start + piece], ids[start + 1 : start + piece + 1]
            batch = library.llama_batch_init(len(part), 0, 1)
            batch.n_tokens = len(part)
            for i, token in enumerate(part):
                batch.token[i], batch.pos[i], batch.logits[i] = token, start + i, 1
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            assert library.llama_decode(self._context, batch) == 0
            numbers = library.llama_get_logits(self._context)
            logits = np.ctypeslib.as_array(numbers, (len(part), self._vocabulary)).astype(np.float64)
            library.llama_batch_free(batch)
            largest = logits.max(1)
            sums = largest + np.log(np.exp(logits - largest[:, None]).sum(1))
            total += float((sums[: len(then)] - logits[np.arange(len(then)), then]).sum())
        self._length = len(ids) - 1
        return total / (len(ids) - 1)

    def _feed(self, ids: list[int]) -> None:
        tokens = (library.llama_token * len(ids))(*ids)
        assert library.llama_decode(self._context, library.llama_batch_get_one(tokens, len(ids))) == 0
        self._length += len(ids)

    def _best(self) -> int:
        logits = library.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())

    def _crop(self, length: int) -> None:
        library.llama_memory_seq_rm(self._memory, -1, length, -1)
        self._length = length


@library.llama_log_callback
def _SILENT(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    if level >= 4:  # errors
        sys.stderr.write(text.decode(errors="replace"))


def main() -> None:
    path, threads, tokens, flash = sys.argv[1:]
    llama = Llama(path, int(threads), int(tokens), flash)
    print(library.llama_print_system_info().decode().replace("\n", " "), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        found = getattr(llama, asked.pop("do"))(**asked)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
