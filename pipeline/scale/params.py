"""The section `scale` of params.yaml."""

from dataclasses import dataclass

from pydantic import Field

from pipeline.params import Int, Section


@dataclass(frozen=True, kw_only=True)
class ScaleParams(Section):
    """Dask workers on this machine. The variable PIPELINE_DASK chooses a cluster instead."""

    workers: Int = Field(default=0, ge=0, description="processes that measure and decode images; 0: no Dask")
