"""Checks the header of a GGUF file. The readers of such files believe every count and every length in it."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from trials.teacher.config_file import SIZES

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_ENTRIES = 2**22  # of all lists of the header together; a vocabulary of 262,144 has about a million
MOST_DIMENSIONS = 4
MOST_BLOCKS = SIZES["num_hidden_layers"]
BLOCKS = ".block_count"  # key of the number of layers, behind the name of the architecture
SCALARS = {
    **dict.fromkeys((GGUFValueType.UINT8, GGUFValueType.INT8, GGUFValueType.BOOL), "B"),
    **dict.fromkeys((GGUFValueType.UINT16, GGUFValueType.INT16), "H"),
    **dict.fromkeys((GGUFValueType.UINT32, GGUFValueType.INT32, GGUFValueType.FLOAT32), "I"),
    **dict.fromkeys((GGUFValueType.UINT64, GGUFValueType.INT64, GGUFValueType.FLOAT64), "Q"),
}


@dataclass
class _Cursor:
    """A place in the bytes of a file, and how many entries of lists are before it."""

    content: mmap.mmap | bytes
    place: int = 0
    entries: int = 0

    def number(self, code: str) -> int:
        """The next number, little-endian; ``code`` is that of `struct`."""
        start = self.skip(struct.calcsize(code))
        found: int = struct.unpack_from(f"<{code}", self.content, start)[0]
        return found

    def text(self) -> str:
        """The next string, as it can be shown."""
        length = self.number("Q")
        start = self.skip(length)
        return bytes(self.content[start : start + length]).decode("utf-8", "replace")

    def skip(self, length: int) -> int:
        """Go on by ``length`` bytes, and return the place before them. Raises ValueError behind the end of the file."""
        start, self.place = self.place, self.place + length
        if self.place > len(self.content):
            raise ValueError(f"a length at byte {start:,} reaches behind its {len(self.content):,} bytes")
        return start

    def take_entries(self, count: int, least: int) -> None:
        """Count the entries of a list, each of at least ``least`` bytes. Raises ValueError for too many."""
        self.entries += count
        if self.entries > MOST_ENTRIES or count * least > len(self.content) - self.place:
            raise ValueError(f"a list at byte {self.place:,} has {count:,} entries, more than it can have")


def header_elements(file: Path) -> int:
    """The number of weights in a GGUF file, of all its tensors together.

    Raises ValueError in one line for a version that cannot be read, and for a count, a length or an offset that
    reaches behind the end of the file. It does for tensors that overlap, and for more layers than any model has.
    """
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[: len(MAGIC)] != MAGIC:
            raise ValueError(f"it does not begin with {MAGIC.decode()}")
        cursor = _Cursor(content, place=len(MAGIC))
        if (version := cursor.number("I")) not in VERSIONS:
            raise ValueError(f"version {version:,}, and only {' and '.join(map(str, VERSIONS))} can be read")
        tensors, fields = cursor.number("Q"), cursor.number("Q")
        cursor.take_entries(tensors, 8)
        cursor.take_entries(fields, 8)
        alignment = 32
        for _ in range(fields):
            name = cursor.text()
            value = _value(cursor)
            if name.endswith(BLOCKS) and value > MOST_BLOCKS:
                raise ValueError(f"{name} is {value:,}, and must be at most {MOST_BLOCKS:,}")
            if name == "general.alignment":
                alignment = max(1, value)
        found = [_tensor(cursor) for _ in range(tensors)]
        start = -(-cursor.place // alignment) * alignment
        _check_places([(start + offset, size) for offset, size, _ in found], len(content))
    return sum(elements for _, _, elements in found)


def _value(cursor: _Cursor) -> int:
    """Go over a value. Returns it if it is a number without a sign and a point, the first one of a list, or else 0."""
    kind = GGUFValueType(cursor.number("I"))
    if kind in SCALARS:
        return cursor.number(SCALARS[kind])
    if kind is GGUFValueType.STRING:
        cursor.skip(cursor.number("Q"))
        return 0
    inner, count = GGUFValueType(cursor.number("I")), cursor.number("Q")
    if inner in SCALARS:
        size = struct.calcsize(SCALARS[inner])
        cursor.take_entries(count, size)
        first = cursor.number(SCALARS[inner]) if count else 0
        cursor.skip(size * max(0, count - 1))
        return first
    if inner is not GGUFValueType.STRING:
        raise ValueError("a list of lists, which no model has")
    cursor.take_entries(count, 8)
    for _ in range(count):
        cursor.skip(cursor.number("Q"))
    return 0


def _tensor(cursor: _Cursor) -> tuple[int, int, int]:
    """The offset, the bytes and the elements of the next tensor."""
    name, dimensions = cursor.text(), cursor.number("I")
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise ValueError(f"tensor {name[:60]!r} has {dimensions:,} dimensions, and may have {MOST_DIMENSIONS}")
    elements = prod(cursor.number("Q") for _ in range(dimensions))
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(cursor.number("I"))]
    return cursor.number("Q"), elements * size // block, elements


def _check_places(places: list[tuple[int, int]], size: int) -> None:
    """Raise ValueError when one of ``places``, pairs of start and length in bytes, is outside or inside another."""
    end = 0
    for start, length in sorted(places):
        if start < end or start + length > size:
            reason = "overlaps another" if start < end else f"reaches behind its {size:,} bytes"
            raise ValueError(f"the tensor at byte {start:,} {reason}")
        end = start + length
