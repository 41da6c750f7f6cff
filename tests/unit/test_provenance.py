"""Tags about code, environment and machine, and the digests of stage outputs."""

from pathlib import Path

import pytest

from pipeline.tracking.provenance import Tree, environment_tags, host_tags, tree_tags
from pipeline.tracking.stage_outputs import Outputs, dvc_digest, flatten


def test_the_environment_has_versions_and_the_digest_of_its_lock(tmp_path: Path) -> None:
    assert "environment.lock" not in environment_tags(tmp_path)
    (tmp_path / "requirements.lock").write_bytes(b"")
    tags = environment_tags(tmp_path)
    assert tags["environment.lock"] == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert tags["version.numpy"].count(".") == 2


def test_a_machine_has_cores_and_memory() -> None:
    tags = host_tags()
    assert int(tags["host.cores"]) >= 1
    assert int(tags["host.memory_gib"]) >= 1


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (None, {}),
        (Tree("abc"), {"mlflow.source.git.commit": "abc", "git.dirty": "false"}),
        (Tree("abc", b"diff"), {"mlflow.source.git.commit": "abc", "git.dirty": "true"}),
        (
            Tree("abc", b"", ("large.npz",)),
            {"mlflow.source.git.commit": "abc", "git.dirty": "true", "git.left_out": "large.npz"},
        ),
    ],
)
def test_a_tree_is_tagged_as_dirty_if_it_differs_from_its_commit(tree: Tree | None, expected: dict[str, str]) -> None:
    assert tree_tags(tree) == expected


def test_nested_settings_become_flat() -> None:
    assert flatten({"a": 1, "b": {"c": [2], "d": {"e": None}}}) == {"a": 1, "b.c": [2], "b.d.e": None}


def test_a_directory_has_the_digest_that_dvc_gives_it(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_bytes(b"one")
    (tmp_path / "b/c.txt").write_bytes(b"two")
    assert dvc_digest(tmp_path / "a.txt") == "f97c5d29941bfb1b2fdab0874906ab82"
    assert dvc_digest(tmp_path) == "9ac7ba4a4409640ebaa596b7fe84d343.dir"


@pytest.mark.parametrize("content", [None, "", "schema: '2.0'\n", "stages:\n  split:\n    cmd: x\n"])
def test_a_lock_without_a_stage_has_no_files_of_it(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "dvc.lock").write_text(content)
    outputs = Outputs(tmp_path)
    assert outputs.locked("train") == {}
    assert not outputs.are_of("train", "models/model.keras")
