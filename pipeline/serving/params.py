"""The section `serve` of params.yaml."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from pipeline.params import Bool, Float, Fraction, Int, Section


@dataclass(frozen=True, kw_only=True)
class ServeParams(Section):
    """Limits of the server, and what it logs."""

    max_images: Int = Field(default=1024, gt=0, description="images in one request")
    max_body_mb: Float = Field(default=32, gt=0, description="size of a request's body, in MB")
    body_seconds: Float = Field(default=10, gt=0, description="time in which a client must have sent its body")
    max_batch: Int = Field(default=64, gt=0, description="images of waiting requests that the model answers at once")
    max_waiting: Int = Field(
        default=1024, gt=0, description="images that may wait for the model; beyond it, the server answers 503"
    )
    shadow: Literal["none", "challenger"] = Field(
        default="none", description="challenger: also log what the challenger would have answered"
    )
    log_share: Fraction = Field(default=1.0, description="share of the requests in the traffic log")
    keep_days: Int = Field(default=30, gt=0, description="days that the traffic log is kept")
    log_limit_mb: Int = Field(
        default=2000, gt=0, description="size of the traffic log, in MB; beyond it, the oldest hours are deleted"
    )
    keep_images: Bool = Field(default=False, description="also keep the images in the traffic log")
