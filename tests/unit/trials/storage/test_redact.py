"""No password of a URL leaves the process, in whatever text the URL stands; everything else stays as it is."""

from __future__ import annotations

import shlex

import pytest

from nas.planning.settings import load_settings
from search_spaces.errors import InputError
from trials.storage.redact import redacted, redacted_line


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
        "https://account.blob.core.windows.net/c?se=2027&sig=SECRET",
        "s3://bucket/x?secret_key=SECRET&endpoint=http://h",
        "Could not parse rfc1738 URL from string 'postgresql//u:SECRET@h'",
    ],
)
def test_a_password_is_hidden_and_the_rest_is_kept(text: str) -> None:
    assert "SECRET" not in redacted(text)
    assert redacted(text).replace("***", "SECRET") == text
    assert redacted(redacted(text)) == redacted(text)


@pytest.mark.parametrize("password", ["a/b", "a?b#c", "a:b", "a@b", "it's", 'say"so', "(x)", "ä", "%40"])
def test_any_password_without_a_space_is_hidden(password: str) -> None:
    url = f"postgresql://me:{password}@host/db"
    for text in (
        url,
        f"cannot open {url!r}: no",
        shlex.join(["--storage", url, "--budget", "60%"]),
        f'{{"a": "{url}"}}',
    ):
        assert password not in redacted(text)
        assert "host/db" in redacted(text)


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"])
def test_the_value_of_a_secret_variable_is_hidden_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "word-of-nobody")
    assert redacted("401 for token=word-of-nobody, or word-of-nobody2") == "401 for token=***, or ***2"
    monkeypatch.setenv(name, "no")  # too short to be one
    assert redacted("no, there is none") == "no, there is none"


def test_a_token_of_the_hub_is_hidden() -> None:
    assert redacted("Bearer hf_AbCdEfGhIjKlMnOpQrStUv is invalid") == "Bearer *** is invalid"


def test_a_long_error_is_cut_after_its_password_is_hidden() -> None:
    error = OSError("x" * 270 + " postgresql://user:SECRET-WORD-OF-MANY-LETTERS@host/db")
    assert len(redacted_line(error)) == 300
    assert "SECRET" not in redacted_line(error)


def test_a_wrong_setting_is_cut_after_its_password_is_hidden() -> None:
    wrong = "x" * 70 + "postgresql://user:SECRET-WORD-OF-MANY-LETTERS@host/db"
    with pytest.raises(InputError) as refused:
        load_settings({"budget": "60%", "trials": wrong}, None, {})
    assert "postgresql://user:***" in str(refused.value)
    assert "SECRET" not in str(refused.value)


@pytest.mark.parametrize(
    "text", ["sqlite:////folder/studies.db", "http://127.0.0.1:5000/#/experiments/1", "a: b@c", "file:///x:y/z", ""]
)
def test_text_without_a_password_is_left_alone(text: str) -> None:
    assert redacted(text) == text
