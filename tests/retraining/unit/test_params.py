"""The section `retrain` of params.yaml."""

import yaml

from pipeline.params import PARAMS_FILE, parse_params
from pipeline.retraining.params import RetrainParams
from tests.conftest import REPOSITORY


def test_a_commit_from_before_a_key_of_retraining_can_still_be_retrained() -> None:
    raw = yaml.safe_load((REPOSITORY / PARAMS_FILE).read_text())
    del raw["retrain"]["push"]
    assert parse_params(raw).section(RetrainParams).push == "auto"
