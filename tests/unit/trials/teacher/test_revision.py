"""Revisions of teachers of the hub: what is one, and for which models. `test_teacher.test_hub` downloads some."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.planning.settings import load_settings, with_commit
from search_spaces.errors import InputError
from trials.teacher.revision import at_commit, commit_of, is_revision, split_revision, with_revision
from trials.teacher.source import resolve_model

COMMIT = "0123456789" * 4


@given(st.text(max_size=12) | st.lists(st.sampled_from(["..", ".", "a", "v1.0", "refs", "", "-x"])).map("/".join))
def test_a_revision_is_the_name_of_a_file_below_the_folder_of_revisions(text: str) -> None:
    if is_revision(text):
        path = Path("/refs", text)
        assert path.resolve().is_relative_to("/refs")
        assert path.resolve() == path
        assert split_revision(with_revision("org/name", text)) == ("org/name", text)
    else:
        with pytest.raises(InputError, match="give a commit, a tag or a branch"):
            with_revision("org/name", text)


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/1", COMMIT, "0123abc"])
def test_the_setting_is_kept_and_the_commit_takes_its_place(tmp_path: Path, revision: str) -> None:
    settings = load_settings({"budget": "60%", "model": "org/name", "revision": revision}, None, {})
    assert settings.model == f"org/name@{revision}"
    pinned = with_commit(settings, tmp_path / "models--org--name" / "snapshots" / COMMIT)
    assert (pinned.model, pinned.revision) == (f"org/name@{COMMIT}", revision)


def test_a_model_of_this_machine_has_no_revision(tiny_teacher_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"")
    for model in ("mini", str(tiny_teacher_folder), str(tmp_path / "x.gguf"), "./nowhere", "~/nowhere", "nowhere.gguf"):
        with pytest.raises(InputError, match=r"--revision 'v1': model '.*' is on this machine") as refused:
            load_settings({"budget": "60%", "model": model, "revision": "v1"}, None, {})
        assert len(str(refused.value).splitlines()) == 1
    with pytest.raises(InputError, match="names a revision already"):
        load_settings({"budget": "60%", "model": "org/name@v1", "revision": "v2"}, None, {})
    with pytest.raises(InputError, match="a model of the hub may have a revision"):
        resolve_model("mini@v1")


def test_a_folder_may_have_the_sign_in_its_name(tiny_teacher_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model@v1"
    folder.symlink_to(tiny_teacher_folder)
    assert resolve_model(str(folder)) == tiny_teacher_folder
    assert commit_of(folder) is None
    assert at_commit(str(folder), folder) == str(folder)
