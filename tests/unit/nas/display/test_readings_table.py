"""The table says beside each figure what it is."""

from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console

from nas.display.readings_table import figure, readings_table
from trials.evaluate.reading import Reading, perplexity

ROLLING = {"tokens": 5, "words": 1000, "bytes": 6000, "documents": 1, "length": 1024}
TIMED = {"length": 512, "batch": 1, "warmup": 3, "repeats": 10, "at_p5": 11.0}
LINES = {
    "text token perplexity 1,234.57 non-overlapping windows of 1,024 2,046 tokens": Reading(
        "text", "non-overlapping windows", "token perplexity", 1234.567, "per token", tokens=2046, length=1024
    ),
    "token perplexity 30.00 strided windows of 1,024, stride 512 9 tokens": Reading(
        "text", "strided windows", "token perplexity", 30.0, "per token", tokens=9, length=1024, stride=512
    ),
    "word perplexity 2e+09 rolling documents, length 1,024 1 document, 1,000 words": Reading(
        "text", "rolling documents", "word perplexity", 2e9, "per word", **ROLLING
    ),
    "bits per byte 1.2346 rolling documents, length 1,024 1 document, 6,000 bytes": Reading(
        "text", "rolling documents", "bits per byte", 1.23456, "bits", **ROLLING
    ),
    "lambada last-word accuracy 45.67% lambada_openai, length 1,024 7 documents": Reading(
        "lambada", "lambada_openai", "last-word accuracy", 0.4567, "share", words=7, documents=7, length=1024
    ),
    "efficiency prefill latency, ms 12.34 10 timed after 3, length 512, batch 1 p5 11.00": Reading(
        "efficiency", "timed", "prefill latency", 12.341, "ms", **TIMED
    ),
    "key/value cache, bytes per token 16,384 counted, length 512": Reading(
        "efficiency", "counted", "key/value cache", 16384, "bytes per token", length=512
    ),
}


def test_one_line_for_each_reading() -> None:
    console = Console(width=120, file=io.StringIO())
    console.print(readings_table(list(LINES.values())))
    heading, *lines = (" ".join(line.split()) for line in console.file.getvalue().splitlines() if line.strip())
    assert heading == "task metric value how counted"
    assert lines == list(LINES)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.5, "share", "50.00%"), (7_432_704, "parameters", "7,432,704"), (math.inf, "per word", "inf")],
)
def test_figures(value: float, unit: str, text: str) -> None:
    assert figure(value, unit) == text


def test_what_no_number_can_hold_is_none_in_json() -> None:
    reading = Reading("text", "rolling documents", "word perplexity", perplexity(1e6), "per word")
    assert json.loads(json.dumps(reading.to_dict(), allow_nan=False))["value"] is None
