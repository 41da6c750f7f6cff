"""One training on several devices or machines, by TensorFlow's distribution strategies.

Each replica computes the gradients of its share of every batch; their sum updates the weights of all. A batch and the
order of the images are those of a training on one device, whatever the number of replicas. Batch normalisation
normalises a share by that share's own statistics, and averages them for use.
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
    """What runs a training's steps. To be made before TensorFlow computes anything: a worker then meets the others.

    | none         | one device: the first GPU, or else the processor                                  |
    | mirrored     | every GPU of this machine, or else the processor, as one device                   |
    | multi_worker | the processes that the variable TF_CONFIG names, each with every GPU of its own   |

    Raises:
        ModelError: TF_CONFIG does not go with the setting.
    """
    worker = this_worker()
    if data_parallel == "multi_worker":
        if not worker:
            raise ModelError(
                "train.data_parallel is multi_worker, but nothing says who the workers are",
                expected="the variable TF_CONFIG, with the addresses of all workers and which of them this process is",
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
    """Make the variables that are created in the block those of all replicas."""

    def create(create_next: Any, **options: Any) -> Any:
        # Statistics of batch normalisation and moving averages of weights: Keras says nothing of how replicas agree on
        # them, and each would keep its own.
        if options.get("aggregation") == tf.VariableAggregation.NONE and not options.get("trainable"):
            options["aggregation"] = tf.VariableAggregation.MEAN
        return create_next(**options)

    with strategy.scope(), tf.variable_creator_scope(create):
        yield


def take_share(batch: Any, strategy: Strategy) -> Any:
    """The part that belongs to the replica which asks, of nested tensors [batch, ...]."""
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return batch
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    return tf.nest.map_structure(lambda tensor: tf.reshape(tensor, (replicas, -1, *tensor.shape[1:]))[replica], batch)


def require_divisible(batch: int, strategy: Strategy) -> None:
    """Refuse a batch that cannot be shared out evenly.

    Raises:
        ModelError: naming both numbers.
    """
    replicas = strategy.num_replicas_in_sync
    if batch % replicas:
        raise ModelError(
            f"a batch of {batch} images cannot be divided evenly among {replicas} replicas",
            expected=f"a multiple of {replicas}: train.batch_size is the total over all replicas",
            remedy="change train.batch_size",
        )


def require_agreement(fact: str, strategy: Strategy) -> None:
    """Refuse to start workers on different trainings, or on one from different epochs: they would wait for ever.

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
            "the workers do not train the same",
            expected=f"on every worker {fact}",
            remedy=f"give all of them the same code, data, params, kind of machine and checkpoints: {GUIDE}",
        )
