"""Measure the training side by side, and write `training.md` and `training.png` here.

    python benchmarks/training.py                                    # everything: hours, for `cnn-large`
    python benchmarks/training.py --seeds 1 --presets mlp            # less
    python benchmarks/training.py --parts presets switches scale     # some parts

Every measurement is a process of its own. What it found is kept in `.pipeline/bench/` under a name that says what was
measured, with which code: a benchmark that was killed goes on, and one that is complete only writes the page again.
Everything is chosen on validation images; the test images are read for the first table alone. Linux only.
"""

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import entry
import yaml
from end_to_end import Claim, Clone, describe_machine, markdown_table, progress, run, temporary_directory
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.data import table, tiny
from pipeline.files import file_digest, write_json
from pipeline.models.checkpoints import derive_key
from pipeline.models.cpu_features import read_processor
from pipeline.params import Params, parse_params

REPOSITORY = Path(__file__).resolve().parent.parent
STORE = REPOSITORY / ".pipeline" / "bench"
PRESETS = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))["presets"]
LARGE = "cnn-large"
SWITCHED = {
    "mlp": PRESETS["mlp"]["epochs"],
    "cnn": 2,
}  # presets whose switches are turned in turn, and for how many epochs
SCALE, SCALE_MEMORY_MB = 20, 128
BARE, IMPORTS = "`model.fit`, defaults", "import tensorflow, mlflow"
REACH = {"mlp": 0.876, "cnn": 0.935, "cnn-large": 0.948}  # test accuracy
ADAMW_RATES = (0.002, 0.006)
TURNS = {"mlp": 5, "cnn": 1}  # with and without determinism
COST = {"cnn": 6, "cnn-large": 60}  # CPU time, against that of `model.fit` with its defaults
RULES = """\
To enter a Keras model of your own: `python benchmarks/entry.py network.py --judge`, then this benchmark. The rules:

- **Data.** Fashion-MNIST alone, and no weights from elsewhere. Training uses the 54,000 images of the train split.
- **Choice.** Every setting, and the epoch to keep, is chosen by the 6,000 images of the validation split.
- **Judgement.** The test images judge the model as it is saved, once for each entry.
- **Seeds.** Three, fixed before the judgement. The row has their mean, their sample standard deviation, and each.
- **Time.** Of the training alone, with tracing, compilation, validation and checkpoints, and without imports, reading
  the images and building the model. CPU seconds are those of all threads. The unit is `model.fit` with Keras's
  defaults (`bare_script.py`), which trains on all 60,000 images.
- **Machine.** Two cores and no GPU, named above. All rows are of one machine."""


@dataclass(frozen=True)
class Trial:
    """One measurement: what the function of TRIALS called `kind` does, with changes to `train` in `params.yaml`."""

    kind: str
    changes: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Bench:
    """Where the images are, and what has been found on them."""

    dataset: str
    seeds: int
    large_seeds: int
    presets: list[str]
    epochs: int | None  # instead of each preset's own, for a quick trial
    claims: list[Claim] = field(default_factory=list)
    sections: list[str] = field(default_factory=list)
    points: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # seconds and test accuracy

    @property
    def workspace(self) -> Path:
        return STORE / self.dataset

    def measure(self, kind: str, preset: str = "mlp", seed: int = 1, **details: Any) -> dict[str, Any]:
        """The figures of a trial, from an earlier benchmark if that finished it with the same code."""
        changes = {"preset": preset, "seed": seed} | ({"epochs": self.epochs} if self.epochs else {})
        trial = Trial(kind, changes | details.pop("changes", {}), details)
        code = sorted(file for pattern in CODE[kind] for file in REPOSITORY.glob(pattern))
        params = asdict(_params(trial).train) if kind != "bare" else {}
        key = derive_key({"dataset": self.dataset, "trial": asdict(trial), "params": params}, code)
        file = STORE / "results" / f"{kind}-{preset}-{seed}-{key}.json"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, __file__, "trial", json.dumps(asdict(trial)), str(file)]
            progress(f"{kind} {trial.changes | trial.options}")
            run(*command, cwd=self.workspace, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
        return dict(json.loads(file.read_text()))

    def at_most(self, what: str, measured: float, reach: float, unit: str = " x") -> None:
        self.claims.append(Claim(what, f"{measured:.2f}{unit}", f"at most {reach:.3g}{unit}", measured <= reach))

    def at_least(self, what: str, measured: float, reach: float) -> None:
        self.claims.append(Claim(what, f"{measured:.4f}", f"at least {reach:.4f}", measured >= reach))

    def table(self, title: str, note: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        self.sections.append(f"## {title}\n\n{note}\n\n{markdown_table(columns, rows)}")


def measure_presets(bench: Bench) -> None:
    """The bare script and each preset, over the seeds: seconds, CPU seconds, test accuracy."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in (BARE, *bench.presets)}
    for seed in range(1, bench.seeds + 1):  # in turn, so that a busy machine slows all
        results[BARE].append(bench.measure("bare", seed=seed))
        for preset in (name for name in bench.presets if name != LARGE or seed <= bench.large_seeds):
            results[preset].append(bench.measure("train", preset, seed, judge=True))
    rows = []
    for name, trials in results.items():
        figures = {key: [trial[key] for trial in trials] for key in ("seconds", "cpu_seconds", "test_accuracy")}
        accuracy = figures["test_accuracy"]
        deviation = f"{statistics.stdev(accuracy):.4f}" if len(accuracy) > 1 else ""
        times = [f"{statistics.mean(figures[key]):.1f}" for key in ("seconds", "cpu_seconds")]
        each = ", ".join(f"{value:.4f}" for value in accuracy)
        ratio = f"{_ratio(trials, results[BARE], 'cpu_seconds'):.2f} x"
        rows.append((name, *times, ratio, f"{statistics.mean(accuracy):.4f}", deviation, each))
        bench.points[name] = list(zip(figures["seconds"], accuracy, strict=True))
        if name in REACH:
            bench.at_least(f"`{name}`: test accuracy", statistics.mean(accuracy), REACH[name])
            ratios = {key: _ratio(trials, results[BARE], key) for key in ("seconds", "cpu_seconds")}
            if name == "mlp":
                bench.at_least(
                    "`mlp`: test accuracy within half of `model.fit`'s time", statistics.mean(accuracy), 0.885
                )
                bench.at_most("`mlp`: training time against `model.fit`'s defaults", ratios["seconds"], 1 / 6)
                fit = statistics.mean(trial["test_accuracy"] for trial in results[BARE])
                bench.at_least("`mlp`: test accuracy against `model.fit`'s", statistics.mean(accuracy), fit)
            if name in COST:
                bench.at_most(f"`{name}`: CPU time against `model.fit`'s", ratios["cpu_seconds"], COST[name])
    rows += [entry.describe(**json.loads(file.read_text())) for file in sorted(entry.ENTRIES.glob("*.json"))]
    note = f"{RULES}\n\nSeeds of `{LARGE}`: {min(bench.large_seeds, bench.seeds)}."
    bench.table("Accuracy per minute on two cores", note, [name.format("test") for name in entry.COLUMNS], rows)


def measure_switches(bench: Bench) -> None:
    """Each switch of a preset turned to its other side, one at a time; accuracy on the validation images."""
    for preset in (name for name in SWITCHED if name in bench.presets):
        epochs = {"epochs": SWITCHED[preset]}
        base = bench.measure("train", preset, changes=epochs)
        computed, compiled = base["computed_in"], base["xla"]
        other = {"float32": "bfloat16", "bfloat16": "float32"}[computed]
        variants: dict[str, dict[str, Any]] = {
            "one step a call, not a graph of many": {"steps_a_call": 1},
            "without determinism": {"deterministic": False},
        }
        if preset == "mlp":
            variants["without XLA" if compiled else "with XLA"] = {
                "changes": {"xla": "never" if compiled else "always"}
            }
        if preset == "mlp" or any(feature.endswith("bf16") for feature in read_processor().features):  # else emulated
            variants[f"{other}, not {computed}"] = {"changes": {"precision": other}}
        if PRESETS[preset]["optimizer"] == "muon":
            for rate in ADAMW_RATES:
                variants[f"AdamW at {rate}, not Muon"] = {"changes": {"optimizer": "adamw", "learning_rate": rate}}
        for details in variants.values():
            details["changes"] = epochs | details.get("changes", {})
        rows = [("as it is", *_figures(base, base))]
        for name, details in variants.items():
            rows.append((name, *_figures(bench.measure("train", preset, **details), base)))
        free, turns = variants["without determinism"], []
        for turn in range(TURNS[preset]):
            again = {"turn": turn} if turn else {}
            pair = ({"changes": epochs}, free)
            turns.append([bench.measure("train", preset, **details, **again)["cpu_seconds"] for details in pair])
        cost = statistics.median(mine / other for mine, other in turns)
        bench.at_most(f"`{preset}`: CPU time of determinism", cost, 1.1)
        note = f"`{preset}` with seed 1 for {SWITCHED[preset]} epochs, one thing changed at a time."
        columns = ("what", "seconds", "CPU seconds", "CPU time, ratio", "validation accuracy")
        bench.table(f"Switches of `{preset}`", note, columns, rows)


def measure_resume(bench: Bench) -> None:
    """The train stage killed after half of its epochs and run again, against one that was left alone."""
    rows = []
    for preset in (name for name in SWITCHED if name in bench.presets):
        found = bench.measure("resume", preset, changes={"epochs": SWITCHED[preset]})
        for unit in ("seconds", "cpu_seconds"):
            whole, start_up, resumed = (found[f"{what}_{unit}"] for what in ("whole", "start_up", "resumed"))
            reach = 1.05 * whole + start_up
            rows.append(
                (preset, unit.replace("_", " "), *(f"{value:.1f}" for value in (whole, start_up, resumed, reach)))
            )
            if unit == "cpu_seconds":
                bench.at_most(f"`{preset}`: CPU time of killed and resumed, against the reach", resumed / reach, 1.0)
        bench.claims.append(
            Claim(f"`{preset}`: bytes of the resumed training", str(found["same"]), "True", found["same"])
        )
    columns = ("preset", "unit", "uninterrupted", "of which start-up", "killed and resumed", "reach")
    note = (
        "Whole processes. The start-up is all but the epochs, and the tracing of the graphs in the first; the reach is "
        "1.05 times the uninterrupted and a start-up."
    )
    bench.table("Resume after a kill", note, columns, rows)


def measure_scale(bench: Bench) -> None:
    """Many times the images, streamed through a small buffer, against the same network on one time, in memory."""
    limit = {"memory_limit_mb": SCALE_MEMORY_MB}
    one, many = (
        bench.measure("train", "mlp", workspace=generate(scale), changes=limit | {"epochs": epochs})
        for scale, epochs in ((1, 12), (SCALE, 3))
    )
    bench.at_most(f"{SCALE} x the images: time an image", one["images_per_second"] / many["images_per_second"], 1.15)
    beyond = (many["peak_mb"] - SCALE_MEMORY_MB) / one["peak_mb"]
    bench.at_most(f"{SCALE} x the images: peak memory beyond the buffer", beyond, 1.2)
    rows = [
        (f"{scale} x", f"{trial['images']:,}", f"{trial['images_per_second']:,.0f}", f"{trial['peak_mb']:.0f}")
        for scale, trial in ((1, one), (SCALE, many))
    ]
    note = f"`mlp`, generated images, `train.memory_limit_mb: {SCALE_MEMORY_MB}`: the second is streamed."
    bench.table("Scale", note, ("images", "number", "images a second, median of the later epochs", "peak, MB"), rows)


def measure_overhead(bench: Bench) -> None:
    """The train stage beyond its epochs, against what no training with these tools can do without."""
    found = bench.measure("overhead", "mlp")
    stage, imports = found["stage"], found["imports"]
    bench.at_most(f"train stage beyond its epochs, against `{IMPORTS}`", stage[0] / imports[0], 1.3)
    rows = [
        ("train stage beyond its epochs", *(f"{value:.1f}" for value in stage)),
        (f"`{IMPORTS}`", *(f"{value:.1f}" for value in imports)),
    ]
    note = "Medians of five, in turn. CPU seconds that MLflow's thread spends beside the epochs count as theirs."
    bench.table("The train stage around its epochs", note, ("what", "seconds", "CPU seconds"), rows)


def _ratio(trials: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.mean(trial[key] for trial in trials) / statistics.mean(trial[key] for trial in others)


def _figures(trial: dict[str, Any], base: dict[str, Any]) -> tuple[str, ...]:
    ratio = trial["cpu_seconds"] / base["cpu_seconds"]
    times = f"{trial['seconds']:.1f}", f"{trial['cpu_seconds']:.1f}", f"{ratio:.2f}"
    return *times, f"{trial['validation_accuracy']:.4f}"


# Trials: each in a process of its own, whose current directory is a workspace with images.


def trial_bare(trial: Trial) -> dict[str, Any]:
    script, seed = str(REPOSITORY / "benchmarks/bare_script.py"), str(trial.changes["seed"])
    output = run(sys.executable, script, "data/raw", "bare.keras", "--seed", seed, cwd=Path()).stdout
    figures = json.loads(output.splitlines()[-1])
    names = {"fit_seconds": "seconds", "fit_cpu_seconds": "cpu_seconds", "test_accuracy": "test_accuracy"}
    return {new: figures[old] for old, new in names.items()}


def trial_train(trial: Trial) -> dict[str, Any]:
    """Train as the stage does, without MLflow; then, if asked to, judge the model as it would be saved."""
    from pipeline.models import archive, backend, training
    from pipeline.models.checkpoints import Checkpoint
    from pipeline.models.inference import predict
    from pipeline.stages import train as stage

    options = trial.options
    if workspace := options.get("workspace"):
        os.chdir(STORE / workspace)
    if not options.get("deterministic", True):
        backend.tf.config.experimental.enable_op_determinism = lambda: None
    training.STEPS_A_CALL = options.get("steps_a_call", training.STEPS_A_CALL)
    prepared = stage.prepare(_params(trial))
    settings, seed = prepared.settings, trial.changes["seed"]
    parts = (prepared.network, prepared.task, prepared.training, prepared.validation, settings)
    with temporary_directory() as directory:
        started, cpu = time.perf_counter(), time.process_time()
        history = list(training.train(*parts, seed=seed, checkpoint=Checkpoint(directory / "checkpoint.npz")))
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    paces = [epoch.images_per_second for epoch in history[1:] or history]
    figures = {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "validation_accuracy": training.find_best(history).validation_accuracy,
        "images": prepared.training.shape[0],
        "images_per_second": statistics.median(paces),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
        "computed_in": prepared.local["computed_in"],
        "xla": prepared.local["xla"],
    }
    if options.get("judge"):
        images, labels = table.read_images(Path("data/splits/test.parquet"))
        answers = predict(archive.export(prepared.network, settings, prepared.task, steps=1), images)
        figures["test_accuracy"] = float((answers.argmax(axis=1) == labels).mean())
    return figures


def trial_resume(trial: Trial) -> dict[str, Any]:
    """The stage alone, and again in its place: killed after half of its epochs, then resumed."""
    with temporary_directory() as directory:
        clone = _stage_clone(directory, trial)
        alone = _run_stage(clone)
        start_up = tuple(map(sum, zip(alone.beyond, alone.tracing, strict=True)))
        expected = _digests(clone)
        for output in ("models", "reports/training"):  # as DVC does before a stage
            shutil.rmtree(clone.path / output)
        epochs = _params(trial).train.settings.epochs
        started, cpu = time.perf_counter(), _children_cpu()
        command = (sys.executable, "-m", "pipeline.stages.train")
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        killed = subprocess.Popen(command, cwd=clone.path, env=clone.environment, **pipes)
        next(line for line in killed.stdout or () if re.match(rf"epoch +{max(epochs // 2, 1)}/", line))
        killed.kill()
        killed.communicate()
        clone.run(*command)
        resumed = time.perf_counter() - started, _children_cpu() - cpu
        figures = {
            f"{what}_{unit}": value
            for what, values in {"whole": alone.whole, "start_up": start_up, "resumed": resumed}.items()
            for unit, value in zip(("seconds", "cpu_seconds"), values, strict=True)
        }
        return figures | {"same": _digests(clone) == expected}


def trial_overhead(trial: Trial) -> dict[str, Any]:
    """What the stage takes beyond its epochs, and what the imports take: seconds and CPU seconds."""
    stage, imports = [], []
    with temporary_directory() as directory:
        clone = _stage_clone(directory, trial)
        for _ in range(5):
            stage.append(_run_stage(clone).beyond)
            started, cpu = time.perf_counter(), _children_cpu()
            clone.run(sys.executable, "-c", IMPORTS)
            imports.append((time.perf_counter() - started, _children_cpu() - cpu))
    middle = {"stage": stage, "imports": imports}
    return {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in middle.items()}


# What each of them measures: its figures are kept until that changes.
CODE = {
    "bare": ["benchmarks/bare_script.py", "pins.txt"],
    "train": ["pipeline/models/*.py", "pipeline/data/table.py", "pipeline/stages/train.py", "pins.txt"],
    "resume": ["pipeline/**/*.py", "pins.txt"],
    "overhead": ["pipeline/**/*.py", "pins.txt"],
}
TRIALS = {"bare": trial_bare, "train": trial_train, "resume": trial_resume, "overhead": trial_overhead}

# The stage, telling at its end what each epoch took of its seconds and CPU seconds.
STAGE = """
import json, runpy, time
from pipeline.models import training
train, spent = training.train, []
def timed(*arguments, **options):
    epochs = train(*arguments, **options)
    while True:
        before = time.perf_counter(), time.process_time()
        epoch = next(epochs, None)
        if epoch is None:
            return
        spent.append([time.perf_counter() - before[0], time.process_time() - before[1]])
        yield epoch
training.train = timed
runpy.run_module("pipeline.stages.train", run_name="__main__")
print("epochs took", json.dumps(spent))
"""


@dataclass(frozen=True)
class StageTime:
    """What a train stage took, each as seconds and CPU seconds."""

    whole: tuple[float, float]
    beyond: tuple[float, float]  # its epochs: imports, data, saving, MLflow
    tracing: tuple[float, float]  # by which the first epoch exceeds the later ones: graphs are traced in it


def _run_stage(clone: Clone) -> StageTime:
    started, cpu = time.perf_counter(), _children_cpu()
    output = clone.run(sys.executable, "-c", STAGE).stdout
    whole = time.perf_counter() - started, _children_cpu() - cpu
    epochs = list(zip(*json.loads(output.split("epochs took ")[-1]), strict=True))
    seconds, cpu_seconds = (whole[unit] - sum(epochs[unit]) for unit in range(2))
    tracing = tuple(first - statistics.median(later or [first]) for first, *later in epochs)
    return StageTime(whole, (seconds, cpu_seconds), tracing)


def _stage_clone(directory: Path, trial: Trial) -> Clone:
    """A clone that can train: with these splits, a tracking store, and the trial's parameters."""
    clone = Clone(directory, Path().resolve().name)
    shutil.copytree("data/splits", clone.path / "data/splits")
    file = clone.path / "params.yaml"
    params = yaml.safe_load(file.read_text())
    params["train"] |= trial.changes
    file.write_text(yaml.safe_dump(params, sort_keys=False))
    clone.run(sys.executable, "-m", "pipeline.tracking.store")
    return clone


def _params(trial: Trial) -> Params:
    raw = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    return parse_params(raw | {"train": raw["train"] | trial.changes})


def _digests(clone: Clone) -> dict[str, str]:
    files = [*(clone.path / "models").iterdir(), *(clone.path / "reports/training").iterdir()]
    return {file.name: file_digest(file) for file in files}


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def prepare_images(workspace: Path, dataset: str) -> None:
    """The dataset's files and its splits, made by the stages of the last commit."""
    if (workspace / "data/splits").exists():
        return
    progress(f"preparing {dataset}")
    (workspace / "data").mkdir(parents=True, exist_ok=True)
    with temporary_directory() as directory:
        clone = Clone(directory, dataset)
        for stage in ("ingest", "validate", "split"):
            clone.run(sys.executable, "-m", f"pipeline.stages.{stage}")
        for name in ("data/raw", "data/splits"):
            shutil.rmtree(workspace / name, ignore_errors=True)
            shutil.move(clone.path / name, workspace / name)


def generate(scale: int) -> str:
    """Splits of as many times Fashion-MNIST's images, generated; returns the name of their workspace."""
    name = f"scale-{scale}"
    images, labels = tiny.generate(6_000, tiny.SEED)
    classes = tuple(f"shape {label}" for label in range(10))
    dataset = table.Dataset("scaled", *images.shape[1:], classes, classes, flip=True)
    for split, copies in {"train": 9 * scale, "validation": scale}.items():
        file = STORE / name / "data/splits" / f"{split}.parquet"
        if not file.exists():
            with table.writer(file, dataset) as rows:
                for copy in range(copies):
                    ids = table.strings([f"{copy}-{number}" for number in range(len(labels))])
                    rows.write(images, labels, ids, table.strings(["generated"] * len(labels)))
    return name


def draw(points: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Test accuracy against training seconds: a point for each seed, a line to the mean."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, pairs in points.items():
        seconds, accuracy = zip(*pairs, strict=True)
        drawn = axes.scatter(seconds, accuracy, s=18, alpha=0.6, label=name.replace("`", ""))
        mean = statistics.mean(seconds), statistics.mean(accuracy)
        axes.plot(*mean, marker="_", markersize=22, color=drawn.get_facecolor()[0], alpha=1)
    axes.set(xscale="log", xlabel="training, seconds", ylabel="test accuracy")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=120)


def write(bench: Bench, page: Path) -> None:
    """The page, and beside it the plot."""
    commit = run("git", "log", "-1", "--format=%h of %cs", cwd=REPOSITORY).stdout.strip()
    intro = (
        f"Written by `python benchmarks/training.py` for commit {commit}, on `{bench.dataset}`. Each measurement was a "
        "process of its own. CPU seconds are those of all threads: read them where the machine was busy."
    )
    claims = [(c.what, c.measured, c.promised, "yes" if c.holds else "**no**") for c in bench.claims]
    parts = ["# Training, measured", intro, describe_machine()]
    if bench.points:
        draw(bench.points, page.with_suffix(".png"))
        parts.append(f"![Test accuracy against training seconds]({page.with_suffix('.png').name})")
    parts += [markdown_table(("what", "measured", "reach", "holds"), claims), *bench.sections]
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def main() -> None:
    if sys.argv[1:2] == ["trial"]:
        trial, file = Trial(**json.loads(sys.argv[2])), Path(sys.argv[3])
        write_json(file, TRIALS[trial.kind](trial))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset", default="fashion-mnist", help="`tiny` for a quick trial, whose figures mean nothing"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--large-seeds", type=int, default=3, help=f"of {LARGE}, which takes twenty minutes each")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--epochs", type=int, help="instead of the presets', for a quick trial")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    bench = Bench(arguments.dataset, arguments.seeds, arguments.large_seeds, arguments.presets, arguments.epochs)
    prepare_images(bench.workspace, bench.dataset)
    for part in arguments.parts:
        PARTS[part](bench)
        write(bench, arguments.output)  # after each part: the page of a benchmark that is stopped tells what it found
    for claim in bench.claims:
        progress(f"{'holds ' if claim.holds else 'MISSED'} {claim.what}: {claim.measured}, {claim.promised}")
    progress(f"written to {arguments.output}")


PARTS = {
    "presets": measure_presets,
    "switches": measure_switches,
    "resume": measure_resume,
    "scale": measure_scale,
    "overhead": measure_overhead,
}

if __name__ == "__main__":
    main()
