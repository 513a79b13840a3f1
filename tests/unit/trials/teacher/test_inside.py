"""A checkpoint cannot name, or lead to, files outside of its folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from search_spaces.errors import InputError
from trials.export.load import load_checkpoint
from trials.storage.cache import Cache
from trials.storage.durable import MANIFEST, damage, write_sealed
from trials.teacher.causal_lm import resolve_causal_lm
from trials.teacher.inside import check_inside, is_inside
from trials.teacher.source import resolve_model, weight_files

OUTSIDE = ["../secret", "..", "/etc/passwd", "a/../../secret", "./../secret", "a/b", "a\0b", "../model.safetensors"]


@pytest.fixture
def checkpoint(tiny_teacher_folder: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint, beside a file that it must not reach."""
    (tmp_path / "secret").write_text("{}")
    return Path(shutil.copytree(tiny_teacher_folder, tmp_path / "model"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_x", "more.py"])
def test_a_link_that_leaves_the_folder_is_refused(checkpoint: Path, name: str) -> None:
    file, moved = checkpoint / name, checkpoint.parent / "elsewhere"
    if file.exists():
        file.rename(moved)
    else:
        moved.write_text("")
    file.symlink_to(moved)
    refused = rf"{name} in its folder is a link to .*elsewhere, outside of it"
    for read in (resolve_model, lambda one: resolve_causal_lm(one, True), lambda one: load_checkpoint(Path(one))):
        with pytest.raises(InputError, match=refused) as error:
            read(str(checkpoint))
        assert len(str(error.value).splitlines()) == 1


def test_a_folder_of_links_is_refused(checkpoint: Path) -> None:
    (checkpoint.parent / "elsewhere").mkdir()
    (checkpoint / "additional_chat_templates").symlink_to(checkpoint.parent / "elsewhere")
    with pytest.raises(InputError, match="additional_chat_templates in its folder is a link"):
        resolve_model(str(checkpoint))


def test_links_inside_the_folder_and_in_the_cache_of_the_hub_are_followed(checkpoint: Path) -> None:
    (checkpoint / "other.json").symlink_to("config.json")
    linked = checkpoint.parent / "linked"
    linked.symlink_to(checkpoint)  # the folder itself may be a link
    assert resolve_model(str(linked)) == checkpoint

    snapshot = checkpoint.parent / "models--a--b" / "snapshots" / "0123"
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(one for one in checkpoint.iterdir() if one.name != "other.json")):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert resolve_model(str(snapshot)) == snapshot
    (blobs.parent / "refs").write_text("")
    (snapshot / "merges.txt").symlink_to("../../refs")
    with pytest.raises(InputError, match=r"merges.txt in its folder is a link"):
        resolve_model(str(snapshot))


@pytest.mark.parametrize("name", [*OUTSIDE, "pytorch_model.bin"])
def test_an_index_names_safetensors_files_of_its_folder_only(checkpoint: Path, name: str) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "part.safetensors")
    shutil.copy(checkpoint / "part.safetensors", checkpoint.parent / "model.safetensors")
    (checkpoint / "pytorch_model.bin").write_bytes(b"")
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "part.safetensors"}}))
    assert weight_files(checkpoint) == [checkpoint / "part.safetensors"]
    index.write_text(json.dumps({"weight_map": {"a": "part.safetensors", "b": name}}))
    with pytest.raises(InputError, match="has no weight_map that names a file of this folder"):
        resolve_model(str(checkpoint))


@pytest.mark.parametrize(
    ("key", "value"), [("fast_tokenizer_files", ["../tokenizer.4.json"]), ("vocab_file", "../secret")]
)
def test_a_tokenizer_names_files_of_its_folder_only(checkpoint: Path, key: str, value: object) -> None:
    file = checkpoint / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(InputError, match=rf"its tokenizer_config.json names .* \({key}\), outside of its folder"):
        resolve_model(str(checkpoint))


def test_a_path_that_was_on_the_machine_of_the_author_is_no_harm(checkpoint: Path) -> None:
    file = checkpoint / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "special_tokens_map_file": "/admin/home/x/map.json"}))
    resolve_model(str(checkpoint))


@pytest.mark.parametrize(
    "name", ["../evil.Model", "/tmp/evil.Model", "other/repository--evil.Model", "a/../../evil.Model"]
)
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_that_may_run_is_in_a_file_of_the_folder(checkpoint: Path, name: str, file: str) -> None:
    content = json.loads((checkpoint / file).read_text())
    classes = {"AutoModelForCausalLM": name} if file == "config.json" else {"AutoTokenizer": [None, name]}
    (checkpoint / file).write_text(json.dumps({**content, "auto_map": classes}))
    with pytest.raises(InputError, match=rf"the code '.*' that its {file} names is in no file of its folder"):
        resolve_causal_lm(str(checkpoint), True)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_configuration_names_no_kernel_of_the_hub(checkpoint: Path, key: str) -> None:
    file = checkpoint / "config.json"
    content = json.loads(file.read_text())
    for value in ("somebody/kernel", "somebody/kernel@main:f", {"": "somebody/kernel"}):
        file.write_text(json.dumps({**content, key: value}))
        with pytest.raises(InputError, match=rf"{key} is .*, and must be the name of a function of transformers"):
            resolve_model(str(checkpoint))
    file.write_text(json.dumps({**content, key: "eager"}))
    resolve_model(str(checkpoint))


def put(folder: Path) -> None:
    (folder / "a").write_text("content")


@given(st.dictionaries(st.sampled_from([*OUTSIDE, "a"]), st.tuples(st.just(7), st.text(max_size=3)), min_size=1))
@example({"../secret": (2, "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a")})
def test_a_manifest_that_names_other_files_is_damage(tmp_path_factory: pytest.TempPathFactory, names: object) -> None:
    root = tmp_path_factory.mktemp("sealed")
    (root / "secret").write_text("{}")
    write_sealed(root / "entry", put)
    assert damage(root / "entry") is None
    (root / "entry" / MANIFEST).write_text(json.dumps(names))
    assert damage(root / "entry") is not None


@pytest.mark.parametrize("content", ["[" * 5000, "null", "[]", '{"a": 1}', '{"a": [1, 2, 3]}', '{"a": null}', "", "{"])
def test_a_manifest_of_other_json_is_damage(tmp_path: Path, content: str) -> None:
    write_sealed(tmp_path / "entry", put)
    (tmp_path / "entry" / MANIFEST).write_text(content)
    assert damage(tmp_path / "entry") is not None


def test_a_link_in_an_entry_of_the_cache_is_damage(tmp_path: Path) -> None:
    cache, written = Cache(tmp_path), []

    def write(folder: Path) -> None:
        written.append(folder)
        put(folder)

    entry = cache.build("kind", "key", write)
    (entry / "a").rename(tmp_path / "a")
    (entry / "a").symlink_to(tmp_path / "a")
    assert damage(entry) == "a is a link"
    assert not (cache.build("kind", "key", write) / "a").is_symlink()
    assert len(written) == 2
    assert (tmp_path / "a").read_text() == "content"


@given(st.lists(st.sampled_from(["..", ".", "a", "/", "b/c", "\0", "x" * 300]), max_size=6).map("/".join))
def test_nothing_is_inside_that_the_system_would_find_elsewhere(name: str) -> None:
    root = Path("/nowhere/root")
    inside = is_inside(root / name, (root,))
    parts = [part for part in name.split("/") if part not in ("", ".")]
    depth, lowest = 0, 0
    for part in parts:
        depth += -1 if part == ".." else 1
        lowest = min(lowest, depth)
    if inside:
        assert not name.startswith("/")
        assert depth >= 0
    elif lowest >= 0 and not name.startswith("/"):
        assert "\0" in name


def test_the_folder_of_a_checkpoint_may_have_other_links(checkpoint: Path) -> None:
    (checkpoint / "runs").symlink_to(checkpoint.parent)
    check_inside(checkpoint, "model")
