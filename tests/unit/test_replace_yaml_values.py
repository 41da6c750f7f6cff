"""Edits of `params.yaml` by commands: only the values change."""

import pytest

from pipeline.files import parse_yaml, replace_yaml_values

TEXT = """# ours
dataset:
  name: tiny                 # which
  path: "data/local"
train: {epochs: null, widths: [1, 2]}  # how
"""


def test_values_change_and_comments_stay() -> None:
    changed = replace_yaml_values(
        TEXT, {"dataset.name": "parts", "dataset.path": "yes", "train.epochs": 3, "train.widths": [4]}
    )
    assert changed == (
        "# ours\ndataset:\n  name: parts                # which\n"
        '  path: "yes"\ntrain: {epochs: 3, widths: [4]}  # how\n'
    )
    assert parse_yaml(changed)["dataset"]["path"] == "yes"


def test_a_missing_key_and_a_broken_file_are_errors() -> None:
    with pytest.raises(KeyError, match=r"train\.missing"):
        replace_yaml_values(TEXT, {"train.missing": 1})
    with pytest.raises(ValueError, match="line"):
        replace_yaml_values("a: [", {"a": 1})
