"""Micro-batching, with a model that computes when the test lets it."""

import asyncio
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest

from pipeline.models.contract import Contract, ContractTask, ExportCheck
from pipeline.serving.batching import Batcher
from pipeline.serving.errors import NotAvailable, RequestError
from pipeline.serving.metrics import Metrics
from pipeline.serving.served_model import ModelHolder, ServedModel

CONTRACT = Contract(
    dataset="garments", classes=("Bag", "Dress"), classes_ko=(), height=2, width=2, ground=0,
    task=ContractTask(loss="sparse_categorical_crossentropy", units=2, positive_classes=()),
    keras_sha256="0" * 64, litert_sha256="1" * 64,
    check=ExportCheck(images=1, largest_difference=0.0, other_top_class=0),
)  # fmt: skip


@dataclass
class Gate:
    """A function of images that waits to be opened, and remembers the sizes of its batches."""

    sizes: list[int] = field(default_factory=list)
    is_open: threading.Event = field(default_factory=threading.Event)

    def predict(self, images: np.ndarray) -> np.ndarray:
        self.sizes.append(len(images))
        assert self.is_open.wait(60)
        share = images[:, 0, 0].astype(np.float32) / 255
        return np.stack([share, 1 - share], axis=1)


def images(*values: int) -> np.ndarray:
    return np.stack([np.full((2, 2), value, np.uint8) for value in values])


def hold(gate: Gate) -> ModelHolder:
    return ModelHolder(ServedModel("garments", "1", "1" * 64, CONTRACT, gate.predict))


async def start(models: ModelHolder, max_batch: int = 4, max_waiting: int = 6) -> Batcher:
    batcher = Batcher(models, Metrics(), max_batch=max_batch, max_waiting=max_waiting)
    batcher.start()
    return batcher


async def until(condition: object) -> None:
    while not condition():  # type: ignore[operator]
        await asyncio.sleep(0.001)


def test_what_waits_is_answered_together_and_each_gets_its_own() -> None:
    async def run() -> None:
        gate = Gate()
        batcher = await start(hold(gate))
        tasks = [asyncio.create_task(batcher.predict(images(0)))]
        await until(lambda: gate.sizes)
        tasks += [asyncio.create_task(batcher.predict(images(*values))) for values in ((10, 20), (30,), (40,), (50,))]
        await asyncio.sleep(0)
        gate.is_open.set()
        answers = [probabilities for _, probabilities in await asyncio.gather(*tasks)]
        assert gate.sizes == [1, 4, 1]
        np.testing.assert_allclose(np.concatenate(answers)[:, 0] * 255, [0, 10, 20, 30, 40, 50], atol=1e-4)
        batcher.stop()

    asyncio.run(run())


def test_beyond_the_bound_requests_are_refused_and_later_ones_are_answered() -> None:
    async def run() -> None:
        gate = Gate()
        batcher = await start(hold(gate))
        tasks = [asyncio.create_task(batcher.predict(images(1, 2, 3))) for _ in range(2)]
        await until(lambda: gate.sizes)
        with pytest.raises(NotAvailable, match="more requests"):
            await batcher.predict(images(1))
        gate.is_open.set()
        await asyncio.gather(*tasks)
        await batcher.predict(images(1))
        await batcher.predict(images(*range(20)))  # alone, a larger request is answered
        batcher.stop()

    asyncio.run(run())


def test_a_failing_model_fails_its_requests_only() -> None:
    async def run() -> None:
        gate = Gate()
        gate.is_open.set()
        models = hold(gate)
        batcher = await start(models)

        def fail(_: np.ndarray) -> np.ndarray:
            raise RuntimeError("LiteRT fell over")

        def answer_nothing(found: np.ndarray) -> np.ndarray:
            return np.full((len(found), 2), np.nan, np.float32)

        for broken in (fail, answer_nothing):
            models.replace(ServedModel("garments", "2", "2" * 64, CONTRACT, broken))
            with pytest.raises(NotAvailable):
                await batcher.predict(images(1))
        models.replace(None, "there is no champion")
        with pytest.raises(Exception, match="no model can answer"):
            await batcher.predict(images(1))
        models.replace(hold(gate).current())
        with pytest.raises(RequestError, match="other images"):
            await batcher.predict(np.zeros((1, 3, 3), np.uint8))
        assert (await batcher.predict(images(255)))[1][0, 0] == 1
        batcher.stop()

    asyncio.run(run())


def test_what_waits_is_answered_before_the_end() -> None:
    async def run() -> None:
        gate = Gate()
        batcher = await start(hold(gate))
        tasks = [asyncio.create_task(batcher.predict(images(value))) for value in range(3)]
        await until(lambda: gate.sizes)
        stopping = asyncio.create_task(asyncio.to_thread(batcher.stop))
        await asyncio.sleep(0)
        gate.is_open.set()
        assert len(await asyncio.gather(*tasks)) == 3
        await stopping

    asyncio.run(run())
