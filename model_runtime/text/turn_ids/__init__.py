"""The ids of a turn: what the template writes, where the texts are in it, and what the tokenizer makes of both."""
