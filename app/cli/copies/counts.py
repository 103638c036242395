"""Numbers of things, as words of a sentence."""

from __future__ import annotations


def count(number: int, noun: str) -> str:
    """Such as "1 file" or "1,234 files"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def without(dropped: int) -> str:
    """What becomes of files of saved memory that could not be copied, as the end of a sentence; "" for none."""
    if not dropped:
        return ""
    files = f"{count(dropped, 'file')} of saved memory that {'is' if dropped == 1 else 'are'} missing or damaged"
    return f"; without {files}, so what is in there is read again"
