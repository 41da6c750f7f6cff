"""The import of Keras and TensorFlow, and the properties of the machine that they compute on.

Use `from pipeline.models.backend import keras, tf`. The import prints nothing, and skips libraries that are not used.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.models.cpu_features import read_processor
from pipeline.models.native_stderr import hold_stderr

os.environ["KERAS_BACKEND"] = "tensorflow"  # overrides the user's configuration of Keras
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Doubles the speed of convolutions. Without AVX-512, TensorFlow does not use oneDNN by default.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


@contextmanager
def _without(*modules: str) -> Iterator[None]:
    """Make optional imports fail. Keras tries scikit-learn and pyplot, which take 1.3 s of a start-up of 5.5 s."""
    blocked = [name for name in modules if name not in sys.modules]
    sys.modules.update(dict.fromkeys(blocked))  # type: ignore[arg-type]  # None: the documented way to block an import
    try:
        yield
    finally:
        for name in blocked:
            del sys.modules[name]


# TensorFlow's C++ libraries write while they start, before any setting of theirs takes effect.
with hold_stderr(), _without("sklearn", "matplotlib"):
    import keras
    import tensorflow as tf

    # This also initialises CUDA, which prints warnings without a GPU. By default, TensorFlow takes all GPU memory.
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)

__all__ = [
    "Machine",
    "choose_precision",
    "choose_xla",
    "inspect_machine",
    "keras",
    "make_repeatable",
    "tf",
    "view_as_tensor",
]

BFLOAT16_CAPABILITY = (8, 0)  # minimum compute capability of an Nvidia GPU


@dataclass(frozen=True)
class Machine:
    """The properties of a machine that change the bytes of a model. On different machines, models are only similar."""

    device: str  # "cpu", or the name of the first GPU
    threads: int  # of TensorFlow
    features: tuple[str, ...]  # of the processor: see `processor.FEATURES`
    bfloat16: bool  # True if bfloat16 is faster than float32
    onednn: bool = True  # True if TensorFlow uses oneDNN: TF_ENABLE_ONEDNN_OPTS


def inspect_machine() -> Machine:
    """Return the properties of the machine as this process uses it."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    wanted = tf.config.threading.get_intra_op_parallelism_threads() or os.environ.get("TF_NUM_INTRAOP_THREADS")
    threads = int(wanted or cores)
    processor = read_processor()
    onednn = os.environ["TF_ENABLE_ONEDNN_OPTS"].lower() not in ("0", "false")
    gpus = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
    if not gpus:
        return Machine("cpu", threads, processor.features, processor.faster_in_bfloat16, onednn)
    bfloat16 = all(gpu.get("compute_capability", (0, 0)) >= BFLOAT16_CAPABILITY for gpu in gpus)
    return Machine(str(gpus[0].get("device_name", "gpu")), threads, processor.features, bfloat16, onednn)


def make_repeatable(seed: int) -> None:
    """Seed the initial weights, and make every operation deterministic on this machine."""
    # Keras numbers names by the objects that the process created before.
    keras.utils.clear_session(free_memory=False)  # no garbage collection
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def choose_precision(wanted: str, machine: Machine) -> str:
    """Return the precision of the computation, "float32" or "bfloat16", for a setting that may be "auto"."""
    if wanted == "auto":
        return "bfloat16" if machine.bfloat16 else "float32"
    return wanted


def choose_xla(wanted: str, network: str, machine: Machine) -> bool:
    """Return True if XLA compiles the training, for the setting "always", "never" or "auto" (an mlp on a GPU).

    On a CPU, compilation takes longer than it saves in many epochs. The cnn cannot be compiled: XLA has no
    deterministic gradient of its max-pooling.
    """
    if wanted == "auto":
        return network == "mlp" and machine.device != "cpu"
    return wanted == "always"


def view_as_tensor(array: np.ndarray) -> Any:
    """Return a tensor that shares an array's memory, which must not change meanwhile. On a GPU, it is a copy."""
    if tf.config.list_physical_devices("GPU"):
        return tf.convert_to_tensor(array)
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
