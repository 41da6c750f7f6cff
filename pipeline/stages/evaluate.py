"""Evaluate the model on the test split, once, and check it against the absolute gate."""

from pathlib import Path

from pipeline.data import table
from pipeline.errors import DataError, ModelError
from pipeline.image_class_names import list_classes
from pipeline.models.contract import CONTRACT_FILE, KERAS_FILE, LITERT_FILE, Contract, read_contract, require_keras_file
from pipeline.params import Params
from pipeline.stages.entrypoint import execute

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
    from pipeline.evaluation.report import Answers, measure, write_evaluation
    from pipeline.models import interpreter
    from pipeline.tracking.stage_runs import log_evaluation

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
    gate = judge(metrics, (MODELS / LITERT_FILE).stat().st_size, params.evaluate)
    write_evaluation(EVALUATION, answers, metrics, gate)
    interval = f"95% interval {metrics['accuracy_low']:.2%} to {metrics['accuracy_high']:.2%}"
    print(f"accuracy {metrics['accuracy']:.2%} ({interval}), calibration error {metrics['ece']}")
    weakest = min(range(len(task.classes)), key=lambda label: answers.class_scores[label].recall)
    print(f"weakest class: {task.classes[weakest]}, recall {metrics['min_class_recall']:.1%}")
    print("gate: passed" if gate.passed else "gate: REJECTED, the model will not be registered")
    for check in gate.failures:
        print(f"  {check}")
    log_evaluation(MODELS / KERAS_FILE, EVALUATION)


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
