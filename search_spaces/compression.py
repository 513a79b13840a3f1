"""What is done to the weights of a candidate: sparsity, quantization and adapters, as pure values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from search_spaces.errors import InputError

MATRICES = ("attention", "mlp")  # the matrices of a layer, by the part that they belong to
MOST_SPARSE = 0.95
METHODS = ("magnitude", "wanda", "sparsegpt", "pdp")  # that choose which weights are 0
LEAST_TAU = 1e-8
DIGITS = 4  # of a number that is not whole; more would not show in a key
BITS = {"none": 16, "int8": 8, "int8wo": 8, "nf4": 4}  # of a weight, by scheme
GROUPS = {"nf4": (64, 128, 256, 512, 1024, 2048, 4096)}  # weights that share a scale; the first is the default


def _check_matrices(name: str, matrices: tuple[str, ...]) -> None:
    """Raise InputError unless ``matrices`` names some of `MATRICES`, each once and in their order."""
    legal = [one for one in MATRICES if one in matrices] if isinstance(matrices, tuple) else []
    if not legal or list(matrices) != legal:
        given = list(matrices) if isinstance(matrices, tuple) else matrices
        raise InputError(f"{name}.matrices {given}: must be {' or '.join(MATRICES)}, or both in this order")


def _check_type(name: str, value: object, types: tuple[type, ...]) -> None:
    if not isinstance(value, types) or isinstance(value, bool):
        raise InputError(f"{name} {value!r}: must be a {'whole ' if types == (int,) else ''}number")


def _named(matrices: tuple[str, ...]) -> str:
    return "" if matrices == MATRICES else "".join(matrices)


@dataclass(frozen=True, order=True)
class Sparsity:
    """Which share of the weights of the layers' ``matrices`` is 0, and how they are chosen.

    ``level`` is that share, 0 to 0.95. ``kind`` is "unstructured", or "2:4": two of four weights in a row along the
    inputs are 0, which is a level of 0.5. ``method`` chooses the weights:

    - "magnitude" takes the smallest ones of each matrix.
    - "wanda" takes the smallest products of weight and input norm for each output (arXiv 2306.11695).
    - "sparsegpt" removes weights one column after the other and updates the others (arXiv 2301.00774).
    - "pdp" trains through soft masks (arXiv 2305.11203), and takes the smallest weights at the end.

    With "magnitude" and "wanda" the level rises from 0 at the share ``start`` of the training steps to its full value
    at the share ``end``, by the cubic schedule of arXiv 1710.01878. With 0 and 0 all weights go before training.

    With "pdp" the level rises in the first ``warmup`` of the steps. ``tau`` is the temperature of the soft mask,
    ``beta`` the sharpness of its second part (0 for none), and ``mask_aware`` scales gradients and moments by the mask.
    ``rate`` multiplies the learning rate of the recipe.

    With ``distilled`` false the student trains on the text alone, and the teacher teaches it nothing.

    A field that means nothing for the method, or without a level, gets its default, so that equal values have one key.
    Raises InputError naming the field when a value is not legal.
    """

    level: float = 0.0
    kind: Literal["unstructured", "2:4"] = "unstructured"
    matrices: tuple[str, ...] = MATRICES
    method: str = "magnitude"
    start: float = 0.0
    end: float = 0.0
    tau: float = 1e-4
    warmup: float = 0.5
    beta: float = 0.0
    mask_aware: bool = False
    rate: float = 1.0
    distilled: bool = True

    def __post_init__(self) -> None:
        for name in ("level", "start", "end", "warmup", "beta", "rate", "tau"):
            given = getattr(self, name)
            _check_type(f"sparsity.{name}", given, (int, float))
            object.__setattr__(self, name, float(f"{given:.4g}") if name == "tau" else round(float(given), DIGITS))
        for name, problem in self._problems():
            raise InputError(f"sparsity.{name} {getattr(self, name)!r}: {problem}")
        _check_matrices("sparsity", self.matrices)
        for name in self._unused():
            object.__setattr__(self, name, getattr(Sparsity, name))

    def _problems(self) -> Iterator[tuple[str, str]]:
        """Each field with an illegal value, and its rule."""
        if not 0 <= self.level <= MOST_SPARSE:
            yield "level", f"must be from 0 to {MOST_SPARSE}"
        if self.kind not in ("unstructured", "2:4"):
            yield "kind", "must be unstructured or 2:4"
        if self.kind == "2:4" and self.level != 0.5:
            yield "level", "2:4 is a level of 0.5"
        if self.method not in METHODS:
            yield "method", f"must be one of {', '.join(METHODS)}"
        for name in ("end", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                yield name, "must be from 0 to 1, a share of the steps"
        if not 0 <= self.start <= self.end:
            yield "start", f"must be from 0 to sparsity.end, which is {self.end}"
        if not LEAST_TAU <= self.tau <= 1:
            yield "tau", f"must be from {LEAST_TAU} to 1"
        if not 0 <= self.beta <= 100:
            yield "beta", "must be from 0 to 100"
        if not 0.01 <= self.rate <= 100:
            yield "rate", "must be from 0.01 to 100"
        for name in ("mask_aware", "distilled"):
            if not isinstance(getattr(self, name), bool):
                yield name, "must be true or false"

    def _unused(self) -> list[str]:
        """The fields that mean nothing here."""
        if not self.level:
            return [one.name for one in fields(self)]
        ramp, soft = ["start", "end"], ["tau", "warmup", "beta", "mask_aware", "rate"]
        return {"pdp": ramp, "sparsegpt": ramp + soft}.get(self.method, soft)

    @property
    def key(self) -> str:
        """``s50`` for half, ``s2of4`` for 2:4, ``s50mlp`` for half of the MLP alone; empty for none.

        The method and its fields come behind, if they are not the defaults: ``s50wanda``, ``s50b10e60`` for a level
        that rises from 10 % to 60 % of the steps, ``s50pdpt0.001w30x5aware`` with all fields of "pdp". ``s50text`` is
        trained without distillation.
        """
        if not self.level:
            return ""
        size = "2of4" if self.kind == "2:4" else f"{100 * self.level:.6g}"
        method = "" if self.method == "magnitude" else self.method
        ramp = f"b{100 * self.start:.6g}e{100 * self.end:.6g}" if self.end else ""
        return f"s{size}{_named(self.matrices)}{method}{ramp}{self._soft}{'' if self.distilled else 'text'}"

    @property
    def _soft(self) -> str:
        tau = "" if self.tau == Sparsity.tau else "t" + f"{self.tau:.12f}".rstrip("0").rstrip(".")
        warmup = "" if self.warmup == Sparsity.warmup else f"w{100 * self.warmup:.6g}"
        beta = f"x{self.beta:.8g}" if self.beta else ""
        rate = "" if self.rate == 1 else f"r{self.rate:.8g}"
        return f"{tau}{warmup}{beta}{'aware' if self.mask_aware else ''}{rate}"


@dataclass(frozen=True, order=True)
class Quantization:
    """How the weights of the layers' ``matrices`` are stored. Embeddings, norms and biases stay bfloat16.

    - "int8" is bitsandbytes' LLM.int8() (arXiv 2208.07339), one scale for each row. It rounds inputs too.
    - "int8wo" is torchao's weight-only int8, one scale for each row. torchao quantizes no Conv1D, so GPT-2 has none.
    - "nf4" is bitsandbytes' NormalFloat (QLoRA, arXiv 2305.14314), one scale for ``group`` weights. With ``double``,
      the scales are quantized to 8 bits too.

    ``group`` 0 stands for the scheme's default. Raises InputError naming the field when a value is not legal.
    """

    scheme: str = "none"
    group: int = 0
    double: bool = True
    matrices: tuple[str, ...] = MATRICES

    def __post_init__(self) -> None:
        if self.scheme not in BITS:
            raise InputError(f"quantization.scheme {self.scheme!r}: must be one of {', '.join(BITS)}")
        _check_type("quantization.group", self.group, (int,))
        legal = GROUPS.get(self.scheme, ())
        if not self.group and legal:
            object.__setattr__(self, "group", legal[0])
        if self.group and self.group not in legal:
            rule = f"must be one of {', '.join(map(str, legal))}" if legal else f"{self.scheme} has no groups"
            raise InputError(f"quantization.group {self.group}: {rule}")
        if self.scheme != "nf4":
            object.__setattr__(self, "double", True)  # means nothing: one value, so that equal ones have one key
        _check_matrices("quantization", self.matrices)

    @property
    def bits(self) -> int:
        """Bits of a weight."""
        return BITS[self.scheme]

    @property
    def key(self) -> str:
        """``nf4``, ``int8``, ``nf4g128`` with another group, ``nf4single`` without double; empty for none."""
        if self.scheme == "none":
            return ""
        group = f"g{self.group}" if self.group and self.group != GROUPS[self.scheme][0] else ""
        return f"{self.scheme}{group}{'' if self.double else 'single'}{_named(self.matrices)}"


@dataclass(frozen=True, order=True)
class Adapters:
    """Low-rank adapters beside the layers' ``matrices`` (LoRA, arXiv 2106.09685): W + alpha / rank * B A.

    With ``rank`` 0 there are none. ``sparsity`` is the share of the adapters' own weights that is 0, 0 to 0.95.

    Raises InputError naming the field when a value is not legal.
    """

    rank: int = 0
    alpha: float = 16.0
    sparsity: float = 0.0
    matrices: tuple[str, ...] = MATRICES

    def __post_init__(self) -> None:
        _check_type("adapters.rank", self.rank, (int,))
        _check_type("adapters.alpha", self.alpha, (int, float))
        _check_type("adapters.sparsity", self.sparsity, (int, float))
        for name in ("alpha", "sparsity"):
            object.__setattr__(self, name, round(float(getattr(self, name)), DIGITS))
        if self.rank < 0:
            raise InputError(f"adapters.rank {self.rank}: must be at least 1; leave adapters out for none")
        if not 0 < self.alpha <= 4096:
            raise InputError(f"adapters.alpha {self.alpha}: must be above 0 and at most 4096")
        if not 0 <= self.sparsity <= MOST_SPARSE:
            raise InputError(f"adapters.sparsity {self.sparsity}: must be from 0 to {MOST_SPARSE}")
        _check_matrices("adapters", self.matrices)

    @property
    def key(self) -> str:
        """``r8`` for rank 8, ``r8s80`` with 80 % of the adapters' weights at 0; empty for none."""
        if not self.rank:
            return ""
        alpha = "" if self.alpha == Adapters.alpha else f"x{self.alpha:.8g}"
        sparse = f"s{100 * self.sparsity:.6g}" if self.sparsity else ""
        return f"r{self.rank}{alpha}{sparse}{_named(self.matrices)}"


PARTS: dict[str, Any] = {"sparsity": Sparsity, "quantization": Quantization, "adapters": Adapters}


@dataclass(frozen=True, order=True)
class Compression:
    """What is done to the weights of a candidate. The default is nothing. A part that does nothing is its default."""

    sparsity: Sparsity = Sparsity()
    quantization: Quantization = Quantization()
    adapters: Adapters = Adapters()

    def __post_init__(self) -> None:
        for name, part in PARTS.items():
            if not getattr(self, name).key:
                object.__setattr__(self, name, part())

    @property
    def key(self) -> str:
        """The canonical name, such as ``s50-nf4``; empty for nothing. Two values have the same key only if equal."""
        return "-".join(one.key for one in (self.sparsity, self.quantization, self.adapters) if one.key)

    @property
    def mergeable(self) -> bool:
        """Whether adapters, if there are any, can be added to the weights at the end without undoing something."""
        return not self.adapters.rank or not (self.sparsity.key or self.quantization.key)

    def __bool__(self) -> bool:
        """Whether anything is done."""
        return bool(self.key)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; what is not done is left out."""
        parts = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: {**asdict(part), "matrices": list(part.matrices)} for name, part in parts.items() if part.key}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Compression:
        """The inverse of `to_dict`. Raises InputError naming a field that is unknown or has an illegal value."""
        if unknown := sorted(set(value) - set(PARTS)):
            raise InputError(f"compression: unknown field {unknown[0]!r}; known are {', '.join(PARTS)}")
        parts: dict[str, Any] = {name: _part(name, given) for name, given in value.items()}
        if "adapters" in parts and not parts["adapters"].rank:
            raise InputError("adapters.rank 0: must be at least 1; leave adapters out for none")
        return cls(**parts)


NOTHING = Compression()


def _part(name: str, given: object) -> Any:
    """The part called ``name`` from its JSON form."""
    known = [one.name for one in fields(PARTS[name])]
    if not isinstance(given, Mapping):
        raise InputError(f"{name} {given!r}: must be a mapping with some of {', '.join(known)}")
    if unknown := sorted(map(str, set(given) - set(known))):
        raise InputError(f"{name}: unknown field {unknown[0]!r}; known are {', '.join(known)}")
    values = dict(given)
    if isinstance(values.get("matrices"), list):
        values["matrices"] = tuple(values["matrices"])
    return PARTS[name](**values)
