"""The packages that run a format on a GPU, where they are installed."""

from __future__ import annotations

import importlib.util

# By the name of a format; a package is imported by its own name.
_PACKAGES = {"gptq": ("optimum", "gptqmodel"), "awq": ("gptqmodel",), "mxfp4": ("kernels", "triton")}


def packages_of(method: str) -> tuple[str, ...]:
    """What the format's quantiser imports."""
    return _PACKAGES.get(method, ())


def missing_packages(method: str) -> tuple[str, ...]:
    """Those of them that are not installed."""
    return tuple(package for package in packages_of(method) if not _is_installed(package))


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
