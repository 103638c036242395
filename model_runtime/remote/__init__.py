"""An engine elsewhere behind the same interface: vLLM, SGLang, llama.cpp's server. Imports no torch."""
