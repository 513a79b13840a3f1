"""What makes the losses of two trials comparable: how a study's settings differ from those of a command, in words."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.trial import FrozenTrial

CODE_VERSION = "code_version"  # of `nas.planning.plan.identity`: users cannot give its old value
COMPRESSION = "compression"  # its values have places in a list, so other values would be taken for the old ones

# What a user knows under another name, or cannot give as a setting.
WORDS = {
    CODE_VERSION: "by another version of this program (its computations have the version {old}, now {new})",
    "teacher": "with another teacher (its content is {old}, now {new})",
    "text": "with another text (its content is {old}, now {new})",
    "arithmetic": "with other arithmetic ({old}, now {new})",
}


def differences(known: Mapping[str, Any], wanted: Mapping[str, Any], axes: Collection[str]) -> dict[str, str]:
    """The settings that differ, by key, each in words. ``axes`` are keys of the search space.

    A setting that only one of them has is different too.
    """
    found = {}
    for key in [*wanted, *(one for one in known if one not in wanted)]:
        old, new = known.get(key), wanted.get(key)
        if old != new:
            where = "another space, " if key in axes else ""
            found[key] = WORDS.get(key, f"with {where}{key}={old!r}, not {new!r}").format(old=old, new=new)
    return found


def unmixable(differing: Collection[str], trials: Iterable[FrozenTrial], wanted: Mapping[str, BaseDistribution]) -> str:
    """Why a study with these ``trials`` cannot hold trials of the ``wanted`` axes as well; empty if it can."""
    if COMPRESSION in differing:
        return "the choices of what is done to weights differ"
    for trial in trials:
        if trial.params and set(trial.params) != set(wanted):
            return f"one space has the axes {', '.join(sorted(trial.params))}, the other {', '.join(sorted(wanted))}"
        for axis, distribution in trial.distributions.items():
            try:
                check_distribution_compatibility(distribution, wanted[axis])
            except ValueError:
                return f"the sizes of {axis} are no range of even steps in one of the spaces"
    return ""
