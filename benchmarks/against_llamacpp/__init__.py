"""How fast is the same file here and in llama.cpp, on the same threads, in turns?"""
