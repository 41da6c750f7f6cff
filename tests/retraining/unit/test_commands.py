"""Arguments of `pipeline retrain`."""

from pipeline.retraining.commands import _parse_change


def test_a_changed_number_is_read_as_dvc_reads_it() -> None:
    assert _parse_change("train.weight_decay=1e-5") == ("train.weight_decay", 1e-5)
