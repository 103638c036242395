"""Attention of model families that transformers never hands to an attention function (Falcon, BLOOM, MPT, GPT-J...)."""
