"""The flags that benchmarks share with a search, and the plan that follows from them."""

from __future__ import annotations

import argparse
import re
from typing import Any

from nas.planning.machine import Machine
from nas.planning.plan import Plan, make_plan, resolve_target
from nas.planning.settings import SearchSettings, load_settings
from search_spaces.architecture import Architecture
from search_spaces.errors import InputError

KEY = re.compile(r"d(\d+)-h(\d+)-a(\d+)(?:k(\d+))?-m(\d+)")

SHARED: dict[str, Any] = {
    "model": "mini",
    "corpus": "stdlib",
    "budget": "60%",
    "calibration_samples": 256,
    "validation_tokens": 8_192,
    "tokens_per_trial": 16_384,
    "sequence_length": None,
    "batch_tokens": None,
    "output": "outputs",
}


def flags_of(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with the settings of `SHARED`. ``defaults`` changes their defaults or adds further settings."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {**SHARED, **defaults}.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=str if default is None else type(default), default=default
        )
    return parser


def plan_of(flags: argparse.Namespace) -> Plan:
    """The plan of a search with these settings on this machine, one trial at a time."""
    given = {name: value for name, value in vars(flags).items() if name in SearchSettings.model_fields}
    settings = load_settings({**given, "workers": 1}, None, {})
    return make_plan(settings, resolve_target(settings), Machine.local())


def parsed(key: str) -> Architecture:
    """The architecture called ``key``, such as ``d29-h576-a9k3-m1056``. Raises InputError for any other text."""
    if not (found := KEY.fullmatch(key)):
        raise InputError(
            f"--architectures {key!r}: not the name of an architecture; write one such as d29-h576-a9k3-m1056, "
            "with the same heads and MLP in every layer"
        )
    depth, hidden, heads, kv_heads, mlp = (int(size or 0) for size in found.groups())
    return Architecture.uniform(depth, hidden, heads, mlp, kv_heads)
