"""`pipeline sweep apply`: write the values of a sweep's best trial to params.yaml."""

import dataclasses
import difflib
from pathlib import Path
from typing import Any

from pipeline.errors import ParamsError, WorkspaceError
from pipeline.files import atomic_file, parse_yaml, replace_yaml_values
from pipeline.params import PARAMS_FILE, parse_params
from pipeline.search.claims import DEFINITION
from pipeline.search.definition import full_sections, read_definition
from pipeline.search.run import read_summary, unknown
from pipeline.search.space import params_of
from pipeline.search.store import find_study


def propose(name: str) -> tuple[str, str]:
    """Return the text of params.yaml now, and with the values of the best trial. Comments and order stay.

    Raises:
        WorkspaceError: the sweep does not exist, or no trial is complete.
        ParamsError: a preset has changed since, so that the same values would not train the same model.
    """
    study = find_study(name)
    if study is None:
        raise unknown(name)
    definition, best = read_definition(study.user_attrs[DEFINITION]), read_summary(name).best
    if best is None:
        raise WorkspaceError(f"the sweep {name} has no complete trial", remedy=f"pipeline sweep show {name}")
    text = PARAMS_FILE.read_text(encoding="utf-8")
    now = parse_yaml(text)
    wanted: dict[str, Any] = {**definition.sections["train"], **best.params}
    values = {f"train.{key}": value for key, value in wanted.items() if now["train"].get(key, value) != value}
    proposed = replace_yaml_values(text, values)
    trained = params_of(full_sections(definition), best.params).train
    if parse_params(parse_yaml(proposed)).train != trained:
        differing = [
            field.name
            for field in dataclasses.fields(trained.settings)
            if getattr(parse_params(parse_yaml(proposed)).train.settings, field.name)
            != getattr(trained.settings, field.name)
        ]
        raise ParamsError(
            f"the preset {trained.preset} has changed since the sweep {name}",
            found=f"other values of {', '.join(differing)}",
            remedy="restore the preset in params.yaml, or start another sweep",
        )
    return text, proposed


def describe_changes(before: str, after: str) -> str:
    """Return a unified diff of two texts of params.yaml. Empty if they are equal."""
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), f"a/{PARAMS_FILE}", f"b/{PARAMS_FILE}", n=1
    )
    return "".join(lines)


def write(text: str, path: Path = PARAMS_FILE) -> None:
    """Write params.yaml."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
