r"""Prints where students of each family load, by what they are like: the table of docs/results.md.

    python -m benchmarks.service.where_students_load

The rules are `trials.export.loads_in`. `tests/unit/trials/export` tests them in transformers and in llama.cpp itself,
and `benchmarks.service.students_in_vllm` in vLLM.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from transformers import AutoConfig

from search_spaces.architecture import Architecture
from search_spaces.shape import ModelShape
from trials.export.loads_in import LoadsIn, loads_in
from trials.families.shapes import SHAPES, shape_of

LAYERS, HEADS, HEAD, MLP = 4, 8, 64, 1024


def config_of(family: str) -> dict[str, int | None]:
    """A teacher of 4 layers and 8 heads of 64, with key/value heads that two heads share where the family has them."""
    names: dict[str, int | None] = {"n_layer": LAYERS, "n_embd": HEADS * HEAD, "n_head": HEADS, "n_inner": MLP}
    if family != "gpt2":
        names = {"num_hidden_layers": LAYERS, "hidden_size": HEADS * HEAD, "num_attention_heads": HEADS}
        names |= {"intermediate_size": MLP}
    if family not in ("gpt2", "gpt_neox"):
        names |= {"num_key_value_heads": HEADS // 2, "head_dim": HEAD}
    if family == "mistral":
        names |= {"sliding_window": None}  # llama.cpp computes no windows
    return names


def teacher_of(family: str, tied: bool) -> ModelShape:
    """The shape of the teacher of `config_of`."""
    return shape_of(AutoConfig.for_model(family, **config_of(family), tie_word_embeddings=tied))


def kinds(shape: ModelShape) -> Iterator[tuple[str, Architecture]]:
    """Students of each kind."""
    kv = 2 if shape.group > 1 else 4
    yield "equal layers, width = heads x head size", Architecture.uniform(3, 4 * HEAD, 4, 512, kv)
    yield "equal layers, another width", Architecture.uniform(3, 6 * HEAD, 4, 512, kv)
    yield "sizes by layer", Architecture(3, 6 * HEAD, (4,) * 3, (512, 256, 512), (kv,) * 3)


def cell(found: LoadsIn) -> str:
    """Where a student loads, with the graph that llama.cpp runs it with."""
    return f"{found} (`{found.route}`)" if found.route else str(found)


def main() -> None:
    families = defaultdict[str, list[str]](list)  # by the cells of a line
    for family in SHAPES:
        for tied in (True, False):
            shape = teacher_of(family, tied)
            cells = " | ".join(cell(loads_in(shape, one)) for _, one in kinds(shape))
            if family not in families[cells]:
                families[cells].append(family if tied else f"{family}, untied")
    names = [name for name, _ in kinds(teacher_of("gpt2", tied=True))]
    print(f"| teacher | {' | '.join(names)} |")
    print("|---" * (len(names) + 1) + "|")
    for cells, found in families.items():
        print(f"| {', '.join(found)} | {cells} |")


if __name__ == "__main__":
    main()
