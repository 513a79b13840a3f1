"""Generated headers of weight files: a model, or one line, within ten seconds and little memory.

A header may claim any number of bytes, tensors and layers. Nothing is allocated because of a claim. `test_fuzz` has the
other files.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from conftest import make_decoder
from fuzzing import assert_answer, assert_model_is_answered, few, junk, texts, written
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from search_spaces.errors import InputError
from trials.export.gguf.writer import write_gguf
from trials.export.load import load_checkpoint
from trials.teacher import gguf as unpacking
from trials.teacher.gguf_header import MOST_ENTRIES, header_elements
from trials.teacher.source import resolve_model
from trials.teacher.teacher import load_teacher

HUGE = (2**31, 2**32 - 1, 2**40, 2**60, 2**62, 2**63, 2**64 - 1)
huge = st.sampled_from(HUGE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A checkpoint folder of a small Llama with tied embeddings. Tests write its weights and put them back."""
    made = tmp_path_factory.mktemp("llama")
    make_decoder("llama", tie_word_embeddings=True).save_pretrained(made)
    tiny_tokenizer.save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def with_header(weights: bytes, header: str, length: int | None) -> bytes:
    """``weights``, a safetensors file, with another header and the length that is written in front of it."""
    encoded = header.encode("utf-8", "surrogatepass")
    (before,) = struct.unpack_from("<Q", weights)
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + weights[8 + before :]


dtypes = st.sampled_from(["F32", "F64", "BF16", "F8_E4M3", "F4", "BOOL", "I64", "C64", "X", ""])
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": dtypes | junk,
        "shape": st.lists(st.integers(0, 96) | huge, max_size=4) | junk,
        "data_offsets": st.lists(st.integers(0, 400_000) | huge, min_size=2, max_size=2) | junk,
        "more": junk,
    },
)


@few
@given(
    st.dictionaries(st.integers(0, 28), entries | junk, max_size=2),
    st.dictionaries(texts, entries | junk, max_size=2),
    st.sampled_from(["header", "header", "header", "length", "cut"]),
    huge | st.integers(0, 5_000) | st.just(99_999_999),
)
@example({}, {"more": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [353_088, 353_088]}}, "header", 0)
@example({}, {"__metadata__": {"format": "tf"}}, "header", 0)
@example({}, {}, "length", 2**60)
def test_safetensors_header(
    folder: Path, weights: bytes, changes: dict[int, Any], more: dict[str, Any], way: str, number: int
) -> None:
    (length,) = struct.unpack_from("<Q", weights)
    header = json.loads(weights[8 : 8 + length])
    for place, change in changes.items():
        name = sorted(header)[place % len(header)]
        header[name] = {**header[name], **change} if isinstance(change, dict) else change
    content = with_header(weights, written({**header, **more}), number if way == "length" else None)
    (folder / "model.safetensors").unlink()  # a model that was loaded before has it in its memory
    (folder / "model.safetensors").write_bytes(content[: number % len(content)] if way == "cut" else content)
    try:
        assert_model_is_answered(folder)
    finally:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").write_bytes(weights)


@dataclass(frozen=True)
class Written:
    """A GGUF file in parts: ``fields`` are (name, encoded type and value), ``tensors`` (name, sizes, type, offset)."""

    fields: tuple[tuple[bytes, bytes], ...]
    tensors: tuple[tuple[bytes, tuple[int, ...], int, int], ...]
    data: bytes = field(repr=False)
    version: int = 3
    counts: tuple[int, int] | None = None
    longest: int | None = None  # what is written as the length of the last name of a field
    cut: int | None = None

    def content(self) -> bytes:
        counts = self.counts or (len(self.tensors), len(self.fields))
        parts = [b"GGUF", struct.pack("<IQQ", self.version, *counts)]
        for place, (name, value) in enumerate(self.fields):
            last = self.longest is not None and place == len(self.fields) - 1
            parts += [struct.pack("<Q", self.longest if last else len(name)), name, value]
        for name, sizes, kind, offset in self.tensors:
            parts += [struct.pack("<Q", len(name)), name, struct.pack("<I", len(sizes))]
            parts += [struct.pack(f"<{len(sizes)}QIQ", *sizes, kind, offset)]
        head = b"".join(parts)
        return (head + b"\0" * (-len(head) % 32) + self.data)[: self.cut]

    def with_field(self, place: int, value: bytes) -> Written:
        """This file with another value of one of its fields."""
        place %= len(self.fields)
        return replace(self, fields=(*self.fields[:place], (self.fields[place][0], value), *self.fields[place + 1 :]))

    def without_field(self, place: int) -> Written:
        """This file without one of its fields."""
        place %= len(self.fields)
        return replace(self, fields=(*self.fields[:place], *self.fields[place + 1 :]))

    def with_tensor(self, place: int, change: dict[int, Any]) -> Written:
        """This file with other parts of one of its tensors; none without a ``change``."""
        place %= len(self.tensors)
        changed = tuple(change.get(part, old) for part, old in enumerate(self.tensors[place]))
        own = [changed] if change else []
        return replace(self, tensors=(*self.tensors[:place], *own, *self.tensors[place + 1 :]))


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The model in ``folder`` as a GGUF file, taken apart."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(load_checkpoint(folder), folder, path, "f32")
    reader = gguf.GGUFReader(path)
    fields = tuple(
        (name.encode(), b"".join(part.tobytes() for part in one.parts[2:]))
        for name, one in reader.fields.items()
        if not name.startswith("GGUF.")
    )
    start = reader.data_offset
    tensors = tuple(
        (one.name.encode(), tuple(map(int, one.shape)), int(one.tensor_type), one.data_offset - start)
        for one in reader.tensors
    )
    return Written(fields, tensors, path.read_bytes()[start:])


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], Path]:
    """Writes a GGUF file that is not unpacked yet."""
    monkeypatch.setattr(unpacking, "HF_HOME", str(tmp_path / "cache"))
    path = tmp_path / "model.gguf"

    def write(content: bytes) -> Path:
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        return path

    return write


def string(text: bytes) -> bytes:
    return struct.pack("<IQ", 8, len(text)) + text


def listed(kind: int, count: int, entries: bytes = b"") -> bytes:
    return struct.pack("<IIQ", 9, kind, count) + entries


def number(value: int) -> bytes:
    return struct.pack("<IQ", 10, value % 2**64)


values = (
    st.builds(number, st.integers(-3, 5) | huge)
    | st.builds(lambda kind, value: struct.pack("<II", kind, value), st.sampled_from([4, 5, 6]), st.integers(0, 2**31))
    | st.binary(max_size=24).map(string)
    | st.builds(listed, st.integers(0, 13), huge | st.integers(0, 9), st.binary(max_size=40))
    | st.builds(lambda kind, value: struct.pack("<I", kind) + value, st.integers(0, 20), st.binary(max_size=24))
)
names = texts.map(lambda text: text.encode("utf-8", "replace")) | st.binary(max_size=9)
sizes_of_tensors = st.lists(st.integers(0, 320) | huge, max_size=6).map(tuple)
tensors = (
    st.fixed_dictionaries({0: names})
    | st.fixed_dictionaries({1: sizes_of_tensors}, optional={2: st.integers(0, 45)})
    | st.fixed_dictionaries({2: st.integers(0, 45) | st.just(2**31)})
    | st.fixed_dictionaries({3: st.integers(0, 400_000) | huge})
    | st.just({})
)
ways = (
    st.builds(lambda place, value: lambda one: one.with_field(place, value), st.integers(0, 40), values)
    | st.builds(lambda place, change: lambda one: one.with_tensor(place, change), st.integers(0, 40), tensors)
    | st.builds(lambda name, value: lambda one: replace(one, fields=(*one.fields, (name, value))), names, values)
    | st.builds(lambda place: lambda one: one.without_field(place), st.integers(0, 40))
    | st.builds(
        lambda *counts: lambda one: replace(one, counts=counts), st.integers(0, 40) | huge, st.integers(0, 40) | huge
    )
    | st.builds(lambda length: lambda one: replace(one, longest=length), st.integers(0, 99) | huge)
    | st.builds(lambda version: lambda one: replace(one, version=version), st.sampled_from([0, 1, 2, 4, 2**31]))
    | st.builds(lambda cut: lambda one: replace(one, cut=cut), st.integers(0, 400_000) | st.integers(0, 4_000))
)


@few
@given(st.lists(ways, min_size=1, max_size=2))
def test_gguf_header(
    whole: Written, opened: Callable[[bytes], Path], changes: list[Callable[[Written], Written]]
) -> None:
    made = whole
    for change in changes:
        made = change(made)
    assert_model_is_answered(opened(made.content()))


def test_the_gguf_file_that_is_changed_is_a_model(whole: Written, opened: Callable[[bytes], Path]) -> None:
    path = opened(whole.content())
    assert header_elements(path) == load_teacher(resolve_model(str(path)), "cpu").model.num_parameters()


def place_of(whole: Written, name: bytes) -> int:
    return [one for one, _ in whole.fields].index(name)


WRONG: dict[str, tuple[Callable[[Written], Written], str]] = {
    "a list of 2^60 bytes": (lambda one: one.with_field(5, listed(0, 2**60)), "more than it can have"),
    "many small lists": (
        lambda one: replace(one, fields=(*one.fields, (b"a", listed(0, MOST_ENTRIES, bytes(MOST_ENTRIES))))),
        "more than it can have",
    ),
    "a list of lists": (lambda one: one.with_field(5, listed(9, 1, struct.pack("<IQ", 9, 2**60))), "a list of lists"),
    "2^63 tensors": (lambda one: replace(one, counts=(2**63, 1)), "more than it can have"),
    "2^63 fields": (lambda one: replace(one, counts=(1, 2**63)), "more than it can have"),
    "a name of 2^63 bytes": (lambda one: replace(one, longest=2**63), "reaches behind"),
    "2^31 layers": (
        lambda one: one.with_field(place_of(one, b"llama.block_count"), number(2**31)),
        "block_count is 2,147,483,648, and must be at most 1,000",
    ),
    "2^31 layers as a list": (
        lambda one: one.with_field(place_of(one, b"llama.block_count"), listed(10, 1, struct.pack("<Q", 2**31))),
        "block_count is 2,147,483,648, and must be at most 1,000",
    ),
    "a layer more": (
        lambda one: one.with_field(place_of(one, b"llama.block_count"), number(4)),
        "lacks 9 tensors, the first is that of model.layers.3.input_layernorm.weight",
    ),
    "wide layers": (
        lambda one: one.with_field(place_of(one, b"llama.feed_forward_length"), number(2**20)),
        "and its header describes",
    ),
    "a tensor less": (lambda one: one.with_tensor(7, {}), "lacks 1 tensors"),
    "a tensor outside": (lambda one: one.with_tensor(7, {3: 2**40}), "reaches behind"),
    "a tensor in another": (lambda one: one.with_tensor(7, {3: one.tensors[3][3]}), "overlaps another"),
    "a tensor of 2^64 elements": (lambda one: one.with_tensor(7, {1: (2**32, 2**32)}), "reaches behind"),
    "a tensor of 2^31 dimensions": (lambda one: one.with_tensor(7, {1: (1,) * 5}), "has 5 dimensions"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_gguf_header_is_refused_before_anything_reads_it(
    whole: Written, opened: Callable[[bytes], Path], name: str
) -> None:
    change, reason = WRONG[name]
    path = opened(change(whole).content())
    with pytest.raises(InputError, match=reason) as refused:
        resolve_model(str(path))
    assert "its GGUF content cannot be used" in str(refused.value)
    assert_answer(lambda: resolve_model(str(path)))
