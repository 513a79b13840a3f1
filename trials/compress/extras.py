"""Packages that only some compressions need."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from search_spaces.errors import InputError

SCHEMES = {"int8": "bitsandbytes", "nf4": "bitsandbytes", "int8wo": "torchao"}  # the package of a quantization
EXTRAS = {  # of pyproject.toml, by package
    "peft": "lora",
    "bitsandbytes": "quant",
    "torchao": "quant",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "lm_eval": "eval",
}


def packages_for(axes: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, str]]:
    """Each axis of a space with a package that one of its values needs (`search_spaces.compression_axes`)."""
    schemes = {one.scheme for one in axes.get("quantization", ())}
    yield from (("quantization", package) for package in sorted({SCHEMES[one] for one in schemes if one in SCHEMES}))
    if any(one.rank for one in axes.get("adapters", ())):
        yield "adapters", "peft"


def check_installed(package: str, needed_for: str) -> None:
    """Raise InputError, which names the extra, unless ``package`` is installed."""
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{needed_for}: the package {package} is not installed; install llm-nas[{EXTRAS[package]}]")
