"""Decides who, where and for how long: conversations, their ledgers, leases on KV, and runs. Never imports torch."""
