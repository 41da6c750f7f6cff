"""Evaluate the model on the test split, once, and check it against the absolute gate."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data import table
from pipeline.errors import DataError, ModelError
from pipeline.image_class_names import list_classes
from pipeline.models.contract import (
    CONTRACT_FILE,
    INT8_FILE,
    KERAS_FILE,
    LITERT_FILE,
    QUANTIZED_FOLDER,
    Contract,
    read_contract,
    require_keras_file,
)
from pipeline.params import Params
from pipeline.stages.entrypoint import execute

if TYPE_CHECKING:
    from pipeline.evaluation.report import Answers
    from pipeline.models.interpreter import ExportedModel

MODELS = Path("models")
TEST_SPLIT = Path("data/splits/test.parquet")
EVALUATION = Path("reports/evaluation")


def run(params: Params) -> None:
    """Evaluate `models/model.tflite`, which is served, on the test split. A rejected model is a success of this stage.

    TensorFlow is not imported.

    Raises:
        ModelError: the model is damaged, or its images or classes are not those of the data.
        DataError: the test split is missing, damaged or empty.
    """
    # Imported here, so that `execute` watches over the process during the seconds that this takes.
    from pipeline.evaluation.gate import judge
    from pipeline.evaluation.metrics import class_probabilities
    from pipeline.evaluation.report import Answers, explain_mistakes, measure, measure_saliency, write_evaluation
    from pipeline.models import interpreter
    from pipeline.tracking.parent_run_id import flow_registers

    dataset, contract = table.read_dataset(TEST_SPLIT), read_contract(MODELS / CONTRACT_FILE)
    require_fit(contract, dataset)
    require_keras_file(MODELS / KERAS_FILE, contract)
    model, task = interpreter.load(MODELS / LITERT_FILE, contract), contract.create_task()
    images, labels = table.read_images(TEST_SPLIT)
    if not len(labels):
        raise DataError(f"{TEST_SPLIT} holds no images", remedy="dvc repro split")
    print(f"{len(labels):,} test images of {dataset.name}", flush=True)
    answers = Answers(
        dataset=dataset.name,
        classes=task.classes,
        classes_ko=contract.answers_ko,
        ids=table.read_ids(TEST_SPLIT),
        images=images,
        labels=task.answers(labels),
        probabilities=class_probabilities(model.predict(images)),
    )
    metrics = measure(answers)
    metrics["saliency"] = measure_saliency(answers, model.predict, contract.ground)
    timings: Mapping[str, float] = {}
    if contract.int8:
        metrics["int8"], timings = _measure_int8(contract, model, answers)
    gate = judge(metrics, (MODELS / LITERT_FILE).stat().st_size, params.evaluate)
    write_evaluation(EVALUATION, answers, metrics, gate, explain_mistakes(answers, model.predict, contract.ground))
    interval = f"95% interval {metrics['accuracy_low']:.2%} to {metrics['accuracy_high']:.2%}"
    print(f"accuracy {metrics['accuracy']:.2%} ({interval}), calibration error {metrics['ece']}")
    weakest = min(range(len(task.classes)), key=lambda label: answers.class_scores[label].recall)
    print(f"weakest class: {task.classes[weakest]}, recall {metrics['min_class_recall']:.1%}")
    print("gate: passed" if gate.passed else "gate: REJECTED, the model will not be registered")
    for check in gate.failures:
        print(f"  {check}")
    if timings or not flow_registers():  # else register records the evaluation, but not the timings
        from pipeline.tracking.stage_runs import log_evaluation

        log_evaluation(MODELS / KERAS_FILE, EVALUATION, timings)


def _measure_int8(
    contract: Contract, model: "ExportedModel", answers: "Answers"
) -> tuple[dict[str, Any], Mapping[str, float]]:
    """Compare the int8 file with the served one. Returns its figures, and milliseconds per image, by metric name.

    The times are printed and logged, and in no output of the stage, which has the same bytes on a rerun.
    """
    from pipeline.evaluation.metrics import class_probabilities
    from pipeline.evaluation.quantized import describe_quantized, measure_quantized
    from pipeline.models import interpreter, latency

    path, images = MODELS / QUANTIZED_FOLDER / INT8_FILE, answers.images
    int8 = interpreter.load_int8(path, contract)
    sizes = {"size": path.stat().st_size, "float_size": (MODELS / LITERT_FILE).stat().st_size}
    figures = measure_quantized(answers, class_probabilities(int8.predict(images)), **sizes)
    float_time, int8_time = latency.measure([model.predict, int8.predict], images)
    print(f"int8: {describe_quantized(figures)}; {int8_time.one:.3f} ms an image instead of {float_time.one:.3f}")
    return figures, {
        "test_int8.ms": int8_time.one,
        "test_int8.float_ms": float_time.one,
        "test_int8.batch_ms": int8_time.batch,
        "test_int8.float_batch_ms": float_time.batch,
    }


def require_fit(contract: Contract, dataset: table.Dataset) -> None:
    """Refuse a model that takes images of another shape, or knows other classes.

    Raises:
        ModelError: naming what the data have, and what the model has.
    """
    if (contract.shape, contract.classes) != (dataset.shape, dataset.classes):
        expected, found = (
            f"{' x '.join(map(str, shape))} pixels of {list_classes(classes)}"
            for shape, classes in ((dataset.shape, dataset.classes), (contract.shape, contract.classes))
        )
        raise ModelError(
            f"{MODELS / LITERT_FILE} is not a model for the images of {dataset.name}",
            expected=expected,
            found=found,
            remedy="dvc repro train",
        )


if __name__ == "__main__":
    execute("evaluate", run)
