"""The model card, from facts made by hand."""

import re
from dataclasses import asdict, replace
from html import escape as html_escape
from html.parser import HTMLParser
from typing import Any

import pytest

from pipeline.data.applied_corrections import Applied
from pipeline.data.catalog import load_catalog
from pipeline.data.table import Dataset
from pipeline.evaluation.markdown import escape, table
from pipeline.models.contract import Int8Check
from pipeline.registry.model_card import FIGURES, render_html, write_markdown
from pipeline.registry.model_card_facts import Facts
from tests.conftest import REPOSITORY
from tests.unit.test_contract import CONTRACT

CLASSES, KOREAN = ("Bag", "T-shirt/top", "Dress"), ("가방", "티셔츠/탑", "드레스")
ODD = '<b>*|[x](javascript:alert(1))_`&amp;"'  # a name that means something in Markdown and in HTML
VOID = {"meta", "img", "br", "hr", "link"}


def make_facts(names: tuple[str, ...] = CLASSES, **changes: Any) -> Facts:
    epoch = {"epoch": 1.0, "loss": 0.5, "accuracy": 0.81, "validation_loss": 0.4567, "validation_accuracy": 0.8432}
    recalls = (0.95, 0.9, 0.61)
    return replace(
        Facts(
            name="garments",
            version="7",
            model_uri="models:/garments/7",
            outcome="champion",
            reason="the first of its name",
            dataset=Dataset("garments", 28, 30, names, KOREAN, flip=True),
            entry=load_catalog(REPOSITORY / "data/catalog")["fashion-mnist"],
            sources={"official": 900, "batch-of-march": 33},
            validation={
                "expectations": [
                    {"name": "schema", "meaning": "columns", "passed": True, "count": 0},
                    {"name": "mirrored", "meaning": "mirror images", "passed": False, "count": 41},
                ]
            },
            split={
                "seed": 20,
                "validation_fraction": 0.1,
                "splits": {
                    "train": {"images": 840, "classes": dict.fromkeys(names, 280)},
                    "validation": {"images": 93, "classes": dict(zip(names, (30, 31, 32), strict=True))},
                    "test": {"images": 300, "classes": dict.fromkeys(names, 100)},
                },
            },
            settings={
                "preset": "mlp",
                "seed": 5,
                "loss": "sparse_categorical_crossentropy",
                "learning_rate": 0.0061,
                "classes": list(names),
                "best_epoch": 1,
                "parameters": 101_770,
                "multiply_adds": 101_632,
            },
            history=[epoch],
            metrics={
                "images": 300,
                "accuracy": 0.82,
                "accuracy_low": 0.7727,
                "accuracy_high": 0.8594,
                "ece": 0.0123,
                "macro_f1": 0.8125,
                "saliency": {"images": 32, "marked": 0.15, "random": 0.04, "gain": 0.11},
                "loss": 0.4321,
                "min_class_recall": 0.61,
            },
            gate={"checks": [{"name": "min_accuracy", "value": 0.82, "threshold": 0.75, "passed": True}]},
            classes=[
                {
                    "class": name,
                    "class_ko": korean,
                    "precision": "0.8",
                    "recall": f"{recall}",
                    "f1": "0.7",
                    "support": "100",
                }
                for name, korean, recall in zip(names, KOREAN, recalls, strict=True)
            ],
            confusions={
                (names[0], names[0]): 95,
                (names[0], names[2]): 5,
                (names[1], names[1]): 90,
                (names[1], names[0]): 10,
                (names[2], names[2]): 61,
                (names[2], names[1]): 39,
            },
            reliability=[
                {"low": "0.4", "confidence": "0.5", "accuracy": "0.5", "images": "100"},
                {"low": "0.9", "confidence": "1.0", "accuracy": "0.98", "images": "200"},
            ],
            model_bytes=387_571,
            contract=replace(CONTRACT, litert_sha256="5d" * 32),
            run_id="run-1a2b",
            experiment="3",
            recorded="2026-11-24 06:14 UTC",
            tags={
                "model.sha256": "4ceaaa25",
                "data.train": "md5-train",
                "data.validation": "md5-validation",
                "data.test": "md5-test",
                "mlflow.source.git.commit": "60c4b1c662",
                "git.dirty": "false",
                "environment.lock": "e85462e0",
                "version.keras": "3.15.1",
                "host.cpu": "Some Processor",
                "host.name": "the-name-of-the-machine",
            },
            figures={path: path.encode() for path in FIGURES},
        ),
        **changes,
    )


class Page(HTMLParser):
    """What a page refers to, what it shows, and whether its elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[tuple[str, str]] = []
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.shown = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.references += [(tag, value or "") for name, value in attributes if name in ("src", "href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.shown += data


@pytest.mark.parametrize(
    "fact",
    [
        *("garments version 7", "the first of its name", "82.00%", "77.27% to 85.94%", "0.0123", "0.8125", "0.4321"),
        *("Bag", "T-shirt/top", "가방", "티셔츠/탑", "드레스", "61.0%", "51.2% to 70.0%"),  # Wilson's, of 61 in 100
        *("evaluate.min_accuracy", "at least 0.75", "Fashion-MNIST", "MIT", "batch-of-march", "(33)"),
        *("md5-train", "md5-validation", "md5-test", "30 to 32", "1 of 2 expectations", "seed 20", "10.0%"),
        *("mlp", "101,770", "84.32%", "0.4567", "learning_rate: 0.0061", "Seed 5"),
        *("39 of 100 are predicted as T-shirt/top", "200 predictions with a confidence above 90%, 4 are wrong"),
        *("confidence 83.3%, accuracy 82.0%", "arXiv:1912.05283", "mirror images: 41 images", "28 x 30"),
        *("4ceaaa25", "run-1a2b", "2026-11-24 06:14 UTC", "60c4b1c662", "e85462e0", "keras 3.15.1", "Some Processor"),
        *("models:/garments/7", "uint8 [n, 28, 30]", "float32 [n, 3]"),
    ],
)
def test_every_fact_is_in_both_forms(fact: str) -> None:
    facts = make_facts()
    assert fact in write_markdown(facts)
    assert fact in Page(render_html(facts)).shown


def test_the_card_says_which_file_was_judged_and_how_much_the_other_differs() -> None:
    card = write_markdown(make_facts())
    assert "What is judged is what is served" in card
    assert "on 100 validation images, probabilities differ by at most 2e-07" in card
    assert "5d" * 32 in card
    without = write_markdown(make_facts(contract=None))
    assert "served" not in without
    assert "model.tflite" not in without


def test_the_card_describes_the_int8_file_if_there_is_one() -> None:
    facts = make_facts()
    assert "model.int8.tflite" not in write_markdown(facts)
    check = Int8Check(sha256="8e" * 32, images=100, accuracy=0.81, float_accuracy=0.82, other_top_class=3)
    measured = {"accuracy": 0.815, "difference": -0.005, "difference_low": -0.01, "difference_high": 0.002}
    measured |= {"other_top_class": 0.02, "bytes": 1_000, "float_bytes": 3_900}
    contract = replace(CONTRACT, int8=check)
    card = write_markdown(replace(facts, contract=contract, metrics={**facts.metrics, "int8": measured}))
    assert "8e" * 32 in card
    assert "On 100 validation images, its accuracy is 81.00%, that of `model.tflite` 82.00%" in card
    assert "accuracy 81.50%, -0.50 points (95% interval -1.00 to +0.20)" in card
    assert "1,000 bytes instead of 3,900" in card


def test_the_card_counts_corrections_by_class_and_person() -> None:
    facts = make_facts()
    assert "corrected labels" not in write_markdown(facts)
    counts = [Applied("train", "Dress", "Bag", "reader-1", 3), Applied("test", "Dress", "", "reader-2", 1)]
    card = write_markdown(replace(facts, validation=facts.validation | {"corrections": list(map(asdict, counts))}))
    assert "| corrected labels | 3 images relabelled, 1 removed, by reader-1 (3), reader-2 (1) |" in card
    assert "| Dress to Bag | 3 |" in card
    assert "| Dress removed (test) | 1 |" in card


def test_equal_facts_make_equal_bytes() -> None:
    assert write_markdown(make_facts()) == write_markdown(make_facts())
    assert render_html(make_facts()) == render_html(make_facts())


def test_the_machine_is_not_named() -> None:
    assert "the-name-of-the-machine" not in render_html(make_facts())


def test_the_page_needs_no_other_file() -> None:
    text = render_html(make_facts())
    page = Page(text)
    links = {value for tag, value in page.references if tag == "a"}
    assert links == {"https://github.com/zalandoresearch/fashion-mnist"}
    others = [value for tag, value in page.references if tag != "a"]
    assert len(others) == len(FIGURES)
    assert all(value.startswith("data:image/png;base64,") for value in others)
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert not re.search(r"url\(|@import|@font-face", text)
    assert page.open == []


def test_the_markdown_links_the_figures_where_the_run_keeps_them() -> None:
    assert re.findall(r"!\[[^\]]+\]\(\.\./([^)]+)\)", write_markdown(make_facts())) == [
        "evaluation/figures/confusion.png",
        "evaluation/figures/reliability.png",
        "evaluation/figures/gallery.png",
        "evaluation/figures/saliency.png",
        "training/curves.png",
    ]


def test_an_evaluation_by_a_release_without_saliency_has_a_card() -> None:
    facts = make_facts()
    metrics = {key: value for key, value in facts.metrics.items() if key != "saliency"}
    older = replace(facts, metrics=metrics, figures={path: path.encode() for path in FIGURES if "saliency" not in path})
    assert "by 0.150" in render_html(facts)
    assert "occlusion" not in render_html(older)


def test_a_class_may_have_any_name() -> None:
    names = (ODD, "T-shirt/top", "Dress")
    page = Page(render_html(make_facts(names)))
    assert page.shown.count(ODD) == page.shown.count("Bag") + Page(render_html(make_facts())).shown.count("Bag")
    assert "b" not in page.tags
    assert all("javascript" not in value for _, value in page.references)
    assert html_escape(ODD) in render_html(make_facts(names))


def test_a_reason_may_hold_any_text() -> None:
    facts = make_facts(reason=f"{ODD}\n\n# no heading")
    page = Page(render_html(facts))
    assert f"{ODD} # no heading" in page.shown
    assert "b" not in page.tags


def test_a_dirty_tree_and_a_rebuilt_record_are_told() -> None:
    tags = make_facts().tags
    dirty = write_markdown(make_facts(tags={**tags, "git.dirty": "true", "git.left_out": "big.bin"}))
    assert "**dirty**" in dirty
    assert "left out: big.bin" in dirty
    unknown = {key: value for key, value in tags.items() if not key.startswith(("mlflow.source", "git"))}
    assert "the project was not in git" in write_markdown(make_facts(tags=unknown))
    rebuilt = write_markdown(make_facts(tags={**tags, "restored": "true"}))
    assert "rebuilt from the stage outputs" in rebuilt
    assert "2026-11-24 06:14 UTC" not in rebuilt


def test_data_of_ones_own_have_no_licence_that_we_know() -> None:
    card = write_markdown(make_facts(entry=None))
    assert "| licence | not recorded |" in card
    assert "1912.05283" not in card


def test_a_question_of_yes_or_no_answers_one_number() -> None:
    facts = make_facts()
    settings = {**facts.settings, "loss": "binary_crossentropy"}
    names = ("other", "Bag or Dress")
    classes = [row | {"class": name} for row, name in zip(facts.classes, names, strict=False)]
    metrics = {**facts.metrics, "roc_auc": 0.9871}
    card = write_markdown(replace(facts, settings=settings, classes=classes, metrics=metrics, confusions={}))
    assert "the probability that an image of garments shows Bag or Dress" in card
    assert "`float32 [n, 1]`, the probability of Bag or Dress" in card
    assert "0.9871" in card
    assert "No class for other images" not in card


def test_a_loss_that_is_no_number_is_told() -> None:
    facts = make_facts()
    assert "cross-entropy not a number" in write_markdown(replace(facts, metrics={**facts.metrics, "loss": None}))


def test_a_table_has_its_numbers_to_the_right() -> None:
    assert table(("a", "b"), [("1", "2")], numbers=1) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"


def test_an_escaped_text_is_one_line() -> None:
    assert escape("a\n\n# b|c") == r"a \# b\|c"


def test_a_dataset_in_colour_without_korean_names_has_a_card() -> None:
    facts = make_facts()
    rows = [{key: value for key, value in row.items() if key != "class_ko"} for row in facts.classes]
    dataset = replace(facts.dataset, channels=3, classes_ko=())
    card = write_markdown(replace(facts, dataset=dataset, classes=rows))
    assert "28 x 30 colour pixels" in card
    assert "`uint8 [n, 28, 30, 3]`" in card
    assert "클래스" not in card


def test_of_many_classes_the_weakest_are_shown() -> None:
    facts = make_facts()
    names = tuple(f"class {label}" for label in range(300))
    rows = [
        {"class": name, "precision": "1", "recall": str(label / 300), "f1": "1", "support": "10"}
        for label, name in enumerate(names)
    ]
    dataset = replace(facts.dataset, classes=names, classes_ko=())
    card = write_markdown(replace(facts, dataset=dataset, classes=rows, confusions={}))
    assert "into 300 classes: class 0, class 1," in card
    assert "class 19 and 280 more." in card
    assert "The 20 of 300 classes with the lowest recall:" in card
    assert "| 19 | class 19 |" in card
    assert "| 20 | class 20 |" not in card
