"""Settings: precedence of the four sources, and errors that name setting and source."""

from __future__ import annotations

from pathlib import Path

import pytest

from nas.planning.settings import SearchSettings, build_parser, load_settings, parse_arguments
from search_spaces.errors import InputError


def test_flags_beat_environment_beats_file_beats_defaults(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("budget: 260M\ntrials: 5\nseed: 5\nsampler: gp\n")
    settings = load_settings({"trials": "7"}, str(file), {"NAS_TRIALS": "6", "NAS_SEED": "6"})
    assert (settings.trials, settings.seed, settings.sampler, settings.tolerance) == (7, 6, "gp", 0.05)


def test_a_budget_in_yaml_may_be_a_number(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("budget: 260_000_000\n")
    assert load_settings({}, str(file), {}).budget == "260000000"


def test_every_setting_has_a_flag_with_help() -> None:
    text = build_parser().format_help()
    for name, field in SearchSettings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert field.description


@pytest.mark.parametrize(
    ("flags", "file", "environment", "named"),
    [
        ({}, None, {}, "--budget is missing"),
        ({"budget": "1M", "trials": "x"}, None, {}, "--trials 'x'"),
        ({"budget": "1M", "trials": "0"}, None, {}, "--trials '0'"),
        ({"budget": "1M", "sampler": "foo"}, None, {}, "'screen', 'tpe'"),
        ({"budget": "1M", "study": "a/b"}, None, {}, "--study 'a/b'"),
        ({"budget": "1M", "tolerance": "1.5"}, None, {}, "--tolerance '1.5'"),
        ({"budget": "1M", "finalists": "-1"}, None, {}, "--finalists '-1'"),
        ({"budget": "1M", "final_tokens": "0"}, None, {}, "--final-tokens '0'"),
        ({"budget": "1M", "baselines": "some"}, None, {}, "--baselines 'some'"),
        ({"budget": "1M"}, None, {"NAS_SEED": "-1"}, "NAS_SEED: seed '-1'"),
        ({}, "budget: 1M\nbudgets: 2\n", {}, "settings.yaml: unknown setting 'budgets'"),
        ({}, "- 1\n", {}, "must be a mapping"),
        ({}, "a: [\n", {}, "not a readable YAML file"),
    ],
)
def test_wrong_setting_is_one_line_that_names_it_and_its_source(
    tmp_path: Path, flags: dict[str, str], file: str | None, environment: dict[str, str], named: str
) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text(file or "")
    with pytest.raises(InputError) as caught:
        load_settings(flags, str(config) if file else None, environment)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_config_file_is_named() -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        load_settings({}, "nowhere.yaml", {})


def test_command_line() -> None:
    settings, dry_run, as_json = parse_arguments(["--budget", "60%", "--model", "mini", "--dry-run"])
    assert (settings.budget, settings.model, dry_run, as_json) == ("60%", "mini", True, False)


def test_settings_are_frozen() -> None:
    settings = load_settings({"budget": "1M"}, None, {})
    with pytest.raises(ValueError, match="frozen"):
        settings.trials = 3  # type: ignore[misc]
