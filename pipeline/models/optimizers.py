"""Optimizers and learning-rate schedules."""

from typing import Any

from pipeline.models.backend import keras
from pipeline.params import TrainSettings

Schedule = Any  # a Keras schedule, or a constant rate


class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule after a linear warm-up from zero to its first value."""

    def __init__(self, steps: int, after: Schedule) -> None:
        self._steps, self._after = steps, after

    def __call__(self, step: Any) -> Any:
        after = self._after if isinstance(self._after, float) else self._after(step - self._steps)
        start = self._after if isinstance(self._after, float) else self._after(0)
        rise = start * keras.ops.cast(step + 1, "float32") / (self._steps + 1)
        return keras.ops.where(step < self._steps, rise, after)

    def get_config(self) -> dict[str, Any]:
        """Not supported: the model file contains the schedule without its warm-up."""
        raise NotImplementedError


class ConvolutionalMuon(keras.optimizers.Muon):
    """Keras's Muon, also for the kernels of convolutions, as matrices [height x width x inputs, outputs].

    Each step also rescales a matrix to the norm of one with `outputs` orthonormal columns, as in arXiv:2404.00498:
    before a normalisation only its direction matters, and elsewhere later layers scale. The rescaling would undo weight
    decay, which therefore applies only to variables that Adam updates. This class is used for training only; the model
    file contains Keras's own Muon.
    """

    def _should_use_adamw(self, variable: Any) -> bool:
        return len(variable.shape) not in (2, 4) or any(name in variable.path for name in self.exclude_layers)

    def _muon_update_step(self, gradient: Any, variable: Any, lr: Any, m: Any) -> None:
        self.assign(m, self.momentum * m + gradient)
        direction = keras.ops.reshape(gradient + self.momentum * m, (-1, variable.shape[-1]))
        update = keras.ops.reshape(self.zeropower_via_newtonschulz5(direction, self.ns_steps), variable.shape)
        norm = keras.ops.sqrt(keras.ops.sum(keras.ops.square(variable)))
        self.assign(variable, variable * (variable.shape[-1] ** 0.5 / norm) - lr * update)

    def zeropower_via_newtonschulz5(self, x: Any, steps: int) -> Any:
        """Keras's Newton-Schulz iteration, with half the multiply-adds for a matrix that is far from square.

        Each step multiplies the matrix by a polynomial of its small Gram matrix. These polynomials commute, so their
        product is computed first and multiplied by the matrix once.
        """
        x = x / (keras.ops.norm(x) + 1e-7)  # no singular value above 1
        tall = x.shape[0] > x.shape[1]
        gram = keras.ops.transpose(x) @ x if tall else x @ keras.ops.transpose(x)
        product = None
        for step in range(steps):
            factor = self.muon_a * keras.ops.eye(gram.shape[0]) + self.muon_b * gram + self.muon_c * gram @ gram
            product = factor if product is None else product @ factor
            if step < steps - 1:
                gram = gram @ factor @ factor
        return x @ product if tall else product @ x


def create_optimizer(settings: TrainSettings, steps: int) -> keras.optimizers.Optimizer:
    """Create the optimizer for a training of `steps` batches."""
    schedule = _schedule(settings, steps)
    if (warmup := _warmup_steps(settings, steps)) and settings.schedule != "cosine":
        schedule = WarmUp(warmup, schedule)
    return _optimizer(settings, schedule, ConvolutionalMuon)


def create_stock_optimizer(settings: TrainSettings, steps: int) -> keras.optimizers.Optimizer:
    """Create the equivalent optimizer of Keras's own classes, which have no warm-up except for cosine decay."""
    return _optimizer(settings, _schedule(settings, steps), keras.optimizers.Muon)


def _warmup_steps(settings: TrainSettings, steps: int) -> int:
    return round(settings.warmup_fraction * steps)


def _schedule(settings: TrainSettings, steps: int) -> Schedule:
    """Create the schedule after the warm-up, from Keras's classes. Cosine decay includes its warm-up from zero."""
    rate, warmup = settings.learning_rate, _warmup_steps(settings, steps)
    left = max(steps - warmup, 1)
    if settings.schedule == "constant":
        return rate
    if settings.schedule == "linear":
        return keras.optimizers.schedules.PolynomialDecay(rate, left, end_learning_rate=0.0)
    if not warmup:
        return keras.optimizers.schedules.CosineDecay(rate, left)
    return keras.optimizers.schedules.CosineDecay(0.0, left, warmup_target=rate, warmup_steps=warmup)


def _optimizer(
    settings: TrainSettings, learning_rate: Schedule, muon: type[keras.optimizers.Muon]
) -> keras.optimizers.Optimizer:
    options: dict[str, Any] = {"name": settings.optimizer}
    if settings.weight_average:
        options |= {"use_ema": True, "ema_momentum": settings.weight_average}
    if settings.optimizer == "muon":
        return muon(
            learning_rate,
            momentum=settings.momentum,
            ns_steps=4,
            rms_rate=None,
            adam_lr_ratio=settings.vector_learning_rate / settings.learning_rate,
            exclude_layers=["answer"],
            weight_decay=None,
            adam_weight_decay=settings.weight_decay or None,
            **options,
        )
    if settings.optimizer == "adamw":
        return keras.optimizers.AdamW(learning_rate, weight_decay=settings.weight_decay, **options)  # takes no None
    options["weight_decay"] = settings.weight_decay or None
    if settings.optimizer == "sgd":
        return keras.optimizers.SGD(learning_rate, momentum=settings.momentum, nesterov=True, **options)
    return keras.optimizers.Adam(learning_rate, **options)
