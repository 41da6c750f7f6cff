"""Descriptions in the registry, from facts made by hand."""

from dataclasses import replace

import pytest

from pipeline.data.catalog import load_catalog
from pipeline.registry.descriptions import LONGEST_SUMMARY, describe_dataset, summarise, write_model_description
from pipeline.tracking.descriptions import LONGEST, must_write, sign
from tests.conftest import REPOSITORY
from tests.unit.test_model_card import make_facts


def test_a_summary_begins_with_the_decision() -> None:
    summary = summarise(make_facts(reason="Recall of <img> falls."))
    assert summary.startswith(r"Recall of \<img\> falls." "\n\nAccuracy **82.00%** on 300 test images")
    assert "95% interval 77.27% to 85.94%" in summary
    assert "weakest class Dress, recall 61.00%" in summary
    assert "accuracy 84.32%, epoch 1 of 1" in summary
    assert "[Training run](#/experiments/3/runs/run-1a2b)" in summary
    assert "](get-artifact?path=evaluation%2Ffigures%2Fconfusion.png&run_uuid=run-1a2b)" in summary


@pytest.mark.parametrize("length", [LONGEST_SUMMARY // 2, LONGEST_SUMMARY, 3 * LONGEST_SUMMARY])
def test_a_summary_is_never_longer_than_a_registry_keeps(length: int) -> None:
    summary = summarise(make_facts(reason="x" * length))
    assert len(sign(summary)) <= LONGEST
    assert summary.endswith(summarise(make_facts(reason="")).strip())


def test_a_model_of_generated_images_is_marked() -> None:
    tiny = make_facts(entry=load_catalog(REPOSITORY / "data/catalog")["tiny"])
    assert "Not a model for use" in write_model_description(tiny)
    assert describe_dataset(tiny) == "generated images, to try the pipeline"
    real = make_facts()
    assert "Not a model for use" not in write_model_description(real)
    assert describe_dataset(replace(real, entry=None)) == "garments"


def test_only_our_own_descriptions_are_replaced() -> None:
    former, new = sign("the former text"), sign("the new text")
    assert must_write(None, new)
    assert must_write("", new)
    assert must_write(former, new)
    assert must_write(former + "\n", new)
    assert not must_write(new, new)
    assert not must_write("a text of somebody", new)
    assert not must_write(former.replace("former", "better"), new)
    assert not must_write(former + " and more", new)
