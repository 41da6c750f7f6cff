"""What is chosen by the machine: on a processor and, as far as it is decided without one, on a GPU."""

import numpy as np
import pytest

from pipeline.models.backend import Machine, choose_precision, choose_xla, inspect_machine, view_as_tensor

PLAIN = Machine("cpu", 2, ("avx2",), False)
SERVER = Machine("cpu", 2, ("avx2", "amx_bf16"), True)
GPU = Machine("NVIDIA H100", 2, ("avx2",), True)


@pytest.mark.parametrize(("machine", "precision"), [(PLAIN, "float32"), (SERVER, "bfloat16"), (GPU, "bfloat16")])
def test_auto_precision_is_the_faster_one(machine: Machine, precision: str) -> None:
    assert choose_precision("auto", machine) == precision
    assert [choose_precision(wanted, machine) for wanted in ("float32", "bfloat16")] == ["float32", "bfloat16"]


@pytest.mark.parametrize(
    ("machine", "network", "compiled"),
    [(PLAIN, "mlp", False), (SERVER, "mlp", False), (GPU, "mlp", True), (GPU, "cnn", False)],
)
def test_auto_xla_compiles_where_it_is_faster_and_can(machine: Machine, network: str, compiled: bool) -> None:
    assert choose_xla("auto", network, machine) is compiled
    assert choose_xla("always", network, machine)
    assert not choose_xla("never", network, machine)


def test_this_machine_is_described() -> None:
    machine = inspect_machine()
    assert machine.threads > 0
    assert machine.bfloat16 or machine.device == "cpu"


def test_the_threads_are_those_that_tensorflow_is_told_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "7")
    assert inspect_machine().threads == 7


def test_a_view_has_the_values_of_its_array() -> None:
    array = np.arange(4096, dtype=np.uint8).reshape(64, 64)
    assert np.array_equal(view_as_tensor(array).numpy(), array)
