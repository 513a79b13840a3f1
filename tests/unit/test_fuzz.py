"""Generated input: whatever a user's file or flag holds, the answer is a result or one line, within ten seconds.

FUZZ_EXAMPLES=2000 tries that many new examples of each kind, instead of the same few each time.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from conftest import make_decoder, make_gpt2
from fuzzing import assert_answer, assert_model_is_answered, characters, few, junk, texts, written
from hypothesis import assume, example, given
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from nas.planning.settings import SearchSettings, load_settings
from nas.search import DONE, WRONG_INPUT, main
from search_spaces.budget import check_budgets, parse_budgets
from search_spaces.compression import Adapters, Quantization, Sparsity
from search_spaces.errors import InputError
from search_spaces.files import SpaceFile, check_space, load_space
from search_spaces.shape import ModelShape
from trials.teacher.causal_lm import resolve_causal_lm
from trials.teacher.source import resolve_model
from trials.teacher.teacher import load_teacher
from trials.text.evaluation_text import TextTask, open_text, parse_tests, text_task
from trials.text.mixture import parse_mixture
from trials.text.packing import pack
from trials.text.sources import check_sources, open_source
from trials.text.text_source import from_path, local_path
from trials.text.validation import open_validation, parse_validation

SMALL = ModelShape("gpt2", 4, 64, 4, 16, 128, 320, 64, tied=True)
GROUPED = ModelShape("llama", 4, 48, 4, 12, 64, 320, 64, tied=True, group=2, learned_positions=False, stock="any")


budgets = (
    st.text("0123456789_.,%KMBGkmx e+-²٣\n", max_size=12) | texts | st.sampled_from(["9" * 5000, "9" * 5000 + "%"])
)


@few
@given(st.lists(budgets, min_size=1, max_size=3).map(",".join), st.floats() | st.just(0.05))
def test_budgets(text: str, tolerance: float) -> None:
    counts = tuple(range(1_000, 354_823_168, 1_000_003))
    assert_answer(lambda: check_budgets(text))
    assert_answer(lambda: parse_budgets(text, 354_823_168, counts, tolerance))


shares = st.integers(0, 130).map("{}%".format) | st.integers(0, 130) | st.text("0123456789.%-²٣", max_size=6) | junk
ranges = st.fixed_dictionaries({"min": shares}, optional={"max": shares, "step": shares, "foo": junk})
axes = ranges | st.lists(shares, max_size=4) | junk
flags = st.booleans() | st.lists(st.booleans(), max_size=3) | junk
choices = st.just("any") | st.lists(st.lists(st.integers(-1, 9), max_size=4), max_size=4) | junk
values = (
    st.floats() | st.integers(-3, 130) | st.booleans() | st.lists(st.sampled_from(["mlp", "attention", "a"])) | junk
)
words = st.sampled_from(["none", "nf4", "int8", "2:4", "wanda", "sparsegpt", "pdp", "unstructured", "mlp"])


def recipes(part: type) -> st.SearchStrategy[object]:
    """Values of an axis that says what is done to weights, with the fields of ``part``."""
    names = [one.name for one in fields(part)]
    some = st.dictionaries(st.sampled_from([*names, "unknown"]), values | words, max_size=4)
    return st.lists(some | words | values, max_size=4) | junk


kinds = {"stock_only": flags, "allocated": flags, "kept_layers": choices}
kinds |= {"sparsity": recipes(Sparsity), "quantization": recipes(Quantization), "adapters": recipes(Adapters)}
keys = {name: kinds.get(name, axes) for name in SpaceFile.model_fields}
yaml_texts = st.text(st.sampled_from("a1%:-[]{}&*!|>#'\",\n \tx\0") | characters, max_size=60)


@few
@given(st.fixed_dictionaries({}, optional={**keys, "depht": junk}).map(written) | junk.map(written) | yaml_texts)
def test_space_files(tmp_path: Path, text: str) -> None:
    file = tmp_path / "space.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert_answer(lambda: check_space(str(file)))
    for shape in (SMALL, GROUPED):
        assert_answer(lambda shape=shape: load_space(str(file), shape).counts)


@few
@given(
    st.dictionaries(st.sampled_from([*SearchSettings.model_fields, "unknown"]) | texts, junk, max_size=6).map(written)
    | junk.map(written)
    | yaml_texts,
    st.dictionaries(st.sampled_from([*SearchSettings.model_fields]), texts | budgets, max_size=3),
)
@example("", {"study": "9" * 5000})
def test_settings(tmp_path: Path, text: str, flags: dict[str, str]) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert_answer(lambda: load_settings({"budget": "260M"}, str(file), {}))
    assert_answer(lambda: load_settings(flags, str(file), {}))
    assert_answer(lambda: load_settings({}, None, {f"NAS_{name.upper()}": value for name, value in flags.items()}))


counts = st.integers(-1, 70) | st.sampled_from([1_000, 65_536, 2**31, 2**62, 2**64, 10**30])
numbers = (
    counts.map(str)
    | st.builds("{}{}".format, counts, st.sampled_from("KMBG%"))
    | st.floats().map(str)
    | st.sampled_from(["9" * 39, "1e400", "-0.0", "0.9999999999999999", "yes", "no", "", "\0", "²", "٣"])
)
LEFT = {"budget", "model", "corpus", "output", "address"}  # what a plan needs, and what would be reached
NAMES = {
    "objectives": ["loss", "loss,params", "loss,latency,latency", "params"],
    "space": ["default", "depth", "mixed", "layer-removal", "sparsity", "pdp", "stack", "pruned-gpt", "fine", "stock"],
    "loads_in": ["vllm", "transformers,llama.cpp", "vllm,"],
    "quantises_to": ["q4_k,int4", "nf4", "bf16", "x"],
    "validation": ["stdlib", "a=stdlib,b=stdlib"],
    "test": ["python-docs", "lambada", "ptb=./ptb.txt", "a=b"],
    "test_tasks": ["hellaswag", "piqa:0", "mine=./mine.yaml"],
    "study": ["a", "../a", "a" * 80, "best"],
    "storage": ["sqlite://", "postgresql://user:word@nowhere/db", "x"],
}


def values_of(name: str) -> st.SearchStrategy[tuple[str, str]]:
    """Values of the setting ``name``, most of them possible."""
    kind = str(SearchSettings.model_fields[name].annotation)
    words = NAMES.get(name) or re.findall(r"'(\w+)'", kind) or (["yes", "no"] if "bool" in kind else [])
    possible = st.sampled_from(words) if words else st.integers(0, 70).map(str)
    return st.tuples(st.just(name), possible | possible | numbers)


given_settings = st.lists(st.sampled_from(sorted({*SearchSettings.model_fields} - LEFT)).flatmap(values_of), max_size=4)


@few
@given(st.sampled_from(["60%", "60%,50%", "5M", "90%B"]), given_settings)
def test_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str], budget: str, chosen: list[tuple[str, str]]) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in chosen]
    flags += ["--model", "mini", "--budget", budget, "--corpus", "stdlib", "--output", str(tmp_path), "--dry-run"]
    codes: list[int] = []
    assert_answer(lambda: codes.append(main(flags)))
    printed = capsys.readouterr()
    assert codes[0] in (DONE, WRONG_INPUT), printed.err
    assert len(printed.err.splitlines()) == (codes[0] == WRONG_INPUT), printed.err
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> dict[str, Path]:
    """Folders of small teachers, by type. A test may write their JSON files, if it writes all of them."""
    made: dict[str, PreTrainedModel] = {"gpt2": make_gpt2()}
    made |= {name: make_decoder(name) for name in ("llama", "mistral", "qwen2", "qwen3", "gpt_neox")}
    found = {}
    for name, model in made.items():
        found[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(found[name])
        tiny_tokenizer.save_pretrained(found[name])
    return found


JSON_FILES = ("config.json", "generation_config.json", "tokenizer_config.json")
OTHERS = (
    *("rope_scaling", "rope_theta", "quantization_config", "auto_map", "torch_dtype", "sliding_window", "head_dim"),
    *(
        "num_key_value_heads",
        "per_layer_config",
        "text_config",
        "transformers_weights",
        "fusion_config",
        "num_hidden_layers",
    ),
    *("added_tokens_decoder", "chat_template", "tokenizer_class", "additional_special_tokens", "padding_side"),
)


@few
@given(
    st.data(), st.sampled_from(["gpt2", "llama", "mistral", "qwen2", "qwen3", "gpt_neox"]), st.sampled_from(JSON_FILES)
)
def test_json_files_of_a_model(folders: dict[str, Path], data: st.DataObject, kind: str, name: str) -> None:
    file = folders[kind] / name
    before = file.read_text("utf-8")
    known = [*json.loads(before), *OTHERS]
    changes = data.draw(st.dictionaries(st.sampled_from(known) | texts, junk, min_size=1, max_size=3), "changes")
    content: Any = {**json.loads(before), **changes}
    removed = data.draw(st.sets(st.sampled_from(sorted(content)), max_size=2), "removed")
    content = {key: value for key, value in content.items() if key not in removed}
    text = written(data.draw(st.just(content) | junk if data.draw(st.booleans()) else st.just(content), "content"))
    try:
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        assert_model_is_answered(folders[kind])
    finally:
        file.write_text(before, "utf-8")


def places(content: Any) -> list[tuple[str | int, ...]]:
    """The paths to all values in ``content``, of which long lists and objects give the first few."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    below = [(key, *rest) for key, value in islice(inner, 9) for rest in [(), *places(value)]]
    return below if below or not isinstance(content, dict | list) else [()]


TYPES = (
    *("BPE", "Unigram", "WordPiece", "WordLevel", "ByteLevel", "Split", "Replace", "Metaspace", "Precompiled"),
    *("Sequence", "TemplateProcessing", "BertNormalizer", "NFC", "Digits", "ByteFallback", "Strip", "Fuse"),
)
parts_of_tokenizers = st.fixed_dictionaries(
    {"type": st.sampled_from(TYPES)},
    optional={
        "pattern": st.sampled_from([{"Regex": "("}, {"Regex": "(a*)*b"}, {"String": ""}, {"Regex": ""}]) | junk,
        "content": texts | junk,
        "behavior": st.sampled_from(["Isolated", "Removed", "Contiguous"]),
        "vocab": st.dictionaries(texts, st.integers(0, 400), max_size=3) | st.lists(st.tuples(texts, st.floats())),
        "merges": st.lists(texts | st.lists(texts, max_size=3), max_size=3),
        "unk_id": st.integers(-1, 400),
        "precompiled_charsmap": texts,
        "pretokenizers": st.lists(junk, max_size=2),
        "replacement": texts,
        "special_tokens": junk,
    },
)


@few
@given(st.data(), junk | parts_of_tokenizers)
def test_tokenizer_of_a_model(folders: dict[str, Path], data: st.DataObject, value: object) -> None:
    file = folders["llama"] / "tokenizer.json"
    before = file.read_text("utf-8")
    content = json.loads(before)
    *way, last = data.draw(st.sampled_from(places(content)), "place")
    inner = content
    for key in way:
        inner = inner[key]
    inner[last] = value
    try:
        file.write_bytes(written(content).encode("utf-8", "surrogatepass"))
        assert_model_is_answered(folders["llama"])
    finally:
        file.write_text(before, "utf-8")


def test_a_panic_of_the_library_of_tokenizers_is_one_line(folders: dict[str, Path]) -> None:
    file = folders["llama"] / "tokenizer.json"
    before = file.read_text("utf-8")
    content = json.loads(before)
    content["model"]["continuing_subword_prefix"] = "longer than any token of a merge"
    try:
        file.write_text(json.dumps(content), "utf-8")
        with pytest.raises(InputError, match="its tokenizer cannot be used: range end index"):
            load_teacher(resolve_model(str(folders["llama"])), "cpu")
    finally:
        file.write_text(before, "utf-8")


@few
@given(
    st.dictionaries(texts, junk, max_size=2)
    | st.fixed_dictionaries({"weight_map": st.dictionaries(texts, junk) | junk})
)
def test_index_of_shards(folders: dict[str, Path], content: object) -> None:
    folder = folders["llama"]
    (folder / "model.safetensors").rename(folder / "kept")
    try:
        (folder / "model.safetensors.index.json").write_text(written(content))
        assert_answer(lambda: resolve_model(str(folder)))
    finally:
        (folder / "kept").rename(folder / "model.safetensors")


rows = st.fixed_dictionaries({"text": texts | st.text(characters, max_size=300)}, optional={"more": junk}) | junk
lines = st.lists(rows.map(written) | texts, max_size=8).map("\n".join)
words = st.text(st.sampled_from("ab .\n\r\t\"'()[]{}=@") | characters, max_size=400)


@few
@given(
    lines | words | st.builds(lambda one, times: one * times, words, st.integers(1, 400)),
    st.sampled_from(["txt", "jsonl"]),
)
@example("x" * 2_000_000, "txt")
@example('{"text": "' + "a b" * 700_000 + '"}', "jsonl")
@example("", "jsonl")
def test_text_files(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, text: str, suffix: str) -> None:
    file = tmp_path / f"text.{suffix}"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    for side in ("train", "validation"):
        assert_answer(lambda side=side: pack(getattr(from_path(file), side)(), tiny_tokenizer, 300, 16))
    assert_answer(lambda: pack(open_validation(str(file)).validation(), tiny_tokenizer, 300, 16))
    for task in ("mine", "wikitext-2", "ptb", "lambada"):
        assert_answer(lambda task=task: open_text(TextTask(task, file)))


@few
@given(
    st.binary(max_size=200),
    st.sampled_from(["a.txt", "a.jsonl", "a.parquet", "a.yaml", "config.json", "tokenizer.json", "a.gguf"]),
)
def test_files_of_bytes(folders: dict[str, Path], tmp_path: Path, content: bytes, name: str) -> None:
    file = (folders["qwen3"] if name.startswith(("config", "tokenizer")) else tmp_path) / name
    before = file.read_bytes() if file.exists() else b""
    try:
        file.write_bytes(b"GGUF" + content if name == "a.gguf" else content)
        assert_answer(lambda: [*open_source(str(file)).train()])
        assert_answer(lambda: check_space(str(file)))
        assert_answer(lambda: load_settings({"budget": "1M"}, str(file), {}))
        assert_answer(lambda: resolve_model(str(file)))
        assert_model_is_answered(folders["qwen3"])
    finally:
        file.write_bytes(before)


names = st.text(
    st.characters(exclude_categories=["Cc", "Zl", "Zp"]) | st.sampled_from("abc/.~=:,- \0\ud83d"), max_size=20
)
long_names = st.sampled_from(["n" * 300, "a" * 5000, "/".join("ab" * 3000), "a/" + "b" * 300])


@few
@given(names | long_names)
def test_names(name: str) -> None:
    assume(not name or not os.path.exists(local_path(name)))
    texts = open_source, lambda name: check_sources([name]), parse_mixture, open_validation, text_task, parse_tests
    for read in (resolve_model, check_space, *texts):
        assert_answer(lambda read=read: read(name), name)
    assert_answer(lambda: resolve_causal_lm(name, False), name)
    assert_answer(lambda: parse_validation(name), name)
