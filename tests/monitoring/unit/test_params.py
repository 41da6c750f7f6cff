"""The section `monitor` of params.yaml: what is refused."""

import pytest
import yaml

from pipeline.errors import ParamsError
from pipeline.params import PARAMS_FILE, parse_params
from tests.conftest import REPOSITORY


def test_a_rule_that_could_never_ask_for_a_retraining_is_refused() -> None:
    raw = yaml.safe_load((REPOSITORY / PARAMS_FILE).read_text())
    raw["monitor"]["at_least"] = 4
    with pytest.raises(ParamsError, match="at_least is 4, more than the 3 batches that monitor.last looks at"):
        parse_params(raw)
