"""The section `monitor` of params.yaml."""

from dataclasses import dataclass

from pydantic import Field

from pipeline.params import Float, Fraction, Int, Section


@dataclass(frozen=True, kw_only=True)
class MonitorParams(Section):
    """When a batch, or the traffic of a server, has drifted from the training data; when that asks for a retraining."""

    label_effect: Fraction = Field(description="Jensen-Shannon distance of the label shares from which they drifted")
    feature_effect: Fraction = Field(description="Kolmogorov-Smirnov's D of a feature of the images, likewise")
    confidence_effect: Fraction = Field(description="its one-sided D where the champion is less sure")
    outlier_effect: Fraction = Field(
        default=0.05,  # of commits from before this parameter
        description="share of the traffic that looks like nothing trained on, beyond the expected share",
    )
    alpha: Float = Field(
        gt=0, lt=1, description="chance that a batch of the same kind drifts by significance, over all quantities"
    )
    last: Int = Field(
        gt=0, description="the newest batches, or windows of the traffic, that count when a retraining is asked for"
    )
    at_least: Int = Field(gt=0, description="how many of these must have drifted, the newest of all among them")

    def find_conflicts(self) -> list[str]:
        """Describe values that are valid each but do not fit together."""
        if self.at_least <= self.last:
            return []
        return [
            f"monitor.at_least is {self.at_least}, more than the {self.last} batches that monitor.last looks at: "
            "no drift could ask for a retraining"
        ]
