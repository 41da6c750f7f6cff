"""Data-parallel training on several devices or machines, with TensorFlow's distribution strategies.

Each replica computes the gradients of its share of every batch, and their sum updates the weights of all replicas. The
batches and the order of the images are the same for every number of replicas. Batch normalisation uses the statistics
of each share, and their mean for inference.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from zlib import crc32

from pipeline.errors import ModelError
from pipeline.models.backend import tf
from pipeline.models.cluster import GUIDE, this_worker
from pipeline.params import DataParallel

Strategy = Any  # tf.distribute.Strategy


def create_strategy(data_parallel: DataParallel) -> Strategy:
    """Create the strategy of a training. Call this before TensorFlow computes anything: workers connect here.

    | none         | one device: the first GPU, or else the processor                                  |
    | mirrored     | every GPU of this machine, or else the processor, as one device                   |
    | multi_worker | the processes that the variable TF_CONFIG names, each with every GPU of its own   |

    Raises:
        ModelError: TF_CONFIG and the setting contradict each other.
    """
    worker = this_worker()
    if data_parallel == "multi_worker":
        if not worker:
            raise ModelError(
                "train.data_parallel is multi_worker, but the workers are not configured",
                expected="the variable TF_CONFIG with the addresses of all workers and the index of this process",
                remedy=f"{GUIDE}; or set train.data_parallel to none",
            )
        return tf.distribute.MultiWorkerMirroredStrategy()
    if worker and not worker.chief:
        raise ModelError(
            f"TF_CONFIG makes this process {worker.name}, but train.data_parallel is {data_parallel}",
            expected="train.data_parallel multi_worker, or no TF_CONFIG",
            remedy=GUIDE,
        )
    if data_parallel == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


@contextmanager
def replicated(strategy: Strategy) -> Iterator[None]:
    """Create the variables in the block for all replicas."""

    def create(create_next: Any, **options: Any) -> Any:
        # Keras defines no aggregation for the statistics of batch normalisation and the moving averages of weights.
        # Without one, each replica would keep its own.
        if options.get("aggregation") == tf.VariableAggregation.NONE and not options.get("trainable"):
            options["aggregation"] = tf.VariableAggregation.MEAN
        return create_next(**options)

    with strategy.scope(), tf.variable_creator_scope(create):
        yield


def take_share(batch: Any, strategy: Strategy) -> Any:
    """Return the current replica's share of nested tensors [batch, ...]."""
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return batch
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    return tf.nest.map_structure(lambda tensor: tf.reshape(tensor, (replicas, -1, *tensor.shape[1:]))[replica], batch)


def require_divisible(batch: int, strategy: Strategy) -> None:
    """Refuse a batch that cannot be divided evenly.

    Raises:
        ModelError: names both numbers.
    """
    replicas = strategy.num_replicas_in_sync
    if batch % replicas:
        raise ModelError(
            f"a batch of {batch} images cannot be divided evenly among {replicas} replicas",
            expected=f"a multiple of {replicas}: train.batch_size is the total over all replicas",
            remedy="change train.batch_size",
        )


def require_agreement(fact: str, strategy: Strategy) -> None:
    """Refuse workers with different trainings, or in different epochs: they would wait for each other forever.

    Raises:
        ModelError: `fact` differs between the workers.
    """
    if strategy.num_replicas_in_sync == 1:
        return
    number = crc32(fact.encode())

    @tf.function
    def gather() -> Any:
        return strategy.gather(strategy.run(lambda: tf.constant([number], tf.int64)), axis=0)

    if set(gather().numpy().tolist()) != {number}:
        raise ModelError(
            "the workers have different trainings",
            expected=f"on every worker: {fact}",
            remedy=f"use the same code, data, params, kind of machine and checkpoints on all workers; {GUIDE}",
        )
