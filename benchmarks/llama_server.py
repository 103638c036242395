"""Runs llama.cpp's server out of PyPI's `xllamacpp`, with the Python that has it: MODEL.gguf PORT THREADS TOKENS FLASH.

FLASH is "on" or "off". KVs are float16. Prints what the library was built for, then `ready`, and serves until its
standard input is closed. `benchmarks.against_llamacpp` starts it.
"""

import sys

import xllamacpp

model, port, threads, tokens, flash = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path = model
params.hostnames, params.port = ["127.0.0.1"], int(port)
params.n_parallel, params.n_ctx = 1, int(tokens)
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
kinds = xllamacpp.llama_flash_attn_type
is_on = flash == "on"
params.flash_attn_type = kinds.LLAMA_FLASH_ATTN_TYPE_ENABLED if is_on else kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = xllamacpp.Server(params)
print(xllamacpp.get_system_info().replace("\n", " "), flush=True)
print("ready", flush=True)
sys.stdin.read()
