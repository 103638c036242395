"""Runs of columns that share a scale in the kernels, made of the groups or blocks that share one in a file."""

from __future__ import annotations

_LEAST = 32  # columns


def fitted_run(group: int, columns: int) -> tuple[int, int]:
    """Columns of a run, a power of two, and how many runs make up a group of `group` columns of a row of `columns`. A
    group that is as long as the row is one run. Raises `ValueError` for groups that no run divides."""
    if group >= columns:
        return max(_LEAST, 1 << (columns - 1).bit_length()), 1
    run = group & -group
    if run < _LEAST:
        raise ValueError(f"groups of {group} columns")
    return run, group // run
