"""No password of a URL leaves the process, in whatever text the URL stands; everything else stays as it is."""

from __future__ import annotations

import pytest

from nas.planning.redact import redacted


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://user:SECRET@host:5432/db",
        "postgresql+psycopg2://user:SECRET@host/db?sslmode=require",
        "python -m nas.search --storage 'mysql://me:SECRET@host/x' --budget 60%",
        "(OperationalError) connection to postgresql://u:SECRET@h failed; tried http://a:SECRET@b:5000/x",
        "redis://:SECRET@host",
        "https://host/db?user=me&password=SECRET&x=1",
        "{'MLFLOW_TRACKING_URI': \"http://u:SECRET@host\"}",
    ],
)
def test_a_password_is_hidden_and_the_rest_is_kept(text: str) -> None:
    assert "SECRET" not in redacted(text)
    assert redacted(text).replace("***", "SECRET") == text
    assert redacted(redacted(text)) == redacted(text)


@pytest.mark.parametrize(
    "text", ["sqlite:////folder/studies.db", "http://127.0.0.1:5000/#/experiments/1", "a: b@c", "file:///x:y/z", ""]
)
def test_text_without_a_password_is_left_alone(text: str) -> None:
    assert redacted(text) == text
