"""Where a student loads and what it can be quantised to, in closed form from its sizes.

All three programs were tried with students of all families, uniform and by layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from search_spaces.architecture import Architecture
from search_spaces.errors import InputError
from search_spaces.requirements import Requirement
from search_spaces.shape import ModelShape

TRANSFORMERS, VLLM, LLAMA_CPP = "transformers", "vLLM", "llama.cpp"
PROGRAMS = {one.lower(): one for one in (TRANSFORMERS, VLLM, LLAMA_CPP)}
SQUARE = ("gpt2", "gpt_neox")  # families whose heads are hidden / heads wide in every program that has no code of ours

QUANTIZED = "its weights are quantised already"

# llama.cpp's name of the graph for each model type that students are saved with. deci and openelm have sizes by layer.
ROUTES = {
    "gpt2": "gpt2",
    "gpt_neox": "gptneox",
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "seed_oss": "seed_oss",
    **dict.fromkeys(("pruned_llama", "pruned_mistral", "pruned_qwen2", "pruned_seed_oss"), "deci"),
    "pruned_qwen3": "openelm",
}


@dataclass(frozen=True)
class Format:
    """A number format, or several with one rule: inputs and outputs of all matrices are multiples of these."""

    title: str
    inputs: int
    outputs: int = 1


# A matrix row is as long as its inputs. GGUF stores 32 numbers of a row in a block, a K-quant 256. int4 (GPTQ, AWQ,
# W4A16) has one scale for a group of a row, and packs eight outputs into a 32-bit number. NF4 is bitsandbytes' on a CPU
# (`search_spaces.stored_size.NF4_OUTPUTS`). Tensor cores read bfloat16 in pieces of 8.
FORMATS = {
    "bf16": Format("bfloat16 without padding", 8, 8),
    "gguf": Format("GGUF q8_0, q4_0, q5_0", 32),
    "k-quants": Format("GGUF K-quants", 256),
    "int4": Format("int4 in groups of 128", 128, 8),
    "int4-64": Format("int4 in groups of 64", 64, 8),
    "nf4": Format("NF4", 64, 32),
}
NAMES = {
    **{one: one for one in FORMATS},
    **dict.fromkeys(("bfloat16", "bf16_gemm"), "bf16"),
    **dict.fromkeys(("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"), "gguf"),
    **dict.fromkeys(("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q4_k_m", "q5_k_m"), "k-quants"),
    **dict.fromkeys(("gptq", "awq", "w4a16", "int4-128"), "int4"),
}
"""The formats that a user may name, with the key in `FORMATS` of each."""


@dataclass(frozen=True)
class LoadsIn:
    """Where a student loads and what it can be quantised to.

    - ``saved_as`` is the model type in its ``config.json``.
    - ``stock``: transformers loads it without the modelling file that it carries otherwise.
    - ``vllm``: vLLM has its class.
    - ``route`` is the name of the graph that llama.cpp runs it with; empty if there is none.
    - ``reasons`` say why a program does not load it, by its name.
    - ``formats`` are the keys of `FORMATS` whose rule all its matrices meet.
    """

    saved_as: str
    stock: bool
    vllm: bool
    route: str
    reasons: Mapping[str, str]
    formats: tuple[str, ...]

    @property
    def programs(self) -> tuple[str, ...]:
        """The programs that load it without code of ours."""
        found = {TRANSFORMERS: self.stock, VLLM: self.vllm, LLAMA_CPP: bool(self.route)}
        return tuple(name for name, loads in found.items() if loads)

    def __str__(self) -> str:
        """For a table: ``transformers, vLLM, llama.cpp``, or ``own code, llama.cpp``."""
        return ", ".join(self.programs if self.stock else ("own code", *self.programs))

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        found = {"programs": list(self.programs), "formats": list(self.formats), "reasons": dict(self.reasons)}
        return {"saved_as": self.saved_as, "route": self.route, **found}


def loads_in(shape: ModelShape, architecture: Architecture) -> LoadsIn:
    """Where ``architecture``, cut from a teacher of ``shape``, loads."""
    route, reason = llama_cpp_route(shape, architecture)
    vllm, stock = program_requirement(VLLM, shape).allows(shape, architecture), shape.is_stock(architecture)
    reasons = {} if stock else {TRANSFORMERS: "it has no class for these sizes"}
    if not vllm:
        reasons[VLLM] = QUANTIZED if stock else "it has no class for these sizes"
    if not route:
        reasons[LLAMA_CPP] = reason
    formats = tuple(key for key in FORMATS if format_requirement(key).allows(shape, architecture))
    return LoadsIn(saved_as(shape, architecture), stock, vllm, route, reasons, formats)


def saved_as(shape: ModelShape, architecture: Architecture) -> str:
    """The model type that the student is saved with.

    Two types check, or derive, the width of a head where its value is in the configuration. Their students are saved
    as the type that computes the same and does not: Llama as Mistral, Qwen2 without windows as Seed-OSS.
    """
    if not shape.is_stock(architecture):
        return f"pruned_{shape.family}"
    hidden, heads = architecture.hidden, architecture.heads[0]
    if shape.family == "llama" and hidden % heads:
        return "mistral"
    if shape.family == "qwen2" and not shape.windowed and not shape.has_width("square", hidden, heads):
        return "seed_oss"
    return shape.family


def llama_cpp_route(shape: ModelShape, architecture: Architecture) -> tuple[str, str]:
    """The name of llama.cpp's graph for the student, and an empty reason; or an empty name, and why there is none."""
    if shape.unserved:
        return "", f"it does not compute {shape.unserved}"
    if architecture.compression.quantization.scheme != "none":
        return "", QUANTIZED
    if not program_requirement(LLAMA_CPP, shape).allows(shape, architecture):
        untied = " and an output projection of its own" if shape.family == "qwen3" else ""
        rule = "heads that do not add up to its width" if architecture.is_uniform else f"sizes by layer{untied}"
        return "", f"it has no {shape.family} with {rule}"
    return ROUTES[saved_as(shape, architecture)], ""


def program_requirement(program: str, shape: ModelShape) -> Requirement:
    """What ``program``, a value of `PROGRAMS`, asks of the sizes of a student of a teacher of ``shape``."""
    name = f"--loads-in {program}"
    if program == TRANSFORMERS:
        return Requirement(name, equal_layers=True, width=shape.stock)
    square = shape.family in SQUARE or (shape.family == "qwen2" and shape.windowed)
    if program == VLLM:
        return Requirement(name, equal_layers=True, width="square" if square else shape.stock, unquantized=True)
    by_layer = f"pruned_{shape.family}" in ROUTES and (shape.family != "qwen3" or shape.tied)
    return Requirement(name, equal_layers=not by_layer, width="square" if square else "any", unquantized=True)


def format_requirement(key: str, name: str = "") -> Requirement:
    """What the format ``key`` of `FORMATS` asks of a student. ``name`` is what the user called it."""
    rule = FORMATS[key]
    return Requirement(f"--quantises-to {name or key}", inputs=rule.inputs, outputs=rule.outputs)


def requirements(shape: ModelShape, programs: Sequence[str], formats: Sequence[str]) -> list[Requirement]:
    """What the values of `parse_programs` and of `parse_formats` ask of the students of a teacher of ``shape``.

    Raises InputError when a program takes no student of such a teacher.
    """
    if LLAMA_CPP in programs and shape.unserved:
        raise InputError(f"--loads-in llama.cpp: it does not compute {shape.unserved} of this teacher; leave it out")
    asked = [program_requirement(one, shape) for one in programs]
    return asked + [format_requirement(NAMES[one], one) for one in formats]


def parse_programs(text: str | None) -> tuple[str, ...]:
    """The programs in ``text``, separated by commas. Raises InputError for one that is not known."""
    return tuple(PROGRAMS[one] for one in _parsed("--loads-in", text, PROGRAMS))


def parse_formats(text: str | None) -> tuple[str, ...]:
    """The formats in ``text``, separated by commas, as keys of `NAMES`. Raises InputError for one that is not known."""
    return _parsed("--quantises-to", text, NAMES)


def _parsed(flag: str, text: str | None, known: Iterable[str]) -> tuple[str, ...]:
    if text is None:
        return ()
    names = [one.strip().lower() for one in text.split(",")]
    for one in names:
        if one not in known:
            close = get_close_matches(one, list(known), 1)
            also = f"; did you mean {close[0]}?" if close else ""
            raise InputError(f"{flag} {one[:40]!r}: not known{also}; give some of {', '.join(known)}")
    return tuple(dict.fromkeys(names))


def card_lines(found: LoadsIn) -> list[str]:
    """Where a student loads and what its sizes fit, for its model card: lines of Markdown."""
    how = {
        TRANSFORMERS: f"as `{found.saved_as}`" if found.stock else "with the modelling file in this folder",
        VLLM: f"as `{found.saved_as}`" if found.vllm else "",
        LLAMA_CPP: f"as `{found.route}`" if found.route else "",
    }
    loads = ", ".join(f"{name} ({words})" for name, words in how.items() if words)
    refused = [f"Does not load in {name}: {found.reasons[name]}" for name, words in how.items() if not words]
    fits = ", ".join(FORMATS[key].title for key in found.formats)
    misfits = ", ".join(f"{one.title} ({_rule(one)})" for key, one in FORMATS.items() if key not in found.formats)
    sizes = [f"Sizes fit {fits}"] if fits else []
    sizes += [f"Sizes do not fit {misfits}"] if misfits else []
    return [f"- {one}" for one in (f"Loads in {loads}", *refused, *sizes)]


def _rule(one: Format) -> str:
    outputs = f" and outputs of {one.outputs}" if one.outputs > 1 else ""
    return f"inputs of matrices in multiples of {one.inputs}{outputs}"
