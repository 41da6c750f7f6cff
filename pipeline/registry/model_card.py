"""The model card: a model's purpose, origin, quality and limits.

After M. Mitchell et al., "Model cards for model reporting", FAT* 2019. Pure functions: equal facts give equal bytes.
"""

import base64
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

from markdown_it import MarkdownIt

from pipeline.data.applied_corrections import Applied, count_by_class, summarise_applied
from pipeline.data.table import OFFICIAL, Dataset
from pipeline.evaluation.markdown import describe_selection, escape, table
from pipeline.evaluation.metrics import select_weakest, wilson_interval
from pipeline.evaluation.quantized import describe_quantized
from pipeline.evaluation.saliency import SaliencyCheck
from pipeline.image_class_names import list_classes
from pipeline.models.contract import Contract, Int8Check
from pipeline.registry.model_card_facts import Facts

SHOWN_CONFUSIONS = 6
SHOWN_CORRECTIONS = 10  # pairs of classes

CARD, PAGE = "card/card.md", "card/card.html"  # artifacts of the run
CURVES = "training/curves.png"  # paths of the figures in the run's artifacts
CONFUSION = "evaluation/figures/confusion.png"
RELIABILITY = "evaluation/figures/reliability.png"
GALLERY = "evaluation/figures/gallery.png"
SALIENCY = "evaluation/figures/saliency.png"  # absent from evaluations by release 0.1.0
FIGURES = (CURVES, CONFUSION, RELIABILITY, GALLERY, SALIENCY)

COLOURS = {1: "grey", 3: "colour"}  # by channels
COUNTED = ("parameters", "multiply_adds")  # computed by `train`; the other settings are given


def describe_task(dataset: Dataset, answers: Sequence[str]) -> str:
    """Describe the task of a model in one sentence of Markdown.

    Args:
        answers: the dataset's classes, or for a yes-or-no task `other` and the positive class.
    """
    if tuple(answers) == dataset.classes:
        return f"Classifies images of {dataset.name} into {len(answers):,} classes: {escape(list_classes(answers))}."
    return f"Predicts the probability that an image of {dataset.name} shows {escape(answers[1])}."


def write_markdown(facts: Facts) -> str:
    """Write the card in Markdown. It links the figures among the run's artifacts, relative to `card/`."""
    sections = [
        [f"# Model card: {escape(facts.title)}", _describe_purpose(facts), _list_key_figures(facts)],
        ["## Decision", *_describe_decision(facts)],
        ["## Limits", *_describe_limits(facts)],
        ["## Classes", *_describe_classes(facts)],
        ["## Calibration", *_describe_calibration(facts)],
        ["## Most confident mistakes", *_describe_mistakes(facts)],
        ["## Data", *_describe_data(facts)],
        ["## Training", *_describe_training(facts)],
        ["## Lineage", *_describe_lineage(facts)],
        ["## How to use it", *_describe_use(facts)],
    ]
    return "\n\n".join(paragraph for section in sections for paragraph in section) + "\n"


def render_html(facts: Facts) -> str:
    """Render the card as one HTML page without external scripts, styles, fonts or images."""
    renderer = MarkdownIt("commonmark", {"html": False}).enable("table")
    renderer.add_render_rule("image", _embed_image)
    renderer.add_render_rule("table_open", lambda *_: '<div class="wide"><table>')
    renderer.add_render_rule("table_close", lambda *_: "</table></div>")
    page = Template(files("pipeline.registry").joinpath("card.html").read_text(encoding="utf-8"))
    return page.substitute(
        title=html.escape(facts.title),
        outcome=html.escape(facts.outcome),
        body=renderer.render(write_markdown(facts), dict(facts.figures)),
    )


def _embed_image(
    _renderer: object, tokens: Sequence[Any], place: int, _options: object, figures: Mapping[str, bytes]
) -> str:
    """Embed an image of the Markdown in the page. The last argument is the one passed to `render`."""
    token = tokens[place]
    data = base64.b64encode(figures[token.attrs["src"].removeprefix("../")]).decode()
    return f'<img alt="{html.escape(token.content)}" src="data:image/png;base64,{data}">'


def _describe_purpose(facts: Facts) -> str:
    answers = [row["class"] for row in facts.classes]
    return f"{describe_task(facts.dataset, answers)} Trained and tested on {escape(facts.dataset_title)}."


def _list_key_figures(facts: Facts) -> str:
    """List the most important figures. The page shows this list as tiles."""
    metrics, weakest = facts.metrics, facts.weakest[0]
    tiles = (
        f"**{metrics['accuracy']:.2%}** test accuracy, 95% interval "
        f"{metrics['accuracy_low']:.2%} to {metrics['accuracy_high']:.2%}",
        f"**{float(weakest['recall']):.1%}** recall of the weakest class, {escape(weakest['class'])}",
        f"**{metrics['ece']:.4f}** expected calibration error",
        f"**{facts.settings['parameters']:,}** parameters, {facts.settings['multiply_adds']:,} multiply-adds an image",
        f"**{facts.model_bytes / 1000:,.0f} kB** model file",
    )
    return "\n".join(f"- {tile}" for tile in tiles)


def _describe_decision(facts: Facts) -> Iterator[str]:
    yield f"> **{escape(facts.outcome)}**: {escape(facts.reason)}"
    if facts.version:
        yield "This is the decision at registration. For the present aliases, see the registry."
    yield "The absolute gate. Only a model that passes it is registered:"
    rows = [
        (
            f"`evaluate.{check['name']}`",
            "passed" if check["passed"] else "**failed**",
            _format_number(check["value"]),
            f"{'at least' if check['name'].startswith('min_') else 'at most'} {_format_number(check['threshold'])}",
        )
        for check in facts.gate["checks"]
    ]
    yield table(("check", "result", "value", "threshold"), rows, numbers=2)


def _describe_limits(facts: Facts) -> Iterator[str]:
    metrics, dataset = facts.metrics, facts.dataset
    limits = [
        f"**Tested on one dataset.** {metrics['images']:,} test images of {escape(facts.dataset_title)}, "
        f"{dataset.height} x {dataset.width} {COLOURS[dataset.channels]} pixels. Not tested: other sizes or sources, "
        "images that are shifted, turned, dimmed, noisy or cut off.",
        *(f"**Weak class: {escape(row['class'])}.** {_describe_weak_class(facts, row)}" for row in facts.weakest),
        _describe_confident_mistakes(facts),
        *(f"**Known limit of the data.** {escape(limit)}" for limit in (facts.entry.limits if facts.entry else ())),
        f"**One training.** Seed {facts.settings['seed']}. The intervals measure the uncertainty from the number of "
        "test images, not the variation between seeds.",
    ]
    if not facts.binary:
        limits.append(
            f"**No class for other images.** An image of anything else gets one of the {len(facts.classes)} classes."
        )
    limits += [
        f"**Data warning.** {escape(found['meaning'])}: {found['count']:,} images ({escape(found['name'])})."
        for found in facts.validation["expectations"]
        if not found["passed"]
    ]
    yield "\n".join(f"- {limit}" for limit in limits)


def _describe_weak_class(facts: Facts, row: Mapping[str, str]) -> str:
    predicted = [(count, called) for (actual, called), count in facts.confusions.items() if actual == row["class"]]
    mistakes = sorted((pair for pair in predicted if pair[1] != row["class"]), key=lambda pair: (-pair[0], pair[1]))
    sentence = f"Recall {float(row['recall']):.1%}"
    if not mistakes:
        return f"{sentence}."
    count, called = mistakes[0]
    return f"{sentence}; {count:,} of {int(row['support']):,} are predicted as {escape(called)}."


def _describe_confident_mistakes(facts: Facts) -> str:
    highest = facts.reliability[-1]
    images = int(highest["images"])
    wrong = round(images * (1 - float(highest["accuracy"])))
    return (
        f"**Confident mistakes.** Of {images:,} predictions with a confidence above {float(highest['low']):.0%}, "
        f"{wrong:,} are wrong."
    )


def _describe_classes(facts: Facts) -> Iterator[str]:
    rows = []
    shown = select_weakest([float(row["recall"]) for row in facts.classes])
    languages = [key for key in ("class", "class_ko") if key in facts.classes[0]]
    for label in shown:
        row = facts.classes[label]
        images = int(row["support"])
        right = facts.confusions.get((row["class"], row["class"]), 0)
        interval = "{:.1%} to {:.1%}".format(*wilson_interval(right, images)) if images else "no images"
        scores = (f"{float(row['precision']):.1%}", f"{float(row['recall']):.1%}", interval, f"{float(row['f1']):.3f}")
        rows.append((str(label), *(escape(row[key]) for key in languages), *scores, f"{images:,}"))
    yield from describe_selection(shown, len(facts.classes))
    columns = ("label", *("class", "클래스")[: len(languages)], "precision", "recall", "95% interval", "F1", "images")
    yield table(columns, rows, numbers=5)
    metrics = facts.metrics
    loss = "not a number" if metrics["loss"] is None else f"{metrics['loss']:.4f} nats"
    auc = f"; area under the ROC curve {metrics['roc_auc']:.4f}" if metrics.get("roc_auc") is not None else ""
    balanced = metrics.get("balanced_accuracy")  # absent from runs of release 0.1.0
    macro = "Macro" if balanced is None else f"Balanced accuracy {balanced:.2%}; macro"
    yield f"{macro} F1 {metrics['macro_f1']:.4f}; mean cross-entropy {loss}{auc}. Intervals are Wilson's."
    mistakes = [(pair, count) for pair, count in facts.confusions.items() if pair[0] != pair[1]]
    support = {row["class"]: int(row["support"]) for row in facts.classes}
    frequent = [
        (escape(actual), escape(called), f"{count:,}", f"{count / support[actual]:.1%}")
        for (actual, called), count in sorted(mistakes, key=lambda found: (-found[1], found[0]))[:SHOWN_CONFUSIONS]
    ]
    if frequent:
        yield "The most frequent confusions:"
        yield table(("actual", "predicted", "images", "of the actual class"), frequent, numbers=2)
    yield _link_image("Confusion matrix", CONFUSION)


def _describe_calibration(facts: Facts) -> Iterator[str]:
    images = sum(int(row["images"]) for row in facts.reliability)
    confidence = sum(int(row["images"]) * float(row["confidence"]) for row in facts.reliability) / images
    gap = confidence - facts.metrics["accuracy"]
    side = "overconfident" if gap > 0 else "underconfident"
    yield (
        f"Mean confidence {confidence:.1%}, accuracy {facts.metrics['accuracy']:.1%}: {side} by "
        f"{100 * abs(gap):.1f} points. Expected calibration error {facts.metrics['ece']:.4f}."
    )
    yield _link_image("Reliability diagram", RELIABILITY)


def _describe_mistakes(facts: Facts) -> Iterator[str]:
    yield _link_image("Gallery of mistakes", GALLERY)
    if SALIENCY in facts.figures:
        yield (
            "Red marks the pixels that spoke for the wrong class, by occlusion (Zeiler and Fergus, 2014). As a check: "
            f"{SaliencyCheck(**facts.metrics['saliency'])}."
        )
        yield _link_image("Saliency of mistakes", SALIENCY)


def _describe_data(facts: Facts) -> Iterator[str]:
    dataset, entry = facts.dataset, facts.entry
    shape = f"{dataset.height} x {dataset.width}, {COLOURS[dataset.channels]}, 8 bits"
    rows = [("dataset", escape(facts.dataset_title)), ("name", f"`{dataset.name}`"), ("images", shape)]
    if entry:
        page = f"[{escape(entry.page)}]({entry.page})" if entry.page.startswith("http") else f"`{entry.page}`"
        page = page if entry.page else f"imported images, in `data/own/{dataset.name}/`"
        rows += [("licence", escape(entry.licence)), ("source", page)]
    else:
        rows += [("licence", "not recorded"), ("source", "files of your own, in `data/local/`")]
    batches = [f"{escape(source)} ({count:,})" for source, count in facts.sources.items() if source != OFFICIAL]
    rows.append(("added batches", ", ".join(batches) or "none"))
    passed = sum(found["passed"] for found in facts.validation["expectations"])
    rows.append(("validation", f"{passed} of {len(facts.validation['expectations'])} expectations passed"))
    corrections = [Applied(**count) for count in facts.validation.get("corrections", ())]
    if corrections:
        rows.append(("corrected labels", escape(summarise_applied(corrections))))
    yield table(("", ""), rows)
    if corrections:
        yield "Corrections by class:"
        by_class = [(escape(change), f"{images:,}") for change, images in count_by_class(corrections).items()]
        yield table(("correction", "images"), by_class[:SHOWN_CORRECTIONS], numbers=1)
    splits = facts.split["splits"]
    columns = ("split", "purpose", "MD5 in `dvc.lock`", "images", "per class")
    uses = {"train": "training", "validation": "choice of the epoch", "test": "final evaluation"}
    yield table(
        columns,
        [
            (
                name,
                uses[name],
                f"`{facts.tags[f'data.{name}']}`",
                f"{splits[name]['images']:,}",
                _format_range(splits[name]),
            )
            for name in uses
        ],
        numbers=2,
    )
    fraction, seed = facts.split["validation_fraction"], facts.split["seed"]
    yield (
        f"A hash of their pixels and seed {seed} selects {fraction:.1%} of the training images for validation: "
        "duplicates share a split. The test images are the dataset's own."
    )


def _format_range(split: Mapping[str, Any]) -> str:
    smallest, largest = min(split["classes"].values()), max(split["classes"].values())
    return f"{smallest:,}" if smallest == largest else f"{smallest:,} to {largest:,}"


def _describe_training(facts: Facts) -> Iterator[str]:
    settings, best = facts.settings, facts.best_epoch
    yield (
        f"Preset `{settings['preset']}`, a network of {settings['parameters']:,} parameters. Of "
        f"{len(facts.history)} epochs, epoch {settings['best_epoch']} was kept, the best on the validation split: "
        f"accuracy {best['validation_accuracy']:.2%}, loss {best['validation_loss']:.4f}. On the training split: "
        f"{best['accuracy']:.2%} and {best['loss']:.4f}."
    )
    yield _link_image("Learning curves", CURVES)
    given = {key: value for key, value in settings.items() if key not in (*COUNTED, "classes", "best_epoch")}
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in sorted(given.items())]
    yield "\n".join(["Settings, resolved:", "", "```yaml", *lines, "```"])


def _describe_lineage(facts: Facts) -> Iterator[str]:
    tags = facts.tags
    rows = [("`model.keras`, SHA-256", f"`{tags['model.sha256']}`")]
    if facts.contract:
        rows.append(("`model.tflite`, SHA-256", f"`{facts.contract.litert_sha256}`"))
        if facts.contract.int8:
            rows.append(("`model.int8.tflite`, SHA-256", f"`{facts.contract.int8.sha256}`"))
    rows.append(("MLflow run", f"`{facts.run_id}`"))
    if "restored" in tags:
        rows.append(("recorded", "rebuilt from the stage outputs: code and environment of the training are unknown"))
    else:
        rows.append(("recorded", facts.recorded))
        rows.append(("git commit", _format_commit(tags)))
        if lock := tags.get("environment.lock"):
            rows.append(("environment, SHA-256 of `requirements.lock`", f"`{lock}`"))
        names = ("python", "tensorflow", "keras", "ai-edge-litert", "numpy", "mlflow", "dvc")
        versions = [f"{name} {tags[f'version.{name}']}" for name in names if f"version.{name}" in tags]
        rows.append(("versions", escape(", ".join(versions))))
        rows.append(("processor", escape(_format_processor(tags))))
    yield table(("", ""), rows)


def _format_commit(tags: Mapping[str, str]) -> str:
    commit = tags.get("mlflow.source.git.commit")
    if commit is None:
        return "none: the project was not in git"
    if tags.get("git.dirty") != "true":
        return f"`{commit}`, clean"
    left_out = f"; left out: {escape(tags['git.left_out'])}" if "git.left_out" in tags else ""
    return f"`{commit}`, **dirty**: with the changes in `source/changes.diff` of the run{left_out}"


def _format_processor(tags: Mapping[str, str]) -> str:
    """Describe the processor. Omits the machine's name, which is private and does not affect the result."""
    parts = [tags.get("host.cpu", ""), tags.get("host.cpu_features", "")]
    if "host.threads" in tags:
        parts.append(f"{tags['host.threads']} threads")
    if "host.computed_in" in tags:
        parts.append(f"computed in {tags['host.computed_in']}")
    return "; ".join(filter(None, parts)) or "not recorded"


def _describe_use(facts: Facts) -> Iterator[str]:
    dataset = facts.dataset
    shape = f"[n, {', '.join(map(str, dataset.shape))}]"
    values = "grey values" if dataset.channels == 1 else "red, green and blue (sRGB)"
    answers = f"[n, {1 if facts.binary else len(facts.classes)}]"
    meaning = (
        f"the probability of {escape(facts.classes[1]['class'])}" if facts.binary else "one probability for each label"
    )
    yield (
        f"Input: unscaled {values}, `uint8 {shape}`. Output: `float32 {answers}`, {meaning}. The model has only "
        "stock layers and loads without this project's code."
    )
    if facts.contract:
        yield _describe_files(facts.contract)
        if facts.contract.int8:
            yield _describe_int8(facts.contract.int8, facts.metrics.get("int8"))
    lines = ["import mlflow", f'model = mlflow.keras.load_model("{facts.model_uri}")', "model.predict(images)"]
    yield "\n".join(["```python", *lines, "```"])
    yield "\n".join(["```sh", f"mlflow models serve -m {facts.model_uri} --env-manager local --port 5001", "```"])


def _describe_files(contract: Contract) -> str:
    """Say which of the two files was evaluated, and how much the other one differs."""
    check, background = contract.check, "grey value" if contract.channels == 1 else "colour"
    return (
        "What is judged is what is served: `model.tflite`, by LiteRT. The Keras file answers alike: on "
        f"{check.images:,} validation images, probabilities differ by at most {check.largest_difference:.0e}, and "
        f"another class is the most probable one for {check.other_top_class:,}. `contract.json` has the classes, the "
        f"size of the images, the {background} of their background, and the digests of both files."
    )


def _describe_int8(check: Int8Check, measured: Mapping[str, Any] | None) -> str:
    """Describe the int8 file by the validation images, and by the test images if it was evaluated."""
    text = (
        "`model.int8.tflite` is the same model in 8-bit integers, with the same input and output. It decides nothing. "
        f"On {check.images:,} validation images, its accuracy is {check.accuracy:.2%}, that of `model.tflite` "
        f"{check.float_accuracy:.2%}; another class is the most probable one for {check.other_top_class:,}."
    )
    return f"{text} On the test images: {describe_quantized(dict(measured))}." if measured else text


def _link_image(description: str, path: str) -> str:
    return f"![{description}](../{path})"


def _format_number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:,}"
