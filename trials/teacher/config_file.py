"""Checks the JSON files of a checkpoint, above all config.json, before transformers reads them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from search_spaces.errors import InputError
from trials.families.shapes import SHAPES

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LARGEST_FILE = 2**26  # bytes
DEEPEST = 50  # objects and lists inside each other

# The most that each size may be. All models are far below; above, a wrong digit would take all memory.
SIZES = {
    **dict.fromkeys(("num_hidden_layers", "n_layer"), 1_000),
    **dict.fromkeys(("hidden_size", "n_embd"), 2**18),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_key_value_heads", "head_dim"), 2**14),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 2**14),
    **dict.fromkeys(("intermediate_size", "n_inner"), 2**21),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 2**31),
    "vocab_size": 2**24,
}
MAY_BE_NULL = ("num_key_value_heads", "head_dim", "n_inner")
UP_TO_ONE = (
    *("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "rotary_pct", "partial_rotary_factor"),
    *("attention_dropout", "hidden_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop"),
)
ABOVE_ZERO = ("rope_theta", "rotary_emb_base", "factor")
ROTARY = ("rope_parameters", "rope_scaling")
ROTARY_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")
ACTIVATION = ("hidden_act", "activation_function")
ACTIVATIONS = re.compile(
    "gelu(_new|_fast|_python|_pytorch_tanh|_accurate|_python_tanh|_10)?|quick_gelu|relu[26]?|silu|swish|mish|tanh|"
    "sigmoid|linear|leaky_relu|hardswish|laplace"
)
IMPLEMENTATION = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
DTYPES = re.compile(r"auto|bfloat16|float(16|32|64)?|half|double|float8_\w+")
KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "model_type": (str, "a name"),
    **dict.fromkeys(("dtype", "torch_dtype"), ((str, dict), "the name of a number format")),
    **dict.fromkeys(ACTIVATION, (str, "the name of a function")),
    **dict.fromkeys((*ROTARY, "quantization_config", "compression_config"), (dict, "an object")),
    "layer_types": (list, "a list"),
    "auto_map": (dict, "an object"),
    "transformers_weights": (str, f"{WEIGHTS} or absent"),
}


def check_config(folder: Path, model: str) -> None:
    """Check config.json in ``folder``: sizes and numbers of the right type and within bounds.

    Only what all models of transformers have in common is checked, and more for the types that can be pruned. Raises
    InputError that begins with the name ``model``.
    """
    config = read_object(folder / "config.json", model)
    if problem := first_problem(config):
        raise InputError(
            f"model {model}: its config.json cannot be used: {problem}; correct it, or copy it from the model again"
        )


def first_problem(config: dict[str, Any]) -> str | None:
    """What is wrong with the content of a config.json, in one line, or None."""
    return next(_problems(config), None)


def check_weights(folder: Path, model: str, *, pruned: bool) -> None:
    """Check that the weights in ``folder`` are plain numbers, or can be turned into such.

    Weights in blocks of FP8 always can. Those of bitsandbytes and torchao can too, but not exactly, so a model that is
    to be ``pruned`` must not have them. Raises InputError that begins with the name ``model``.
    """
    for part in _parts(read_object(folder / "config.json", model)):
        for quantization in (part.get("quantization_config"), part.get("compression_config")):
            if not quantization or is_block_fp8(quantization) or (not pruned and is_coded(quantization)):
                continue
            raise InputError(
                f"model {model}: its weights are quantized ({_method(quantization)}), and quantized matrices "
                f"cannot be {'sliced' if pruned else 'read here'}; take the unquantized checkpoint"
            )


def is_coded(quantization: dict[str, Any]) -> bool:
    """Whether weights are in codes of bitsandbytes or torchao, which transformers reads."""
    return quantization.get("quant_method") in ("bitsandbytes", "torchao")


def read_object(file: Path, model: str) -> dict[str, Any]:
    """The object in a JSON file of the checkpoint of ``model``.

    Raises InputError when it cannot be read, is not an object, is too large, or is nested too deep.
    """
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise ValueError(f"it has more than {LARGEST_FILE:,} bytes")
        content = json.loads(file.read_text("utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds {short(content)} instead of an object")
        if sum(1 for _ in _levels(content)) > DEEPEST:
            raise RecursionError
    except RecursionError as error:
        raise InputError(
            f"model {model}: its {file.name} cannot be used: nested more than {DEEPEST} deep; copy it again"
        ) from error
    except (OSError, ValueError) as error:  # also numbers of more than 4,300 digits
        reason = str(error).partition("; use sys.")[0]
        raise InputError(f"model {model}: its {file.name} cannot be used: {reason}; copy it again") from error
    return content


def is_block_fp8(quantization: dict[str, Any]) -> bool:
    """Whether weights are FP8 with a scale for each block. transformers turns these into plain weights, exactly."""
    block = quantization.get("weight_block_size")
    sizes = block if isinstance(block, list) and len(block) == 2 else [0]
    return quantization.get("quant_method") == "fp8" and all(_is_size(size, 1, 2**14) for size in sizes)


def short(value: object) -> str:
    """``value`` as JSON, cut to a length that an error message can show."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _problems(config: dict[str, Any]) -> Iterator[str]:
    """Yields everything that is wrong with ``config``: the key, the value and the rule."""
    yield from (f"{short(name)} is not a name" for name in _keys(config) if not name.isprintable() or len(name) > 200)
    for name, (kind, rule) in KINDS.items():
        if name in config and not isinstance(config[name], kind) and (name == "auto_map" or config[name] is not None):
            yield f"{name} is {short(config[name])}, and must be {rule}"
    prunable = config.get("model_type") in SHAPES
    for part in _parts(config):
        yield from _wrong_sizes(part, prunable and part is config)
        yield from _wrong_numbers(part)
    yield from _wrong_names(config, prunable)


def _wrong_sizes(part: dict[str, Any], prunable: bool) -> Iterator[str]:
    """Other types may have sizes of other kinds, for example a list by layer, and no heads at all."""
    for name, most in SIZES.items():
        value = part.get(name)
        if name not in part or (value is None and (name in MAY_BE_NULL or not prunable)):
            continue
        if not _is_size(value, int(prunable), most) and (prunable or isinstance(value, int)):
            yield f"{name} is {short(value)}, and must be a whole number from 1 to {most:,}"


def _wrong_numbers(part: dict[str, Any]) -> Iterator[str]:
    for numbers in (part, *_rotary(part)):
        for name in (*UP_TO_ONE, *ABOVE_ZERO):
            value = numbers.get(name)
            if value is None or (_is_number(value) and (value <= 1 if name in UP_TO_ONE else value > 0)):
                continue
            yield f"{name} is {short(value)}, and must be a number {'from 0 to 1' if name in UP_TO_ONE else 'above 0'}"


def _wrong_names(config: dict[str, Any], prunable: bool) -> Iterator[str]:
    for name in ("dtype", "torch_dtype"):
        if isinstance(value := config.get(name), str) and not DTYPES.fullmatch(value):
            yield f"{name} is {short(value)}, and must be the name of a number format"
    for name in ACTIVATION if prunable else ():
        if config.get(name) is not None and not ACTIVATIONS.fullmatch(config[name]):
            yield f"{name} is {short(config[name])}, and must be the name of a function"
    for rotary in _rotary(config) if prunable else ():
        value = rotary.get("rope_type", rotary.get("type"))
        if value is not None and value not in ROTARY_TYPES:
            yield f"rope_type is {short(value)}, and must be one of {', '.join(ROTARY_TYPES)}"
    for part in _parts(config):
        for name in IMPLEMENTATION:
            if (value := part.get(name)) is not None and not (isinstance(value, str) and value.isidentifier()):
                yield f"{name} is {short(value)}, and must be the name of a function of transformers"
    if config.get("transformers_weights") not in (None, WEIGHTS, INDEX):
        yield f"transformers_weights is {short(config['transformers_weights'])}, and must be {WEIGHTS} or absent"


def _parts(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields ``config`` and the configurations in it, such as that of the text model of a model that sees."""
    yield config
    for name, value in config.items():
        if isinstance(value, dict) and name.endswith("_config") and name not in KINDS:
            yield from _parts(value)


def _rotary(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the objects that describe rotary positions; some models have one for each type of layer."""
    for name in ROTARY:
        if isinstance(found := config.get(name), dict):
            yield found
            yield from (value for value in found.values() if isinstance(value, dict))


def _is_size(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: object) -> bool:
    """Whether ``value`` is a finite number of 0 or above, and small enough for a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e30 and math.isfinite(value)


def _method(quantization: dict[str, Any]) -> str:
    bits = quantization.get("bits", quantization.get("w_bit"))
    if quantization.get("load_in_4bit") or quantization.get("load_in_8bit"):
        bits = 4 if quantization.get("load_in_4bit") else 8
    method = quantization.get("quant_method", "bitsandbytes" if bits else "unknown method")
    name = method if isinstance(method, str) and method.isprintable() else short(method)
    return f"{name[:60]}, {bits} bits" if _is_size(bits, 1, 64) else name[:60]


def _levels(content: object) -> Iterator[list[dict[str, Any] | list[Any]]]:
    """Yields the objects and lists of ``content``, those of each depth together."""
    level = [content]
    while found := [one for one in level if isinstance(one, dict | list)]:
        yield found
        level = [inner for one in found for inner in (one.values() if isinstance(one, dict) else one)]


def _keys(content: object) -> Iterator[str]:
    return (key for level in _levels(content) for one in level if isinstance(one, dict) for key in one)
