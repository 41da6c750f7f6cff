"""Optimisers and learning-rate schedules, from the settings of a training."""

from typing import Any

from pipeline.models.backend import keras
from pipeline.params import TrainSettings

Schedule = keras.optimizers.schedules.LearningRateSchedule | float


class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """A straight rise to the schedule's first value, then the schedule."""

    def __init__(self, steps: int, after: Schedule) -> None:
        self._steps, self._after = steps, after

    def __call__(self, step: Any) -> Any:
        after = self._after if isinstance(self._after, float) else self._after(step - self._steps)
        start = self._after if isinstance(self._after, float) else self._after(0)
        rise = start * keras.ops.cast(step + 1, "float32") / (self._steps + 1)
        return keras.ops.where(step < self._steps, rise, after)

    def get_config(self) -> dict[str, Any]:
        """Not saved: the model file carries the schedule without its warm-up."""
        raise NotImplementedError


def create_optimizer(settings: TrainSettings, steps: int) -> keras.optimizers.Optimizer:
    """The optimizer of a training of `steps` batches."""
    warmup = round(settings.warmup_fraction * steps)
    schedule = _schedule(settings, steps - warmup)
    return _optimizer(settings, WarmUp(warmup, schedule) if warmup else schedule)


def create_stock_optimizer(settings: TrainSettings, steps: int) -> keras.optimizers.Optimizer:
    """Its equal that loads wherever Keras is: without the warm-up, which Keras has no class for."""
    return _optimizer(settings, _schedule(settings, steps - round(settings.warmup_fraction * steps)))


def _schedule(settings: TrainSettings, steps: int) -> Schedule:
    if settings.schedule == "constant":
        return settings.learning_rate
    return keras.optimizers.schedules.PolynomialDecay(settings.learning_rate, max(steps, 1), end_learning_rate=0.0)


def _optimizer(settings: TrainSettings, learning_rate: Schedule) -> keras.optimizers.Optimizer:
    decay = settings.weight_decay or None
    if settings.optimizer == "sgd":
        return keras.optimizers.SGD(learning_rate, momentum=0.9, nesterov=True, weight_decay=decay)
    if settings.optimizer == "adamw":
        return keras.optimizers.AdamW(learning_rate, weight_decay=settings.weight_decay)
    return keras.optimizers.Adam(learning_rate, weight_decay=decay)
