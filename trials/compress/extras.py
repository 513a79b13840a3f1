"""Packages that only some compressions need."""

from __future__ import annotations

import importlib.util

from search_spaces.errors import InputError

PACKAGES = {"quantization": "bitsandbytes", "adapters": "peft"}  # that an axis of a space needs
EXTRAS = {
    "peft": "lora",
    "bitsandbytes": "quant",
    "lm_eval": "eval",
}  # the extra of pyproject.toml that brings a package


def check_installed(package: str, needed_for: str) -> None:
    """Raise InputError, which names the extra, unless ``package`` is installed."""
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{needed_for}: the package {package} is not installed; install llm-nas[{EXTRAS[package]}]")
