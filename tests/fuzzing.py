"""Generated input: how many examples, values that no file should hold, and what every answer must be."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from search_spaces.errors import InputError
from trials.teacher.causal_lm import load_causal_lm, resolve_causal_lm
from trials.teacher.source import resolve_model
from trials.teacher.teacher import load_teacher

SECONDS = 10
MOST_BYTES = 2**29  # more than before; a few times what the largest example has
LONGEST_LINE = 2_500  # characters
GIVEN = os.environ.get("FUZZ_EXAMPLES")
few = settings(
    max_examples=int(GIVEN or 60),
    derandomize=GIVEN is None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


def assert_answer(call: Callable[[], object], name: str = "") -> None:
    """Assert that ``call`` returns or raises InputError, within `SECONDS` of processor time and `MOST_BYTES`.

    The error is one line, which may repeat ``name``.
    """
    started, before, message = time.process_time(), _peak_bytes(), "a result"
    try:
        call()
    except InputError as error:
        message = str(error)
    assert time.process_time() - started < SECONDS
    assert _peak_bytes() - before < MOST_BYTES
    assert len(message.splitlines()) == 1
    assert len(message) <= LONGEST_LINE + 3 * len(name)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def assert_model_is_answered(model: Path) -> None:
    """`assert_answer` of the teacher of a search and of the model of an evaluation, both from ``model``."""
    assert_answer(lambda: load_teacher(resolve_model(str(model)), "cpu"))
    assert_answer(lambda: load_causal_lm(resolve_causal_lm(str(model), False), "cpu", "float32", False))


# JSON cannot be written with these by `json.dumps`, so they are put into the text afterwards.
SPECIAL = {
    '"<digits>"': "9" * 5000,
    '"<point>"': "0." + "3" * 5000,
    '"<exponent>"': "1e99999",
    '"<deep>"': "[" * 3000 + "]" * 3000,
    '"<objects>"': '{"a":' * 3000 + "1" + "}" * 3000,
}
characters = st.characters() | st.sampled_from("\0\ud83d\udc00\n\r\t 0%.,:=/#?~²٣")
texts = st.text(characters, max_size=12) | st.sampled_from(
    ["", "n" * 300, "48", "1e5", "nan", "None", "../x", "~x", "a/b"]
)
sizes = st.sampled_from([0, 1, 2, 3, 4, 5, 8, 12, 16, 48, 64, 96, 320, 2**31, 2**40, 10**30]).flatmap(
    lambda size: st.sampled_from([size, -size, str(size), float(size), [size], size + 1])
)
plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | sizes
    | st.floats()
    | texts
    | st.sampled_from([k.strip('"') for k in SPECIAL])
)
junk = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=5
)


def written(content: object) -> str:
    """``content`` as JSON, which is YAML as well."""
    text = json.dumps(content)
    for name, special in SPECIAL.items():
        text = text.replace(name, special)
    return text
