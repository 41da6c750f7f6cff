"""Names of runs in MLflow, for people: no code reads them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.files import parse_yaml
from pipeline.params import PARAMS_FILE

LONGEST = 160  # characters of the part with the params; MLflow stores 250
# What a name leaves out, beside the values of the preset.
USUAL = {
    "seed": 1,
    "loss": "sparse_categorical_crossentropy",
    "class_weights": "none",
    "data_parallel": "none",
    "quantize": "none",
}


def name_training(workspace: Path, params: Mapping[str, Any], experiment: str | None = None) -> str:
    """Name a training by its preset and the params that differ from it: `mlp epochs=2 seed=3`.

    Args:
        workspace: its `params.yaml` has the presets.
        params: resolved and flat.
        experiment: name of the DVC experiment.
    """
    preset = str(params.get("preset", "train"))
    usual = USUAL | _read_preset(workspace, preset)
    changed = {key: params[key] for key in usual if key in params and not _equal(params[key], usual[key])}
    name = " ".join(filter(None, (preset, format_values(changed))))
    return shorten(f"experiment {experiment}: {name}" if experiment else name)


def format_values(values: Mapping[str, Any]) -> str:
    """Format params for a name: `epochs=2 learning_rate=0.0312 widths=[64,128]`."""
    return " ".join(f"{key}={_format(value)}" for key, value in values.items())


def shorten(name: str) -> str:
    """Cut a name that MLflow could not store."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _read_preset(workspace: Path, preset: str) -> dict[str, Any]:
    """Read the params of a preset. Empty if `params.yaml` is missing or does not have it, as in an old checkout."""
    try:
        content = parse_yaml((workspace / PARAMS_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    found = content.get("presets", {}).get(preset) if isinstance(content, dict) else None
    return dict(found) if isinstance(found, dict) else {}


def _equal(one: Any, other: Any) -> bool:
    return bool(one == other) or _format(one) == _format(other)


def _format(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return str(value)
