"""The section `review` of params.yaml."""

from dataclasses import dataclass

from pydantic import Field

from pipeline.params import Fraction, Section


@dataclass(frozen=True, kw_only=True)
class ReviewParams(Section):
    """When the removal of images must be confirmed."""

    max_removed: Fraction = Field(
        description="share of a class that corrections may remove without a confirmation; no test image may be"
    )
