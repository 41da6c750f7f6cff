"""Draw the figures of `docs/how-it-works.md`: `python docs/hooks/drawings.py` writes them to docs/images/.

They are SVG files, because code hosts, editors and the site show these without a network.
"""

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

DOCS = Path(__file__).parents[1]
WIDTH, HEIGHT = 166, 68  # of a box, in pixels
GAP_X, GAP_Y = 84, 58
MARGIN = 4
COLOURS = {"stage": "#c5cae9", "data": "#f5f5f5", "record": "#ffe0b2", "end": "#c8e6c9", "person": "#e1bee7"}
STYLE = "font-family='DejaVu Sans, Verdana, sans-serif' font-size='SIZE' fill='#212121' text-anchor='middle'"


@dataclass(frozen=True)
class Box:
    """A box at a place of the grid; `|` in its text starts a new line."""

    column: float
    row: float
    kind: str
    text: str

    @property
    def centre(self) -> tuple[float, float]:
        x, y = MARGIN + self.column * (WIDTH + GAP_X), MARGIN + self.row * (HEIGHT + GAP_Y)
        return x + WIDTH / 2, y + HEIGHT / 2

    def border_towards(self, other: "Box") -> tuple[float, float]:
        """Return where the line between the centres crosses the border of this box."""
        (x, y), (other_x, other_y) = self.centre, other.centre
        dx, dy = other_x - x, other_y - y
        scale = min(WIDTH / 2 / abs(dx) if dx else 9, HEIGHT / 2 / abs(dy) if dy else 9)
        return x + dx * scale, y + dy * scale


@dataclass(frozen=True)
class Drawing:
    """A drawing. An arrow is `(from, to, label)`, with the names of two boxes."""

    title: str
    boxes: dict[str, Box]
    arrows: list[tuple[str, str, str]] = field(default_factory=list)

    def render(self) -> str:
        """Return the drawing as SVG."""
        width = max(box.centre[0] for box in self.boxes.values()) + WIDTH / 2 + MARGIN
        height = max(box.centre[1] for box in self.boxes.values()) + HEIGHT / 2 + MARGIN
        size = f"viewBox='0 0 {width:g} {height:g}' width='{width:g}' height='{height:g}'"
        parts = [
            f"<svg xmlns='http://www.w3.org/2000/svg' {size} role='img'>",
            f"<title>{escape(self.title)}</title>",
            "<defs><marker id='tip' viewBox='0 0 8 8' refX='8' refY='4' markerWidth='8' markerHeight='8' orient='auto'>"
            "<path d='M0 0L8 4L0 8z' fill='#555'/></marker></defs>",
            f"<rect width='{width:g}' height='{height:g}' fill='#fff'/>",
        ]
        parts += [self._draw_line(*arrow) for arrow in self.arrows]
        parts += [_draw_box(box) for box in self.boxes.values()]
        parts += [self._draw_label(*arrow) for arrow in self.arrows if arrow[2]]
        return "\n".join([*parts, "</svg>", ""])

    def _draw_line(self, start: str, end: str, label: str) -> str:
        (x1, y1), (x2, y2) = self._ends(start, end)
        line = f"x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}'"
        return f"<line {line} stroke='#555' stroke-width='1.5' marker-end='url(#tip)'/>"

    def _draw_label(self, start: str, end: str, label: str) -> str:
        (x1, y1), (x2, y2) = self._ends(start, end)
        return _draw_text((x1 + x2) / 2, (y1 + y2) / 2, label, size=13, ground=True)

    def _ends(self, start: str, end: str) -> tuple[tuple[float, float], tuple[float, float]]:
        first, last = self.boxes[start], self.boxes[end]
        return first.border_towards(last), last.border_towards(first)


def _draw_box(box: Box) -> str:
    x, y = box.centre
    place = f"x='{x - WIDTH / 2:g}' y='{y - HEIGHT / 2:g}' width='{WIDTH}' height='{HEIGHT}' rx='6'"
    return f"<rect {place} fill='{COLOURS[box.kind]}' stroke='#777'/>" + _draw_text(x, y, box.text, size=15)


def _draw_text(x: float, y: float, text: str, *, size: int, ground: bool = False) -> str:
    lines, step = text.split("|"), size + 3
    halo = " stroke='#fff' stroke-width='4' paint-order='stroke'" if ground else ""
    first = y - (len(lines) - 1) * step / 2 + size * 0.36
    spans = [f"<tspan x='{x:.1f}' y='{first + i * step:.1f}'>{escape(line)}</tspan>" for i, line in enumerate(lines)]
    return f"<text {STYLE.replace('SIZE', str(size))}{halo}>{''.join(spans)}</text>"


DRAWINGS = {
    "how-data": Drawing(
        "The data through the six stages",
        {
            "sources": Box(0, 0, "data", "catalogue,|batches,|corrections"),
            "ingest": Box(1, 0, "stage", "ingest"),
            "dataset": Box(2, 0, "data", "data/dataset/"),
            "validate": Box(3, 0, "stage", "validate"),
            "split": Box(3, 1, "stage", "split"),
            "splits": Box(2, 1, "data", "train.parquet|validation.parquet"),
            "train": Box(1, 1, "stage", "train"),
            "models": Box(0, 1, "data", "models/"),
            "test": Box(3, 2, "data", "test.parquet"),
            "evaluate": Box(2, 2, "stage", "evaluate"),
            "evaluation": Box(1, 2, "data", "reports/evaluation/"),
            "register": Box(0, 2, "stage", "register"),
            "registry": Box(0, 3, "record", "MLflow's registry"),
        },
        [
            ("sources", "ingest", ""),
            ("ingest", "dataset", ""),
            ("dataset", "validate", ""),
            ("dataset", "split", ""),
            ("validate", "split", "reports/|validation.json"),
            ("split", "splits", ""),
            ("split", "test", ""),
            ("splits", "train", ""),
            ("train", "models", ""),
            ("models", "evaluate", ""),
            ("test", "evaluate", ""),
            ("evaluate", "evaluation", ""),
            ("evaluation", "register", ""),
            ("models", "register", ""),
            ("register", "registry", "if the gate passed"),
        ],
    ),
    "how-mlflow": Drawing(
        "A run through MLflow",
        {
            "flow": Box(0, 0, "stage", "pipeline run"),
            "train": Box(0, 1, "stage", "stage train"),
            "evaluate": Box(0, 2, "stage", "stage evaluate"),
            "register": Box(0, 3, "stage", "stage register"),
            "parent": Box(1.25, 0, "record", "run of the flow"),
            "run": Box(1.25, 1.5, "record", "run of the training"),
            "model": Box(2.5, 1.5, "record", "logged model"),
            "version": Box(2.5, 3, "record", "registered version"),
        },
        [
            ("flow", "parent", "opens it,|adds the stages"),
            ("flow", "train", "run id in|.pipeline/flow-run"),
            ("run", "parent", "mlflow.parentRunId"),
            ("train", "run", "params, data,|epochs"),
            ("train", "evaluate", "models/"),
            ("evaluate", "register", "reports/evaluation/"),
            ("run", "model", "files of|models/"),
            ("register", "version", "version, decision, alias"),
            ("register", "run", "evaluation,|decision,|model card"),
            ("version", "model", "points to it"),
        ],
    ),
    "how-retraining": Drawing(
        "A retraining",
        {
            "start": Box(0, 0, "person", "schedule, batch,|drift, or|pipeline retrain"),
            "input": Box(1, 0, "stage", "read the input:|commit, batches"),
            "nothing": Box(2, 0, "end", "nothing new"),
            "checkout": Box(1, 1, "stage", "temporary|checkout"),
            "take": Box(2, 1, "stage", "check and take in|new batches"),
            "quarantine": Box(3, 1, "end", "quarantine"),
            "input_commit": Box(2, 2, "data", "commit 1:|new pointers"),
            "stages": Box(1, 2, "stage", "six stages and|champion rule"),
            "mlflow": Box(0, 2, "record", "MLflow: runs,|version, decision"),
            "report": Box(1, 3, "data", "report and notice"),
            "lock": Box(2, 3, "data", "commit 2:|dvc.lock"),
            "push": Box(3, 3, "end", "push data,|then the branch"),
        },
        [
            ("start", "input", "one at|a time"),
            ("input", "nothing", "done|before"),
            ("input", "checkout", "new"),
            ("checkout", "take", ""),
            ("take", "quarantine", "bad"),
            ("take", "input_commit", "good"),
            ("input_commit", "stages", ""),
            ("stages", "mlflow", ""),
            ("stages", "report", ""),
            ("report", "lock", ""),
            ("lock", "push", "with a|remote"),
        ],
    ),
    "how-promotion": Drawing(
        "A promotion",
        {
            "gate": Box(0, 0, "stage", "absolute gate|in evaluate"),
            "rejected": Box(0, 1, "end", "rejected:|no version"),
            "version": Box(1, 0, "record", "version in|the registry"),
            "compare": Box(2, 0, "stage", "compare with|the champion,|image by image"),
            "rule": Box(3, 0, "stage", "champion rule"),
            "record": Box(3, 1, "record", "decision in|run and version"),
            "waits": Box(3, 2, "end", "challenger, or|not promoted"),
            "person": Box(1, 1, "person", "pipeline promote,|pipeline rollback"),
            "move": Box(2, 1, "stage", "move the alias|champion"),
            "history": Box(2, 2, "record", "history:|one run per move"),
            "readers": Box(1, 2, "end", "predictions use|the new champion"),
        },
        [
            ("gate", "rejected", "missed"),
            ("gate", "version", "passed"),
            ("version", "compare", "same|images"),
            ("compare", "rule", "paired|test"),
            ("rule", "record", ""),
            ("record", "move", "champion"),
            ("record", "waits", "else"),
            ("person", "move", "reason"),
            ("move", "history", ""),
            ("move", "readers", ""),
        ],
    ),
}


def main() -> None:
    """Write the drawings that the page shows: without a room, it lacks that room's drawing."""
    page = (DOCS / "how-it-works.md").read_text("utf-8")
    for name, drawing in DRAWINGS.items():
        if f"images/{name}.svg" in page:
            (DOCS / f"images/{name}.svg").write_text(drawing.render(), "utf-8")


if __name__ == "__main__":
    main()
