"""Search spaces in YAML: the shipped presets and users' own files."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from itertools import combinations
from math import ceil, comb, gcd, prod
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from search_spaces.compression_axes import check_two_of_four, compression_axes, possible
from search_spaces.errors import InputError
from search_spaces.shape import ModelShape
from search_spaces.space import AXES, COMPRESSIONS, LAYERS, SearchSpace

PRESETS = (
    "default",
    "fine",
    "depth",
    "width",
    "stock",
    "mixed",
    "pruned-gpt",
    "layer-removal",
    "sparsity",
    "pdp",
    "stack",
)
MOST_CHOICES = 100_000  # of layers; the identity of a study lists them all
MOST_LAYERS = 53  # of a teacher whose layers can be named; a database holds a choice as a float64, a bit for each layer
MOST_ARCHITECTURES = 2_000_000  # in a space; listing them takes a minute and a gigabyte
WIDEST = 64  # the largest multiple that sizes have by themselves
LEAST_STEPS = 8  # from nothing to the teacher's size, in multiples
LONGEST_NAME = 300  # characters of a path in an error
LONGEST_FILE = 100_000  # characters of a YAML file, which is read at about that many a second
LONGEST_VALUE = 2_000  # characters of one value in it; Python itself reads numbers of at most 4,300 digits
DEEPEST = 10  # lists and mappings inside each other in it


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file that a user wrote by hand: plain values, lists and mappings.

    Raises OSError when it cannot be read. Raises ValueError, whose message is one line, when it is too long or nested
    too deep, when it has aliases or tags, and when it is not YAML in UTF-8.
    """
    with open(path, encoding="utf-8") as file:
        text = file.read(LONGEST_FILE + 1)
    try:
        _check_yaml(text)
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a value such as the date 2026-13-01
        raise ValueError(" ".join(str(error).split())) from error


def _check_yaml(text: str) -> None:
    """Raise ValueError when `yaml.safe_load` would need much time or memory for ``text``, or fail without a reason."""
    if len(text) > LONGEST_FILE:
        raise ValueError(f"it has more than {LONGEST_FILE:,} characters")
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = f"line {event.start_mark.line + 1}" if event.start_mark else "somewhere"
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"{where}: nested more than {DEEPEST} deep")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"{where}: aliases (*{event.anchor}) are not read; write the value again")
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"{where}: tags are not read; leave the tag out")
        if isinstance(event, yaml.ScalarEvent):
            _check_value(event.value, where)


def _check_value(value: str, where: str) -> None:
    if len(value) > LONGEST_VALUE:
        raise ValueError(f"{where}: a value of {len(value):,} characters; at most {LONGEST_VALUE:,} are read")
    if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{where}: a value with a character that is in no text, {value[:60]!a}")


def _check_size(value: int | str) -> int | str:
    share = value.removesuffix("%") if isinstance(value, str) else str(value)
    if share == value or not share.replace(".", "", 1).replace("-", "", 1).isdecimal():
        raise ValueError(f"{_short(value)} is neither a whole number nor a share of the teacher such as 50%")
    if float(share) <= 0:
        raise ValueError(f"{_short(value)} must be above 0")
    if isinstance(value, str) and float(share) > 100:
        raise ValueError(f"{_short(value)} is more than the teacher has; at most 100%")
    return value


def _short(value: object) -> str:
    """``repr(value)``, cut to a length that an error message can show."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


Size = Annotated[Annotated[int, Field(strict=True)] | Annotated[str, Field(strict=True)], AfterValidator(_check_size)]


Layer = Annotated[int, Field(strict=True, ge=0)]


class _Forbidding(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AxisRange(_Forbidding):
    """Sizes from ``max`` down to ``min`` in steps. Each is a whole number or a share of the teacher's size ("50%").

    All are a multiple of ``multiple``, which divides the teacher's size. ``auto`` stands for that of `own_multiple`.
    The step is rounded to it too.
    """

    min: Size
    max: Size = "100%"
    step: Size = 1
    multiple: Annotated[int, Field(strict=True, ge=1)] | Literal["auto"] = 1


class SpaceFile(_Forbidding):
    """The keys of a space file. An axis that is left out takes its values from the preset ``default``.

    ``study`` holds settings of the search, by the names of the flags: ``{sampler: exhaustive, finalists: 0}``. The user
    overrides them with flags, the environment or a file.

    ``kv_heads`` is for teachers with grouped-query attention only. ``allocated`` chooses between uniform layers and
    sizes by layer: [false] is uniform only, [true] is by layer only, [false, true] is both. ``kept_layers`` names the
    layers that stay: ``any`` is every choice of as many as ``depth`` says, and a list holds the choices one by one.
    ``sparsity``, ``quantization`` and ``adapters`` say what may be done to the weights
    (`search_spaces.compression_axes`).
    """

    depth: AxisRange | list[Size] | None = None
    hidden: AxisRange | list[Size] | None = None
    heads: AxisRange | list[Size] | None = None
    kv_heads: AxisRange | list[Size] | None = None
    mlp: AxisRange | list[Size] | None = None
    stock_only: Annotated[bool, Field(strict=True)] = False
    allocated: Annotated[list[Annotated[bool, Field(strict=True)]], Field(min_length=1)] = [False]
    kept_layers: Literal["any"] | list[list[Layer]] | None = None
    sparsity: list[Any] | None = None
    quantization: list[Any] | None = None
    adapters: list[Any] | None = None
    study: dict[str, Any] = {}


def load_space(source: str, shape: ModelShape) -> SearchSpace:
    """The space ``source``, a preset or the path of a YAML file, for a teacher of ``shape``.

    Raises InputError for an unknown key, a wrong type, a size above the teacher's, or an axis without a value. The
    message names the file and the key.
    """
    given, default = _parse(source), _parse("default")
    if shape.group == 1 and given.kv_heads is not None and source not in PRESETS:
        raise InputError(
            f"space {source}: key 'kv_heads': every head of this teacher has its own key/value head; leave the key out"
        )
    values = {axis: getattr(default if getattr(given, axis) is None else given, axis) for axis in AXES}
    multiples = {axis: _multiple(value, own_multiple(shape, axis)) for axis, value in values.items()}
    limits = dict(zip(AXES, ("layers", "hidden", "heads", "kv_heads", "mlp"), strict=True))
    axes: dict[str, Any] = {
        axis: _sizes(source, axis, value, getattr(shape, limits[axis]), multiples[axis])
        for axis, value in values.items()
    }
    if shape.group == 1:
        axes["kv_heads"] = ()
    spread = tuple(sorted({int(one) for one in given.allocated})) if any(given.allocated) else ()
    if given.stock_only and spread:
        raise InputError(
            f"space {source}: key 'allocated': stock shapes have equal layers; leave out 'allocated' or 'stock_only'"
        )
    if given.kept_layers is not None:
        axes |= _choices(source, given, shape.layers, axes["depth"])
    axes |= compression_axes(source, vars(given))
    axes |= {"allocated": spread, "mlp_multiple": multiples["mlp"]}
    space = SearchSpace(shape, stock_only=given.stock_only, neuron_values=None, **axes)
    return possible(source, _checked(source, _paired(source, space)), preset=source in PRESETS)


def _choices(name: str, given: SpaceFile, layers: int, depths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The axes depth and kept_layers of a space whose architectures name their layers."""
    if layers > MOST_LAYERS:
        rule = f"the teacher has {layers} layers; they can be named in one of at most {MOST_LAYERS}"
        raise InputError(f"space {name}: key 'kept_layers': {rule}; leave the key out")
    if given.kept_layers == "any":
        number = sum(comb(layers, depth) for depth in depths)
        if number > MOST_CHOICES:
            raise InputError(
                f"space {name}: key 'kept_layers': {number:,} choices of layers; at most {MOST_CHOICES:,} are legal; "
                "give 'depth' fewer sizes"
            )
        chosen = [one for depth in depths for one in combinations(range(layers), depth)]
    else:
        chosen = [_choice(name, one, layers) for one in given.kept_layers or []]
        if given.depth is not None or not chosen:
            rule = "leave 'depth' out beside a list of layers" if chosen else "give at least one list of layers, or any"
            raise InputError(f"space {name}: key 'kept_layers': {rule}")
    bits = {0 if len(one) == layers else sum(1 << layer for layer in one) for one in chosen}
    return {"depth": tuple(sorted({len(one) for one in chosen})), "kept_layers": tuple(sorted(bits))}


def _choice(name: str, chosen: list[int], layers: int) -> tuple[int, ...]:
    if not chosen or len(set(chosen)) < len(chosen) or max(chosen) >= layers:
        raise InputError(
            f"space {name}: key 'kept_layers': {_short(chosen)} must name some of the teacher's layers "
            f"0 to {layers - 1}, each once"
        )
    return tuple(sorted(chosen))


def study_settings(source: str) -> dict[str, Any]:
    """The settings of the search that the space ``source`` brings along. Raises InputError as `check_space` does."""
    return dict(_parse(source).study)


def compressions_in(source: str) -> dict[str, tuple[Any, ...]]:
    """The values of the axes of the space ``source`` that say what may be done to weights. Raises InputError."""
    return compression_axes(source, vars(_parse(source)))


def check_space(source: str) -> None:
    """Check that the space ``source`` can be read, without a teacher. Raises InputError."""
    compressions_in(source)


def _paired(name: str, space: SearchSpace) -> SearchSpace:
    """``space`` without the heads and kv_heads that occur in no legal pair."""
    _check_number(name, len(space.heads) * len(space.kv_heads))
    if not space.kv_heads:
        return space
    heads, kv_heads = (tuple(sorted({pair[place] for pair in space.head_pairs})) for place in (0, 1))
    return replace(space, heads=heads, kv_heads=kv_heads)


def _checked(name: str, space: SearchSpace) -> SearchSpace:
    shape = space.shape
    if not space.heads:
        raise InputError(
            f"space {name}: no number of heads is a multiple of a number of kv_heads, at most {shape.group} times it; "
            f"the teacher has {shape.heads} heads on {shape.kv_heads} key/value heads"
        )
    choices = (len(space.kept_layers) or len(space.depth)) * prod(len(getattr(space, one)) or 1 for one in COMPRESSIONS)
    _check_number(name, choices * len(space.hidden) * len(space.head_pairs) * len(space.mlp))
    check_two_of_four(name, space)
    if not space.counts:
        rules = {"square": "hidden == head_dim * heads", "divisible": "hidden to be a multiple of heads"}
        rule = rules.get(shape.stock, "one size for all layers")
        raise InputError(
            f"space {name}: no architecture is left with stock_only; transformers' {shape.family} needs {rule}"
        )
    return space


def _check_number(name: str, architectures: int) -> None:
    if architectures > MOST_ARCHITECTURES:
        raise InputError(
            f"space {name}: more than {MOST_ARCHITECTURES:,} architectures; give larger steps or fewer sizes"
        )


def _parse(source: str) -> SpaceFile:
    content = _read(source)
    if not isinstance(content, dict):
        raise InputError(f"space {source}: must be a mapping with the keys {', '.join(SpaceFile.model_fields)}")
    try:
        return SpaceFile.model_validate(content)
    except ValidationError as error:
        raise InputError(f"space {source}: {describe(error, tuple(SpaceFile.model_fields))}") from error


def _read(source: str) -> Any:
    path = files("search_spaces") / "presets" / f"{source}.yaml" if source in PRESETS else source
    try:
        return read_yaml(str(path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        named = source if len(source) <= LONGEST_NAME else f"{source[:LONGEST_NAME]}..."
        raise InputError(
            f"space {named!r}: not a readable YAML file ({reason}); the presets are {', '.join(PRESETS)}"
        ) from error


def describe(error: ValidationError, allowed: tuple[str, ...]) -> str:
    """The most specific problem of a pydantic error in one line: the key, the rule and the value."""
    worst = max(error.errors(), key=lambda one: len(one["loc"]))
    key, value = str(worst["loc"][0]) if worst["loc"] else "the file", worst["input"]
    if worst["type"] == "extra_forbidden":
        inner = f"{key}.{worst['loc'][-1]}" if len(worst["loc"]) > 1 else key
        known = allowed if len(worst["loc"]) == 1 else tuple(AxisRange.model_fields)
        return f"unknown key {inner!r}; known keys are {', '.join(known)}"
    if key == LAYERS:
        return f"key {key!r}: neither the word any nor a list such as [[0, 1, 5], [0, 2, 5]] (got {_short(value)})"
    if worst["type"] in ("model_type", "list_type") and key in AXES:
        return f"key {key!r}: {_short(value)} is neither a list of sizes nor {{min, max, step}}"
    return f"key {key!r}: {worst['msg'].removeprefix('Value error, ')} (got {_short(value)})"


def own_multiple(shape: ModelShape, axis: str) -> int:
    """What the sizes of ``axis`` are multiples of if nothing else is asked for: of kernels' tiles, not odd numbers.

    It is the largest power of two up to `WIDEST` that divides the teacher's size and is at most an eighth of it. So at
    least five sizes are left between half and all of it. A width that must be that of whole heads stays so: there it
    divides the width of a head too. Other axes have none.
    """
    if axis not in ("hidden", "mlp"):
        return 1
    size: int = getattr(shape, axis)
    whole = shape.head_dim if axis == "hidden" and shape.stock == "square" else size
    found = WIDEST
    while found > 1 and (size % found or whole % found or found > size // LEAST_STEPS):
        found //= 2
    return found


def _multiple(value: AxisRange | list[int | str], own: int) -> int:
    """What the sizes of an axis are multiples of. A list of sizes is taken as it is."""
    if not isinstance(value, AxisRange):
        return 1
    return own if value.multiple == "auto" else value.multiple


def _sizes(name: str, axis: str, value: AxisRange | list[int | str], teacher: int, multiple: int) -> tuple[int, ...]:
    given = [value.min, value.max] if isinstance(value, AxisRange) else value
    if (largest := max((_resolve(size, teacher) for size in given), default=0)) > teacher:
        raise InputError(f"space {name}: key {axis!r}: {_short(largest)} exceeds the teacher's {teacher}")
    sizes = {_resolve(size, teacher) for size in given}
    if isinstance(value, AxisRange):
        sizes = set(_range(name, axis, value, teacher, multiple))
    if not sizes:
        rule = f", and a multiple of {multiple} must lie between them" if multiple > 1 else ""
        raise InputError(f"space {name}: key {axis!r} has no values: {_short(value)}; min must not exceed max{rule}")
    return tuple(sorted(sizes))


def _range(name: str, axis: str, value: AxisRange, teacher: int, multiple: int) -> range:
    """The sizes of a range, largest first. A step between two multiples becomes the nearer one."""
    if teacher % multiple:
        raise InputError(
            f"space {name}: key {axis!r}: multiple {multiple} does not divide the teacher's {teacher}; "
            f"{gcd(multiple, teacher)} does"
        )
    smallest, largest = _resolve(value.min, teacher), _resolve(value.max, teacher) // multiple * multiple
    step = multiple * max(1, ceil(int(_exact(value.step, teacher)) / multiple - 0.5))
    return range(largest, smallest - 1, -step)


def _resolve(size: int | str, teacher: int) -> int:
    return max(1, ceil(_exact(size, teacher)))


def _exact(size: int | str, teacher: int) -> float:
    return size if isinstance(size, int) else float(size.removesuffix("%")) * teacher / 100
