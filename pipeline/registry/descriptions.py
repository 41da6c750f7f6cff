"""Descriptions of a registered model and of its versions, in Markdown for MLflow's pages.

Links and the picture are relative to these pages. They therefore hold for every server of the store.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote

from pipeline.evaluation.markdown import escape, table
from pipeline.registry.aliases import CHALLENGER, CHAMPION
from pipeline.registry.model_card import CONFUSION, describe_task
from pipeline.registry.model_card_facts import Facts
from pipeline.tracking.descriptions import LONGEST, SIGNATURE_LENGTH, must_write, sign
from pipeline.tracking.experiments import link
from pipeline.tracking.logged_models import MODEL_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATASET_TAG = "dataset"  # of a registered model: MLflow's list of models shows tags, and no descriptions
GENERATED = "generated images, to try the pipeline"
LONGEST_SUMMARY = LONGEST - SIGNATURE_LENGTH


def describe(client: "MlflowClient", facts: Facts) -> None:
    """Describe a version and its registered model, unless somebody has edited the description."""
    from mlflow.exceptions import MlflowException

    assert facts.version
    model = client.get_registered_model(facts.name)
    text = write_model_description(facts)
    # Earlier releases wrote the first paragraph, and did not sign it.
    if must_write(model.description, sign(text)) or text.startswith(f"{model.description}\n\n"):
        client.update_registered_model(facts.name, sign(text))
    if model.tags.get(DATASET_TAG) is None:
        try:
            client.set_registered_model_tag(facts.name, DATASET_TAG, describe_dataset(facts))
        except MlflowException:  # another process may have set it at the same time
            if DATASET_TAG not in client.get_registered_model(facts.name).tags:
                raise
    version = client.get_model_version(facts.name, facts.version)
    summary = sign(summarise(facts))
    if must_write(version.description, summary):
        client.update_model_version(facts.name, facts.version, summary)


def describe_dataset(facts: Facts) -> str:
    """Return the dataset's title, or that its images are generated: such a model is not to be taken for a real one."""
    return GENERATED if _is_generated(facts) else facts.dataset_title


def write_model_description(facts: Facts) -> str:
    """Write the description of a registered model."""
    shape = ", ".join(map(str, facts.dataset.shape))
    task = describe_task(facts.dataset, [row["class"] for row in facts.classes])
    paragraphs = [
        f"{task} Takes raw uint8 images [n, {shape}]. `{CHAMPION}` is in use, `{CHALLENGER}` waits.",
        "**Not a model for use.** Its images are generated, to try the pipeline." if _is_generated(facts) else "",
        f"Data: {escape(facts.dataset_title)}. [Trainings]({link(facts.experiment)})",
        "`pipeline versions` lists the versions with their accuracy and decisions, `pipeline history` the moves of the "
        "aliases. `pipeline promote` and `pipeline rollback` move `champion` and record why.",
    ]
    return "\n\n".join(filter(None, paragraphs))


def summarise(facts: Facts) -> str:
    """Write the description of a version: decision, quality, origin, links, and the confusion matrix.

    The reason of the decision is cut off if it is too long.
    """
    metrics, weakest, settings = facts.metrics, facts.weakest[0], facts.settings
    best = facts.best_epoch
    quality = (
        f"Accuracy **{metrics['accuracy']:.2%}** on {metrics['images']:,} test images (95% interval "
        f"{metrics['accuracy_low']:.2%} to {metrics['accuracy_high']:.2%}); calibration error {metrics['ece']:.4f}; "
        f"weakest class {escape(weakest['class'])}, recall {float(weakest['recall']):.2%}."
    )
    images, name = facts.split["splits"]["train"]["images"], escape(describe_dataset(facts))
    kept = f"epoch {settings['best_epoch']} of {len(facts.history)}"
    preset = f"preset {escape(settings['preset'])}, seed {settings['seed']}, {settings['parameters']:,} parameters"
    size, digest = f"{facts.model_bytes / 1000:,.0f} kB", facts.tags[MODEL_TAG][:12]
    rows = [
        ("validation", f"accuracy {best['validation_accuracy']:.2%}, {kept}"),
        ("training", preset),
        ("data", f"{name}, {images:,} images: `train.parquet` with MD5 `{facts.tags['data.train']}`"),
        ("code", _describe_code(facts.tags)),
        ("model file", f"{size}, `model.keras` with SHA-256 `{digest}`"),
    ]
    run = f"#/experiments/{facts.experiment}/runs/{facts.run_id}"
    artifacts = {
        "Model card": "card/card.html",
        "Decision": "decision/decision.md",
        "Evaluation": "evaluation/report.md",
    }
    if facts.tags.get("git.dirty") == "true":
        artifacts["Uncommitted changes"] = "source/changes.diff"
    links = {"Training run": run} | {name: f"{run}/artifacts/{path}" for name, path in artifacts.items()}
    picture = f"get-artifact?path={quote(CONFUSION, safe='')}&run_uuid={facts.run_id}"
    rest = "\n\n".join(
        [
            quality,
            " · ".join(f"[{name}]({address})" for name, address in links.items()),
            table(("", ""), rows),
            f"![Confusion matrix]({picture})",
        ]
    )
    reason, available = escape(facts.reason), LONGEST_SUMMARY - len(rest) - 2
    return f"{reason if len(reason) <= available else reason[: available - 1] + '…'}\n\n{rest}"


def _describe_code(tags: Mapping[str, str]) -> str:
    if "restored" in tags:
        return "unknown: this run was rebuilt from the stage outputs, without the record of its training"
    commit = tags.get("mlflow.source.git.commit")
    if commit is None:
        return "unknown: the project was not in git"
    return f"commit `{commit[:10]}`" + (", with uncommitted changes" if tags.get("git.dirty") == "true" else "")


def _is_generated(facts: Facts) -> bool:
    return bool(facts.entry and facts.entry.generated)
