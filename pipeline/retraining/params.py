"""The section `retrain` of params.yaml."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from pipeline.params import Section


@dataclass(frozen=True, kw_only=True)
class RetrainParams(Section):
    """Defaults of `pipeline retrain`, which schedules and triggers use."""

    ref: str = Field(description="the branch, tag or commit to retrain; empty: the current branch")
    if_busy: Literal["leave", "wait"] = Field(description="what a due retraining does while another one works")
    push: Literal["auto", "never"] = Field(
        default="auto",  # of commits from before this key, which can be retrained too
        description="auto: push the branch and its data where a git and a DVC remote are configured; never: keep them",
    )
