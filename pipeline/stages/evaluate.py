"""Evaluate the model on the test split, once, and check it against the absolute gate."""

from pathlib import Path

from pipeline.data import table
from pipeline.errors import DataError, ModelError
from pipeline.models.tasks import Task, create_task
from pipeline.params import Params
from pipeline.stages.entrypoint import execute

MODEL = Path("models/model.keras")
TEST_SPLIT = Path("data/splits/test.parquet")
EVALUATION = Path("reports/evaluation")


def run(params: Params) -> None:
    """Evaluate `models/model.keras` on the test split. A rejected model is a success of this stage.

    Raises:
        ModelError: the model's input or classes are not those of the data.
        DataError: the test split is missing, damaged or empty.
    """
    # Imported here, so that `execute` watches over the process during the seconds that this takes.
    from pipeline.evaluation.gate import judge
    from pipeline.evaluation.metrics import class_probabilities
    from pipeline.evaluation.report import Answers, measure, write_evaluation
    from pipeline.models import archive
    from pipeline.models.inference import predict
    from pipeline.models.losses import require_fit
    from pipeline.tracking.runs import log_evaluation

    dataset = table.read_dataset(TEST_SPLIT)
    task = create_task(params.train.loss, dataset.classes, params.dataset.positive_classes)
    model = archive.load(MODEL)
    require_input(model.input_shape, dataset)
    require_fit(model, task)
    images, labels = table.read_images(TEST_SPLIT)
    if not len(labels):
        raise DataError(f"{TEST_SPLIT} holds no images", remedy="dvc repro split")
    print(f"{len(labels):,} test images of {dataset.name}", flush=True)
    answers = Answers(
        dataset=dataset.name,
        classes=task.classes,
        classes_ko=korean_names(task, dataset),
        ids=table.read_ids(TEST_SPLIT),
        images=images,
        labels=task.answers(labels),
        probabilities=class_probabilities(predict(model, images)),
    )
    metrics = measure(answers)
    gate = judge(metrics, MODEL.stat().st_size, params.evaluate)
    write_evaluation(EVALUATION, answers, metrics, gate)
    interval = f"95% interval {metrics['accuracy_low']:.2%} to {metrics['accuracy_high']:.2%}"
    print(f"accuracy {metrics['accuracy']:.2%} ({interval}), calibration error {metrics['ece']}")
    weakest = min(range(len(task.classes)), key=lambda label: answers.class_scores[label].recall)
    print(f"weakest class: {task.classes[weakest]}, recall {metrics['min_class_recall']:.1%}")
    print("gate: passed" if gate.passed else "gate: REJECTED, the model will not be registered")
    for check in gate.failures:
        print(f"  {check}")
    log_evaluation(MODEL, EVALUATION)


def require_input(shape: tuple[int | None, ...], dataset: table.Dataset) -> None:
    """Refuse a model that takes images of another shape.

    Args:
        shape: of the model's input, the number of images first.

    Raises:
        ModelError: naming both shapes.
    """
    expected = (dataset.height, dataset.width)
    if shape[1:] != expected:
        raise ModelError(
            f"{MODEL} does not take the images of {dataset.name}",
            expected=f"an input of {' x '.join(map(str, expected))} pixels",
            found=f"one of {' x '.join(map(str, shape[1:]))}",
            remedy="dvc repro train",
        )


def korean_names(task: Task, dataset: table.Dataset) -> tuple[str, ...]:
    """The names of a task's classes in Korean: the dataset's, or no and yes in its terms."""
    if not task.binary:
        return dataset.classes_ko
    return ("기타", " 또는 ".join(dataset.classes_ko[label] for label in task.positive))


if __name__ == "__main__":
    execute("evaluate", run)
