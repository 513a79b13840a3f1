"""Settings: precedence of the four sources, and errors that name setting and source."""

from __future__ import annotations

from pathlib import Path

import pytest

from nas.planning.settings import (
    GROUPS,
    SearchSettings,
    build_parser,
    command_line,
    ignored_variables,
    load_settings,
    parse_arguments,
)
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
        ({"budget": "1M", "study": ".."}, None, {}, "--study '..'"),
        ({"budget": "1M", "study": "."}, None, {}, "--study '.'"),
        ({"budget": "1M", "study": "-x"}, None, {}, "--study '-x'"),
        ({"budget": "1M", "study": "cache"}, None, {}, "--study 'cache': the output folder has something else"),
        ({"budget": "1M", "study": "mlflow.db"}, None, {}, "--study 'mlflow.db'"),
        ({"budget": "1M", "tokens_per_trial": "1.5"}, None, {}, "--tokens-per-trial '1.5'"),
        ({"budget": "1M", "tokens_per_trial": "9" * 30}, None, {}, "should be less than or equal to"),
        ({"budget": "1M", "batch_tokens": "2G"}, None, {}, "--batch-tokens '2G'"),
        ({"budget": "1M", "learning_rate": "inf"}, None, {}, "--learning-rate 'inf'"),
        ({"budget": "1M"}, None, {"NAS_TRAILS": "3"}, "NAS_TRAILS: not a setting; did you mean NAS_TRIALS?"),
        ({}, "budget: 1M\ntrails: 2\n", {}, "unknown setting 'trails'; did you mean trials?"),
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


@pytest.mark.parametrize(
    ("text", "tokens"), [("1M", 1_000_000), ("0.5M", 500_000), ("32k", 32_000), ("32_768", 32_768), ("4096", 4096)]
)
def test_tokens_may_be_written_like_a_budget(text: str, tokens: int) -> None:
    assert load_settings({"budget": "1M", "tokens_per_trial": text}, None, {}).tokens_per_trial == tokens


def test_variables_of_others_are_no_settings() -> None:
    environment = {"NAS_HOST": "10.0.0.1", "NASA": "x", "NAS_SEED": "3"}
    assert load_settings({"budget": "1M"}, None, environment).trials == 8
    assert ignored_variables(environment) == ["NAS_HOST"]


def test_an_unknown_flag_is_one_line_with_a_suggestion() -> None:
    with pytest.raises(InputError, match="--trails: unknown flag; did you mean --trials"):
        parse_arguments(["--budget", "60%", "--trails", "3"])


def test_every_setting_is_in_one_group_of_the_help() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(SearchSettings.model_fields)


def test_the_command_that_continues_names_what_came_from_the_environment() -> None:
    environment = {"NAS_BUDGET": "60%", "NAS_TRIALS": "3", "NAS_SEED": "7"}
    command = command_line(["--model", "mini", "--seed=1", "--trials", "4"], environment)
    assert command == "python -m nas.search --model mini --seed=1 --trials 4 --budget 60%"


def test_the_command_that_continues_shows_no_password() -> None:
    storage = "postgresql://me:WORD@host/db"
    command = command_line(["--budget", "60%", f"--storage={storage}"], {})
    assert command == "python -m nas.search --budget 60% --storage=postgresql://me:***@host/db"
    command = command_line(["--budget", "60%"], {"NAS_STORAGE": storage, "NAS_SEED": "7"})
    assert command == "python -m nas.search --budget 60% --seed 7"  # the storage is still in the environment


def test_command_line() -> None:
    settings, dry_run, as_json = parse_arguments(["--budget", "60%", "--model", "mini", "--dry-run"])
    assert (settings.budget, settings.model, dry_run, as_json) == ("60%", "mini", True, False)


def test_settings_are_frozen() -> None:
    settings = load_settings({"budget": "1M"}, None, {})
    with pytest.raises(ValueError, match="frozen"):
        settings.trials = 3  # type: ignore[misc]


def test_a_space_brings_settings_that_everything_else_beats(tmp_path: Path) -> None:
    space, file = tmp_path / "space.yaml", tmp_path / "settings.yaml"
    space.write_text("study: {budget: 50%, trials: 3, seed: 3, finalists: 0, sampler: gp}")
    file.write_text("trials: 5\nseed: 5\n")
    settings = load_settings({"space": str(space), "sampler": "tpe"}, str(file), {"NAS_SEED": "6"})
    found = settings.budget, settings.trials, settings.seed, settings.finalists, settings.sampler
    assert found == ("50%", 5, 6, 0, "tpe")
    assert load_settings({"space": "layer-removal"}, None, {}).table == "layers"


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ("{trails: 3}", "space FILE: study: unknown setting 'trails'; did you mean trials"),
        ("{trials: 0}", "space FILE: study: trials 0: Input should be greater than or equal to 1"),
        ("{space: mixed}", "space FILE: study: a space cannot name another space; leave 'space' out"),
        ("[60%]", "space FILE: key 'study'"),
    ],
)
def test_wrong_settings_of_a_space_name_it(study: str, message: str, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(f"study: {study}")
    with pytest.raises(InputError) as caught:
        load_settings({"space": str(space), "budget": "60%"}, None, {})
    assert str(caught.value).startswith(message.replace("FILE", str(space)))
