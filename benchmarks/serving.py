"""Measure `pipeline serve` beside `mlflow models serve`, and write `serving.md` here.

    python benchmarks/serving.py                      # everything: half an hour
    python benchmarks/serving.py --parts latency start

Everything happens in a temporary clone of the last commit, on the generated dataset `tiny`: its images have 28 x 28
pixels as Fashion-MNIST's, and the networks are those of the presets. What is compared runs in turn.
"""

import argparse
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import yaml
from end_to_end import (
    REPOSITORY,
    Claim,
    Clone,
    describe_machine,
    markdown_table,
    progress,
    run,
    temporary_directory,
)

from pipeline.data import tiny
from pipeline.registry import promotion
from pipeline.tracking.store import locate, open_store

NAME = "tiny"
OURS, THEIRS = 5702, 5701  # ports that nobody else is likely to have
PATHS = {OURS: "/v1/predict", THEIRS: "/invocations"}
TITLES = {OURS: "`pipeline serve`", THEIRS: "`mlflow models serve`"}
SWITCH_CLIENTS, STALE_SECONDS = 16, 5.0
OVERLOAD, AFTER_SECONDS, RECOVERY_SECONDS = 10, 15, 5.0
PER_REQUEST = 64  # images, in the overload
MLP, OTHER_MLP, CNN = "1", "2", "3"  # versions


@dataclass(frozen=True)
class Size:
    """Size of a measurement."""

    rounds: int = 3
    switches: int = 100
    overload_seconds: int = 60


class Bench:
    """A clone with three registered versions, and the figures so far."""

    def __init__(self, directory: Path, size: Size) -> None:
        self.size = size
        self.directory, self.claims, self.details = directory, list[Claim](), list[str]()
        self.clone = Clone(directory, NAME)
        self._body(1), self._body(PER_REQUEST)
        lenient = {"min_accuracy": 0.0, "min_class_recall": 0.0, "max_loss": 100.0}
        for preset, seed in (("mlp", 1), ("mlp", 2), ("cnn", 1)):
            progress(f"training {preset} {seed}")
            file = self.clone.path / "params.yaml"
            params = yaml.safe_load(file.read_text())
            params["train"] |= {"preset": preset, "seed": seed, "epochs": 1}
            params["evaluate"] |= lenient
            file.write_text(yaml.safe_dump(params, sort_keys=False))
            self.clone.run("dvc", "repro")
        self.client = open_store(locate(self.clone.path))

    def _body(self, count: int) -> None:
        images, _ = tiny.generate(count, 7)
        (self.directory / f"{count}.json").write_text(json.dumps({"inputs": images.tolist()}))
        content = io.BytesIO()
        np.save(content, images)
        (self.directory / f"{count}.npy").write_bytes(content.getvalue())

    def promote(self, version: str) -> None:
        """Make a version the champion, if it is not."""
        if str(self.client.get_model_version_by_alias(NAME, "champion").version) != version:
            promotion.promote(self.client, NAME, version, reason="benchmark")

    def claim(self, what: str, value: str, promised: str, holds: bool) -> None:
        self.claims.append(Claim(what, value, promised, holds))
        progress(f"{'holds ' if holds else 'MISSED'} {what}: {value}, {promised}")

    @contextlib.contextmanager
    def serve(self, *options: str, health: str = "/health/ready") -> Iterator[tuple[psutil.Process, float]]:
        """Run `pipeline serve`, and yield its process and the seconds until it was ready."""
        with self._start(["pipeline", "serve", "--port", str(OURS), *options], OURS, health) as found:
            yield found

    @contextlib.contextmanager
    def serve_mlflow(self) -> Iterator[tuple[psutil.Process, float]]:
        """Run `mlflow models serve` with the champion."""
        command = ["mlflow", "models", "serve", "-m", f"models:/{NAME}@champion", "--env-manager", "local"]
        with self._start([*command, "--port", str(THEIRS)], THEIRS, "/ping") as found:
            yield found

    @contextlib.contextmanager
    def _start(self, command: list[str], port: int, health: str) -> Iterator[tuple[psutil.Process, float]]:
        log = self.directory / f"{port}.log"
        with log.open("ab") as output:
            start = time.perf_counter()
            process = subprocess.Popen(
                command, cwd=self.clone.path, env=self.clone.environment, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        try:
            while ask(port, health) != 200:
                if process.poll() is not None:
                    raise SystemExit(log.read_text())
                time.sleep(0.005)
            yield psutil.Process(process.pid), time.perf_counter() - start
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()

    def load(self, port: int, body: str = "1.json", *options: object) -> dict[str, Any]:
        """Run the client to its end."""
        return dict(json.loads(self.start_load(port, body, *options).communicate()[0]))

    def start_load(self, port: int, body: str, *options: object) -> "subprocess.Popen[str]":
        """Start the client."""
        kind = {"json": "application/json", "npy": "application/x-npy"}[body.rpartition(".")[2]]
        script = str(Path(__file__).with_name("http_load.py"))
        command = [sys.executable, script, str(port), PATHS[port], str(self.directory / body), kind]
        return subprocess.Popen([*command, *map(str, options)], stdout=subprocess.PIPE, text=True)


def measure_latency(bench: Bench) -> None:
    """One client, one picture, keep-alive; and 32 clients."""
    rows = []
    for network, version, reach in (("mlp", MLP, 2.0), ("cnn", CNN, 4.0)):
        bench.promote(version)
        with bench.serve(), bench.serve_mlflow():
            for port in (OURS, THEIRS):
                bench.load(port, "1.json", "--requests", 50)
            alone = {port: list[dict[str, Any]]() for port in PATHS}
            many = {port: list[dict[str, Any]]() for port in PATHS}
            for _ in range(bench.size.rounds):
                for port in PATHS:
                    alone[port].append(bench.load(port, "1.json", "--seconds", 5))
                    many[port].append(bench.load(port, "1.json", "--clients", 32, "--seconds", 8))
        ours, theirs = (median(found["p50"] for found in alone[port]) for port in PATHS)
        bench.claim(f"p50 of one picture, `{network}`", f"{ours:.2f} ms", f"at most {reach:g} ms", ours <= reach)
        if network == "mlp":
            text = f"{ours:.2f} of {theirs:.1f} ms: 1/{theirs / ours:.0f}"
            bench.claim("the same, against `mlflow models serve`", text, "at most 1/20", ours <= theirs / 20)
        rate, their_rate = (median(found["rate"] for found in many[port]) for port in PATHS)
        p99 = median(found["p99"] for found in many[OURS])
        if network == "cnn":
            text = f"{rate:.0f} against {their_rate:.0f} a second: {rate / their_rate:.1f} x"
            bench.claim("32 clients, `cnn`: requests a second", text, "at least 15 x", rate >= 15 * their_rate)
            bench.claim("32 clients, `cnn`: p99", f"{p99:.1f} ms", "below 50 ms", p99 < 50)
        for port in PATHS:
            for title, found in (("1 client", alone[port]), ("32 clients", many[port])):
                figures = [f"{median(one[key] for one in found):.2f}" for key in ("p50", "p99", "rate")]
                rows.append((TITLES[port], f"`{network}`", title, *figures))
    columns = ("server", "network", "load", "p50, ms", "p99, ms", "answers a second")
    note = f"One 28 x 28 picture in a request, as JSON. Medians of {bench.size.rounds} rounds, in turn."
    bench.details.append(f"## Latency and throughput\n\n{note}\n\n{markdown_table(columns, rows)}")


def measure_start(bench: Bench) -> None:
    """Seconds from the command until ready, with the files at hand; memory after some load."""
    bench.promote(CNN)
    found: dict[str, list[float]] = {"the champion": [], "a fixed version": []}
    for round_ in range(bench.size.rounds + 1):
        for title, options in (("the champion", ()), ("a fixed version", ("--version", CNN))):
            time.sleep(6)  # a champion that was confirmed in the last 5 seconds would be served at once
            with bench.serve(*options) as (process, seconds):
                if round_:
                    found[title].append(seconds)
                if round_ == bench.size.rounds and not options:
                    bench.load(OURS, "1.json", "--clients", 32, "--seconds", 10)
                    memory = {
                        child.cmdline()[-1].rpartition(".")[2]: child.memory_info().rss / 1e6
                        for child in process.children()
                    }
    for title, seconds in found.items():
        taken = median(seconds)
        bench.claim(f"start to ready, {title}", f"{taken:.2f} s", "at most 2 s", taken <= 2)
    held = memory["worker"]
    bench.claim("memory of the answering process", f"{held:.0f} MB", "at most 200 MB", held <= 200)
    bench.details.append(f"The resolver's process takes {memory['resolver']:.0f} MB.")


def measure_switches(bench: Bench) -> None:
    """Promote in turn two versions while 16 clients ask."""
    bench.promote(MLP)
    times: list[tuple[float, int]] = [(0.0, int(MLP))]
    delays = []
    with bench.serve():
        answers = bench.directory / "answers.npy"
        options = ("--clients", SWITCH_CLIENTS, "--seconds", 3600, "--answers", answers)
        load = bench.start_load(OURS, "1.json", *options)
        time.sleep(2)
        for number in range(bench.size.switches):
            version = (OTHER_MLP, MLP)[number % 2]
            bench.promote(version)
            start = time.time()
            times.append((start, int(version)))
            while read_json(OURS, "/health/ready")["version"] != version:
                time.sleep(0.02)
            delays.append(time.time() - start)
        load.send_signal(signal.SIGINT)
        load.communicate()
    ends, _, statuses, versions = np.load(answers)
    failed = int((statuses != 200).sum())
    moves = np.array([when for when, _ in times])
    champions = np.array([version for _, version in times])
    stale = 0.0
    for number, (when, _) in enumerate(times[1:], start=1):
        until = moves[number + 1] if number + 1 < len(moves) else np.inf
        old = ends[(versions == champions[number - 1]) & (ends > when) & (ends < until)]
        stale = max(stale, float(old.max() - when) if len(old) else 0.0)
    bench.claim(
        f"{bench.size.switches} switches, 16 clients: failed", f"{failed} of {len(statuses):,}", "0", failed == 0
    )
    text = f"{stale:.1f} s after the move"
    bench.claim("last answer by the former champion", text, f"at most {STALE_SECONDS:g} s", stale <= STALE_SECONDS)
    bench.details.append(
        f"## Switches\n\nFrom the move of the alias until the new version answers: median {median(delays):.1f} s, "
        f"at most {max(delays):.1f} s."
    )


def measure_overload(bench: Bench) -> None:
    """Ten times the capacity for a minute, in requests of 64 pictures, then a normal load again."""
    bench.promote(CNN)
    body = f"{PER_REQUEST}.npy"
    with bench.serve() as (process, _):
        capacity = bench.load(OURS, body, "--clients", 4, "--seconds", 10)["rate"]
        before = bench.load(OURS, "1.json", "--clients", 4, "--seconds", 5)
        (worker,) = [child for child in process.children() if "worker" in child.cmdline()[-1]]
        memory = [worker.memory_info().rss / 1e6]
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.2):
                memory.append(worker.memory_info().rss / 1e6)

        threading.Thread(target=watch).start()
        over = bench.load(OURS, body, "--rate", OVERLOAD * capacity, "--seconds", bench.size.overload_seconds)
        stopped = time.time()
        answers = bench.directory / "after.npy"
        options = ("--clients", 4, "--seconds", AFTER_SECONDS, "--answers", answers)
        after = bench.load(OURS, "1.json", *options)
        ended.set()
        is_alive = worker.is_running()
    ends, seconds, *_ = np.load(answers)
    late = [
        second + 1
        for second in range(AFTER_SECONDS)
        if len(taken := seconds[(ends >= stopped + second) & (ends < stopped + second + 1)])
        and np.percentile(taken, 99) * 1000 > 2 * max(before["p99"], 5)
    ]
    recovery = max(late, default=0)
    bench.claim("overload: the process lives", str(is_alive), "True", is_alive)
    bench.claim(
        "overload: memory of the answering process", f"{max(memory):.0f} MB", "bounded: 400 MB", max(memory) < 400
    )
    bench.claim(
        "overload: p99 back", f"within {recovery} s", f"within {RECOVERY_SECONDS:g} s", recovery <= RECOVERY_SECONDS
    )
    rows = [
        ("before", *(before[key] for key in ("p50", "p99", "rate")), before["statuses"]),
        ("overload", *(over.get(key, "") for key in ("p50", "p99", "rate")), over["statuses"]),
        ("after", *(after[key] for key in ("p50", "p99", "rate")), after["statuses"]),
    ]
    note = (
        f"The capacity is {capacity:.0f} requests of {PER_REQUEST} pictures a second; the overload asks {OVERLOAD} "
        f"times as often for {bench.size.overload_seconds} s. The client could not send {over['not_sent']:,} of them, "
        "because all its connections waited. The load before and after is of 4 clients with one picture."
    )
    columns = ("phase", "p50, ms", "p99, ms", "answers a second", "statuses")
    bench.details.append(f"## Overload\n\n{note}\n\n{markdown_table(columns, rows)}")


def ask(port: int, path: str) -> int:
    """Return the status of a path; 0 if nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def read_json(port: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return json.load(answer)


PARTS = {
    "latency": measure_latency,
    "start": measure_start,
    "switches": measure_switches,
    "overload": measure_overload,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="try the script; the figures mean nothing")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    with temporary_directory() as directory:
        bench = Bench(directory, Size(1, 5, 8) if arguments.quick else Size())
        for part in arguments.parts:
            progress(f"measuring {part}")
            PARTS[part](bench)
            write(bench, arguments.output)


def write(bench: Bench, path: Path) -> None:
    rows = [(one.what, one.measured, one.promised, "yes" if one.holds else "**no**") for one in bench.claims]
    commit = run("git", "log", "-1", "--format=%h of %cs", cwd=REPOSITORY).stdout.strip()
    intro = (
        f"Written by `python benchmarks/serving.py` for commit {commit}, in a temporary clone, on `{NAME}`. Client and "
        "server share the processors. The client is `http_load.py`."
    )
    table = markdown_table(("what", "measured", "promised", "holds"), rows)
    text = "\n\n".join(["# Serving, measured", intro, describe_machine(), table, *bench.details])
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
