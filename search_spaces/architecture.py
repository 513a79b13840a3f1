"""One candidate decoder: how many layers, how wide, how many heads and MLP neurons in each layer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any

from search_spaces.compression import NOTHING, Compression
from search_spaces.errors import InputError

MAX_KEY_LENGTH = 64  # a key names a folder and labels table columns and plotted points


@dataclass(frozen=True, order=True)
class Architecture:
    """The sizes of a pruned decoder.

    ``hidden`` is the width of the residual stream, one number for the whole network. ``heads`` and ``mlp`` hold the
    attention heads and the MLP neurons of each kept layer, first layer first. ``kv_heads`` holds the key/value heads.
    Each is shared by an equal group of the layer's heads (grouped-query attention, arXiv 2305.13245). Left out, every
    head has its own. The importance scores decide which channels, heads and neurons are kept. They also decide which
    layers are kept, unless ``kept_layers`` names them: numbers of the teacher's layers, ascending, the first is 0.
    ``compression`` is what is done to the weights that stay.

    Raises InputError when a size is not a positive integer, the per-layer sizes or the kept layers do not match the
    depth, or heads is not a multiple of kv_heads.
    """

    depth: int
    hidden: int
    heads: tuple[int, ...]
    mlp: tuple[int, ...]
    kv_heads: tuple[int, ...] = ()
    kept_layers: tuple[int, ...] = ()
    compression: Compression = NOTHING

    def __post_init__(self) -> None:
        if not self.kv_heads:
            object.__setattr__(self, "kv_heads", self.heads)
        if problem := _problem(self):
            raise InputError(f"architecture {self.to_dict()}: {problem}")

    @classmethod
    def uniform(cls, depth: int, hidden: int, heads: int, mlp: int, kv_heads: int | None = None) -> Architecture:
        """An architecture whose layers all have the same sizes."""
        layers = max(depth, 0)
        return cls(depth, hidden, (heads,) * layers, (mlp,) * layers, (kv_heads or heads,) * layers)

    @property
    def is_uniform(self) -> bool:
        """Whether all layers have the same sizes."""
        return all(len(set(sizes)) == 1 for sizes in (self.heads, self.mlp, self.kv_heads))

    @property
    def plain(self) -> Architecture:
        """The same sizes, with nothing done to the weights."""
        return replace(self, compression=NOTHING)

    @property
    def timed(self) -> Architecture:
        """What its latency depends on: the sizes and the quantization, but not which layers stay or what is 0."""
        return replace(self, kept_layers=(), compression=Compression(quantization=self.compression.quantization))

    @property
    def key(self) -> str:
        """The canonical name, safe as a file name. Two architectures have the same key only if they are equal.

        Uniform: ``d12-h768-a12-m3072``. Nine heads on three key/value heads: ``d30-h576-a9k3-m1536``. Sizes that
        differ by layer are written as runs: ``d3-h64-a4x2.2-m256``. Named layers are the last part:
        ``d6-h256-a8-m1024-l0to3.6.7``. A name that would be too long holds the average sizes and a digest:
        ``d24-h576-a7k3-m912-varied-0f3a51c2b6d4``. The compression comes last: ``d8-h224-a7-m512-s50-nf4``.
        """
        shared = "" if self.kv_heads == self.heads else f"k{_runs(self.kv_heads)}"
        named = f"-l{_spans(self.kept_layers)}" if self.kept_layers else ""
        sizes = f"a{_runs(self.heads)}{shared}-m{_runs(self.mlp)}{named}"
        done = f"-{self.compression.key}" if self.compression else ""
        key = f"d{self.depth}-h{self.hidden}-{sizes}{done}"
        if len(key) <= MAX_KEY_LENGTH:
            return key
        heads, kv_heads, mlp = (round(sum(one) / self.depth) for one in (self.heads, self.kv_heads, self.mlp))
        average = f"a{heads}{f'k{kv_heads}' if shared else ''}-m{mlp}"
        digest = hashlib.sha256(f"{sizes}{done}".encode()).hexdigest()[:12]
        return f"d{self.depth}-h{self.hidden}-{average}-varied-{digest}"

    def to_dict(self) -> dict[str, Any]:
        """JSON form. A size that all layers share is written once.

        ``kv_heads`` is left out if it equals ``heads``, and ``kept_layers`` and ``compression`` if they are empty.
        """
        shared = {} if self.kv_heads == self.heads else {"kv_heads": _collapsed(self.kv_heads)}
        named = {"kept_layers": list(self.kept_layers)} if self.kept_layers else {}
        return {
            "depth": self.depth,
            "hidden": self.hidden,
            "heads": _collapsed(self.heads),
            **shared,
            "mlp": _collapsed(self.mlp),
            **named,
            **({"compression": self.compression.to_dict()} if self.compression else {}),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, object]) -> Architecture:
        """The inverse of `to_dict`. Raises InputError naming a key that is missing, unknown or of a wrong type."""
        names = {"depth", "hidden", "heads", "mlp"}
        given = set(value) - {"kv_heads", "kept_layers", "compression"}
        if given != names:
            odd = sorted(names ^ given)
            raise InputError(f"architecture {dict(value)}: missing or unknown keys {odd}; give {sorted(names)}")
        depth, hidden = _integer(value, "depth"), _integer(value, "hidden")
        shared = _expanded(value, "kv_heads", depth) if "kv_heads" in value else ()
        named = _expanded(value, "kept_layers", depth) if "kept_layers" in value else ()
        done = value.get("compression", {})
        if not isinstance(done, Mapping):
            raise InputError(f"architecture {dict(value)}: compression={done!r} is not a mapping")
        sizes = _expanded(value, "heads", depth), _expanded(value, "mlp", depth)
        return cls(depth, hidden, *sizes, shared, named, Compression.from_dict(done))


def _problem(architecture: Architecture) -> str | None:
    layers = (architecture.heads, architecture.mlp, architecture.kv_heads)
    sizes = (architecture.depth, architecture.hidden, *(size for sizes in layers for size in sizes))
    if any(not isinstance(size, int) or isinstance(size, bool) or size < 1 for size in sizes):
        return "every size must be a whole number of at least 1"
    if any(len(sizes) != architecture.depth for sizes in layers):
        return "heads, mlp and kv_heads must have one entry for each of the `depth` layers"
    if any(heads % shared for heads, shared in zip(architecture.heads, architecture.kv_heads, strict=True)):
        return "heads must be a multiple of kv_heads in every layer"
    return _layers_problem(architecture.kept_layers, architecture.depth) if architecture.kept_layers else None


def _layers_problem(kept: tuple[int, ...], depth: int) -> str | None:
    if any(not isinstance(layer, int) or isinstance(layer, bool) or layer < 0 for layer in kept):
        return "every kept layer must be a whole number of at least 0"
    if any(first >= second for first, second in pairwise(kept)):
        return "kept_layers must ascend"
    return None if len(kept) == depth else "kept_layers must have `depth` layers"


def _spans(layers: Sequence[int]) -> str:
    """``0to3.6.7`` for layers 0, 1, 2, 3, 6 and 7. Two layers that follow each other are no span."""
    starts = [place for place, layer in enumerate(layers) if place == 0 or layer != layers[place - 1] + 1]
    runs = [layers[start:end] for start, end in zip(starts, [*starts[1:], len(layers)], strict=True)]
    return ".".join(f"{run[0]}to{run[-1]}" if len(run) > 2 else ".".join(map(str, run)) for run in runs)


def _runs(sizes: Iterable[int]) -> str:
    runs = [(size, len(list(group))) for size, group in groupby(sizes)]
    if len(runs) == 1:
        return str(runs[0][0])
    return ".".join(f"{size}x{count}" if count > 1 else str(size) for size, count in runs)


def _collapsed(sizes: tuple[int, ...]) -> int | list[int]:
    return sizes[0] if len(set(sizes)) == 1 else list(sizes)


def _integer(value: Mapping[str, object], name: str) -> int:
    number = value[name]
    if not isinstance(number, int) or isinstance(number, bool):
        raise InputError(f"architecture: {name}={number!r} is not a whole number")
    return number


def _expanded(value: Mapping[str, object], name: str, depth: int) -> tuple[int, ...]:
    sizes = value[name]
    return tuple(sizes) if isinstance(sizes, (list, tuple)) else (_integer(value, name),) * max(depth, 0)
