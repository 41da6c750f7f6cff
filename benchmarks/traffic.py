"""Measure the traffic monitor and the cost of the traffic log; write `benchmarks/traffic.md`.

    python benchmarks/traffic.py --mnist mnist.npy

Run it in a clone whose champion was trained on Fashion-MNIST. `mnist.npy` has MNIST's images, uint8 [n, 28, 28]. The
official test images choose nothing: they are only drawn from, as traffic without drift.
"""

import argparse
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from pipeline.data import table
from pipeline.evaluation.markdown import table as markdown_table
from pipeline.evaluation.metrics import class_probabilities, roc_auc
from pipeline.monitoring import drift, outliers
from pipeline.monitoring.accuracy_estimate import fit_accuracy_estimate
from pipeline.monitoring.outliers import fit_outlier_score
from pipeline.monitoring.params import MonitorParams
from pipeline.monitoring.traffic import compare_window
from pipeline.monitoring.traffic_reference import Reference, build_reference
from pipeline.monitoring.traffic_windows import UNLABELLED, Rows
from pipeline.params import load_params
from pipeline.registry.champion import find_champion
from pipeline.tracking.logged_models import EXPORTED_TAG
from tests.traffic_files import measure_for_drift

Images = np.ndarray
Score = Callable[[Images], np.ndarray]
Predict = Callable[[Images], np.ndarray]
PAGE = Path(__file__).with_suffix(".md")
SHARE = 0.05  # of usual images beyond a threshold


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, required=True)
    mnist = np.load(parser.parse_args().mnist)
    champion = find_champion(Path.cwd())
    assert champion, "the clone has no champion: pipeline run"
    version, sha256 = champion.version.version, champion.version.tags[EXPORTED_TAG]
    predict = champion.create_predictor((28, 28))
    validation = table.read_images(Path("data/splits/validation.parquet"))
    train = table.read_images(Path("data/splits/train.parquet"))
    test, _ = table.read_images(Path("data/splits/test.parquet"))
    reference = build_reference(Path.cwd(), str(version), sha256)
    parts = [
        "# The traffic monitor, measured",
        f"Fashion-MNIST, the preset `mlp`. Written by `python benchmarks/traffic.py` in {_now()}.",
        "## Outliers",
        compare_scores(predict, train, validation, mnist),
        "## Accuracy without labels",
        compare_estimates(predict, validation),
        "## Drift of a window",
        count_alarms(predict, reference, test, mnist),
        "## Cost of the log",
        measure_log(predict, test),
    ]
    PAGE.write_text("\n\n".join(parts) + "\n")


def compare_scores(
    predict: Predict, train: tuple[Images, np.ndarray], validation: tuple[Images, np.ndarray], mnist: Images
) -> str:
    """Compare outlier scores. Usual: one half of the validation images; the other half sets the threshold."""
    usual, held = validation[0][::2], validation[0][1::2]
    random = np.random.default_rng(0)
    strange = {
        "MNIST": mnist[:3000],
        "noise": random.integers(0, 256, (3000, 28, 28), np.uint8),
        "inverted": 255 - held,
        "pixels shuffled": held.reshape(len(held), -1)[:, random.permutation(784)].reshape(held.shape),
        "a quarter turn": np.ascontiguousarray(np.rot90(held, axes=(1, 2))),
    }
    chosen = train[0][random.permutation(len(train[0]))[:10_000]]
    scores: dict[str, Score] = {
        "1 - largest probability": lambda images: -_probabilities(predict, images).max(axis=1),
        "entropy": lambda images: _entropy(_probabilities(predict, images)),
        "Mahalanobis, features only": _fit(predict, chosen, features=True, probabilities=False, classes=100),
        "Mahalanobis, probabilities only": _fit(predict, chosen, features=False, probabilities=True, classes=100),
        "Mahalanobis, both, one covariance": _fit(predict, chosen, features=True, probabilities=True, classes=0),
        "Mahalanobis, both (used)": _fit(predict, chosen, features=True, probabilities=True, classes=100),
        "residual of 32 principal components (needs the images)": _principal_components(train[0], 32),
    }
    rows = []
    for name, score in scores.items():
        threshold, own = np.quantile(score(usual), 1 - SHARE), score(held)
        cells = []
        for images in strange.values():
            found = score(images)
            labels = np.concatenate([np.zeros(len(own), int), np.ones(len(found), int)])
            cells.append(f"{roc_auc(labels, np.concatenate([own, found])):.3f}, {(found > threshold).mean():.0%}")
        rows.append((name, f"{(own > threshold).mean():.1%}", *cells))
    text = (
        "Area under the ROC curve, and the share found beyond the threshold that 5 % of one half of the validation "
        "images exceed. `usual` is the other half."
    )
    return f"{text}\n\n{markdown_table(['score', 'usual', *strange], rows, numbers=6)}"


def compare_estimates(predict: Predict, validation: tuple[Images, np.ndarray]) -> str:
    """Compare estimates of the accuracy, fitted to one half of the validation images, on the changed other half."""
    from scipy import ndimage

    held, labels = validation[0][1::2], validation[1][1::2]
    usual, usual_labels = validation[0][::2], validation[1][::2]
    random = np.random.default_rng(0)
    changed: dict[str, Images] = {"unchanged": held}
    changed |= {f"moved {n} px": np.roll(held, n, axis=1) for n in (1, 2, 3)}
    changed |= {f"darker x {factor}": (held * factor).astype(np.uint8) for factor in (0.8, 0.6, 0.4)}
    for deviation in (15, 30, 60):
        noisy = held + random.normal(0, deviation, held.shape)
        changed[f"noise {deviation}"] = np.clip(noisy, 0, 255).astype(np.uint8)
    for angle in (10, 20):
        turned = [ndimage.rotate(image, angle, reshape=False, order=1) for image in held]
        changed[f"turned {angle} deg"] = np.stack(turned)
    changed |= {f"blurred {sigma}": ndimage.gaussian_filter(held, (0, sigma, sigma)) for sigma in (0.7, 1.2)}
    known = _probabilities(predict, usual)
    correct = known.argmax(axis=1) == usual_labels
    fitted = fit_accuracy_estimate(known.max(axis=1), correct)
    on_entropy = fit_accuracy_estimate(-_entropy(known), correct)
    estimates: dict[str, Callable[[np.ndarray], float]] = {
        "ATC, largest probability (used)": lambda found: fitted(found.max(axis=1)),
        "ATC, entropy": lambda found: on_entropy(-_entropy(found)),
        "mean confidence": lambda found: float(found.max(axis=1).mean()),
        "difference of confidences": lambda found: float(
            correct.mean() + found.max(axis=1).mean() - known.max(axis=1).mean()
        ),
    }
    rows, errors = [], []
    for name, images in changed.items():
        found = _probabilities(predict, images)
        accuracy = float((found.argmax(axis=1) == labels).mean())
        values = [estimate(found) for estimate in estimates.values()]
        errors.append([abs(value - accuracy) for value in values])
        rows.append((name, f"{accuracy:.3f}", *(f"{value:.3f}" for value in values)))
    rows.append(("**mean error**", "", *(f"**{error:.3f}**" for error in np.mean(errors, axis=0))))
    return markdown_table(["images", "accuracy", *estimates], rows, numbers=5)


def count_alarms(predict: Predict, reference: Reference, test: Images, mnist: Images) -> str:
    """Count windows with drift: 200 of each size without a change, 30 of each size with one."""
    params = load_params().section(MonitorParams)
    random = np.random.default_rng(0)
    changes: dict[str, Callable[[Images], Images]] = {
        "unchanged: drifted, of 200": lambda images: images,
        "a tenth darker: found, of 30": lambda images: (images * 0.9).astype(np.uint8),
        "three tenths darker": lambda images: (images * 0.7).astype(np.uint8),
        "shifted by one pixel": lambda images: np.roll(images, 1, axis=1),
        "a tenth is MNIST": lambda images: np.concatenate(
            [images[len(images) // 10 :], _draw(random, mnist, len(images) // 10)]
        ),
        "MNIST": lambda images: _draw(random, mnist, len(images)),
    }
    rows = []
    for name, change in changes.items():
        cells = []
        for size in (50, 200, 1000):
            drifted = 0
            for _ in range(200 if name.startswith("unchanged") else 30):
                rows_ = _as_rows(predict, reference, change(_draw(random, test, size)))
                drifted += bool(drift.find_drifted(compare_window(rows_, reference), params))
            cells.append(str(drifted))
        rows.append((name, *cells))
    return markdown_table(["", "50 images", "200", "1,000"], rows, numbers=3)


def measure_log(predict: Predict, images: Images) -> str:
    """Measure `TrafficLog.add` and the size of a row."""
    from pipeline.serving.traffic_log import TrafficLog  # of a room that a project with this one may lack

    count, times = 20_000, []
    probabilities = predict(images[:1])
    with tempfile.TemporaryDirectory() as directory:
        log = TrafficLog(Path(directory), share=1.0, keep_images=False, keep_days=30, limit_mb=1000)
        for place in range(count):
            request = str(uuid.uuid4())
            start = time.perf_counter()
            log.add(request, "1", "0" * 64, images[place % len(images)][None], probabilities)
            times.append(time.perf_counter() - start)
            time.sleep(0.0005)
        log.close()
        size = sum(path.stat().st_size for path in Path(directory).iterdir())
    microseconds = np.array(times) * 1e6
    rows = [
        ("`TrafficLog.add`, median", f"{np.median(microseconds):.1f} us"),
        ("the same, 99th percentile", f"{np.quantile(microseconds, 0.99):.1f} us"),
        ("images dropped, of 20,000 at about 1,500 a second", str(log.dropped)),
        ("bytes of an image in the log, without the image itself", f"{size / count:.0f}"),
    ]
    return markdown_table(["", ""], rows, numbers=1)


def _probabilities(predict: Predict, images: Images) -> np.ndarray:
    return class_probabilities(predict(np.ascontiguousarray(images)))


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    return -(probabilities * np.log(np.clip(probabilities, 1e-12, 1))).sum(axis=1)


def _features(images: Images) -> np.ndarray:
    return np.stack(list(measure_for_drift(np.ascontiguousarray(images)).values()), axis=1)


def _fit(predict: Predict, images: Images, *, features: bool, probabilities: bool, classes: int) -> Score:
    """Fit the monitor's score to parts of its vector. classes: the most that have a covariance of their own."""

    def describe(some: Images) -> tuple[np.ndarray, np.ndarray]:
        answers = _probabilities(predict, some)
        return _features(some)[:, : 5 * features], answers

    former, outliers.MOST_COVARIANCES = outliers.MOST_COVARIANCES, classes
    fitted = fit_outlier_score(*describe(images))
    outliers.MOST_COVARIANCES = former
    if not probabilities:  # a variance that drowns them
        columns = slice(0, 5)
        inverse = np.linalg.inv(np.linalg.inv(fitted.precisions)[:, columns, columns])
        means, centre, scale = fitted.means[:, columns], fitted.centre[columns], fitted.scale[columns]

        def score(some: Images) -> np.ndarray:
            values, answers = describe(some)
            labels = answers.argmax(axis=1)
            difference = (values - centre) / scale - means[labels]
            return np.einsum("ij,ijk,ik->i", difference, inverse[labels], difference)

        return score
    return lambda some: fitted(*describe(some))


def _principal_components(images: Images, count: int) -> Score:
    flat = images.reshape(len(images), -1) / 255
    mean = flat.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov((flat - mean).T))
    kept = vectors[:, -count:]

    def score(some: Images) -> np.ndarray:
        centred = some.reshape(len(some), -1) / 255 - mean
        return (centred**2).sum(axis=1) - ((centred @ kept) ** 2).sum(axis=1)

    return score


def _as_rows(predict: Predict, reference: Reference, images: Images) -> Rows:
    assert reference.model
    values: Mapping[str, np.ndarray] = measure_for_drift(np.ascontiguousarray(images))
    answers = _probabilities(predict, images)
    return Rows(
        times=np.arange(len(images), dtype=np.float64),
        values=values,
        predicted=answers.argmax(axis=1),
        confidences=answers.max(axis=1),
        outlier_scores=reference.model.outlier_score(np.stack(list(values.values()), axis=1), answers),
        answers=np.full(len(images), UNLABELLED),
    )


def _draw(random: np.random.Generator, images: Images, count: int) -> Images:
    return images[random.choice(len(images), count, replace=False)]


def _now() -> str:
    return time.strftime("%B %Y")


if __name__ == "__main__":
    sys.exit(main())
