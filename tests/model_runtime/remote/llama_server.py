"""Runs llama.cpp's server out of PyPI's `xllamacpp`, with the Python that has it: MODEL.gguf PORT SLOTS TOKENS FOLDER.

TOKENS is the context of all slots together; FOLDER is where slots may be saved. Prints `ready` and serves until its
standard input is closed.
"""

import sys

import xllamacpp

model, port, slots, tokens, folder = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path = model
params.hostnames, params.port = ["127.0.0.1"], int(port)
params.n_parallel, params.n_ctx = int(slots), int(tokens)
params.endpoint_slots = params.endpoint_props = True
params.slot_save_path = folder
# More threads than idle processors make it slower by far: they wait for each other in busy loops.
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
print("ready", flush=True)
sys.stdin.read()
