"""Random kills, one after another, and what is found afterwards. The tests and the benchmarks share them."""

import hashlib
import json
import random
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import filelock
import psutil

from pipeline.workspace import STATE
from tests.conftest import Project
from tests.e2e.light import DATASET, model_of

RUN, RETRAIN = "run", "retrain"
MODULES = {
    "stage": "tests.e2e.light",
    "dvc": "pipeline.flows.dvc_process",
    "prefect server": "pipeline.flows.prefect_server",
}
VICTIMS = ("flow", *MODULES, "machine")  # the command itself, the process of a module, and all processes at once
CHAIN = 5  # kills before a command is left to end
LATEST = 0.8  # of the time that a run took, at which the next is killed
IDLE_SECONDS = 40  # for whatever a kill left alone to end


@dataclass
class Aftermath:
    """What so many kills left: all but `kills`, `models` and `moves` should be empty."""

    kills: Counter[str] = field(default_factory=Counter)  # by command and victim
    models: int = 0  # trained to the end
    moves: int = 0  # of aliases
    orphans: list[str] = field(default_factory=list)
    locks: list[str] = field(default_factory=list)
    checkouts: list[str] = field(default_factory=list)
    partials: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)  # runs, versions and entries of the history
    wrong: list[str] = field(default_factory=list)  # runs after kills that did not end well

    @property
    def is_clean(self) -> bool:
        return not (self.orphans or self.locks or self.checkouts or self.partials or self.lost or self.wrong)


def kill_at_random(
    project: Project, count: int, seed: int, commands: Sequence[str] = (RUN,), chain: int = CHAIN
) -> Aftermath:
    """Kill `count` times in a light project (`tests.e2e.light`), and let the same command end after `chain` kills."""
    chance, found = random.Random(seed), Aftermath()
    began = time.monotonic()
    _complete(project, RUN, 1, found)
    longest = time.monotonic() - began
    model, victims = 1, _draw(chance, count)
    while victims:
        model += 1
        command = commands[model % len(commands)]
        for victim in victims[:chain]:
            if not _kill(project, command, model, victim, chance.uniform(0, LATEST * longest), found):
                break  # it ended before: the next model's turn
            victims.remove(victim)
        _complete(project, command, model, found)
    found.models = model
    _look(project, found)
    return found


def processes_of(project: Project) -> list[psutil.Process]:
    """Every process that was started for a project, wherever it works: each inherits where Prefect's home is."""
    mark, found = project.environment["PREFECT_HOME"], []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("PREFECT_HOME") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill_everything(project: Project) -> None:
    """What a power cut does to the processes of a project: none sees another go."""
    found = processes_of(project)
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def held_locks(project: Project) -> list[str]:
    """The locks in a project's folder that somebody still holds."""
    found = []
    for path in [*project.path.rglob(".pipeline/locks/*.lock"), project.path / ".dvc/tmp/lock"]:
        if path.exists():
            try:
                filelock.FileLock(path, timeout=0).acquire().lock.release()
            except filelock.Timeout:
                found.append(str(path))
    return found


def checkouts_and_partials(project: Project) -> tuple[list[str], list[str]]:
    """The temporary checkouts, and the half-written files, in a project's folder."""
    places = [project.path / STATE / "reproductions", project.path / STATE / "retrainings"]
    checkouts = [str(path) for place in places for path in place.glob("*")]
    partials = [path for path in project.path.rglob("*.partial") if ".dvc" not in path.parts]
    return checkouts, [str(path) for path in partials]


def _draw(chance: random.Random, count: int) -> list[str]:
    victims = [name for _ in range(-(-count // len(VICTIMS))) for name in VICTIMS][:count]
    chance.shuffle(victims)
    return victims


def _start(project: Project, command: str, model: int) -> subprocess.Popen[str]:
    if command == RUN:
        project.set_params(**{"train.seed": model})
        return project.start("python", "-m", "pipeline.cli", "run", "--if-busy", "wait")
    changes = f"--set=train.seed={model}"
    return project.start("python", "-m", "pipeline.cli", "retrain", changes, "--if-busy", "wait")


def _kill(project: Project, command: str, model: int, victim: str, moment: float, found: Aftermath) -> bool:
    """Start a command and kill its victim so many seconds later, or when it is there. Whether there was one to kill."""
    running = _start(project, command, model)
    time.sleep(moment)
    is_killed = False
    while not is_killed and running.poll() is None:
        is_killed = _strike(project, running, victim)
        time.sleep(0.05)
    if is_killed:
        found.kills[f"{command}: {victim}"] += 1
    running.communicate()
    deadline = time.monotonic() + IDLE_SECONDS
    while processes_of(project) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in processes_of(project):
        with suppress(psutil.NoSuchProcess):
            found.orphans.append(f"after {command}: {victim}: {' '.join(process.cmdline())}")
            process.kill()
    return is_killed


def _strike(project: Project, running: subprocess.Popen[str], victim: str) -> bool:
    """Kill the victim, if it is there."""
    if victim == "flow":
        running.kill()
        return True
    if victim == "machine":
        kill_everything(project)
        return True
    for process in processes_of(project):
        with suppress(psutil.Error):
            if MODULES[victim] in process.cmdline():
                process.kill()
                return True
    return False


def _complete(project: Project, command: str, model: int, found: Aftermath) -> None:
    running = _start(project, command, model)
    output, _ = running.communicate()
    if running.returncode:
        found.wrong.append(f"{command} of model {model} ended with {running.returncode}:\n{output}")


def _look(project: Project, found: Aftermath) -> None:
    found.orphans += [" ".join(process.cmdline()) for process in processes_of(project)]
    found.locks = held_locks(project)
    found.checkouts, found.partials = checkouts_and_partials(project)
    found.lost = lost_of(project, range(1, found.models + 1))
    found.moves = len(moves_of(project))


def moves_of(project: Project, **environment: str) -> list[dict[str, Any]]:
    """The history of a light project's registered model."""
    told = project.run("python", "-m", "pipeline.cli", "history", "--json", **environment).stdout
    return list(json.loads(told[told.index("{") :])["moves"])


def lost_of(project: Project, models: Sequence[int], **environment: str) -> list[str]:
    """What is missing or unfinished in the records of a light project that has trained these models to the end.

    Args:
        environment: of the commands that look; `MLFLOW_TRACKING_URI` in it is where the records are.
    """
    from pipeline.tracking.logged_models import MODEL_TAG
    from pipeline.tracking.store import Store, locate_unserved, open_store

    moves = moves_of(project, **environment)
    lost = [f"move {move['number']} is {move['state']}" for move in moves if move["state"] != "done"]
    lost += [f"there is no move {place}" for place, move in enumerate(moves, 1) if move["number"] != place]
    if find_spec("pipeline.audit"):  # a project may be without this room
        verified = project.run("python", "-m", "pipeline.cli", "verify", check=False, **environment)
        lost += [verified.stdout] if verified.returncode else []
    configured = environment.get("MLFLOW_TRACKING_URI")
    client = open_store(Store(configured, None, None) if configured else locate_unserved(project.path))
    experiment = client.get_experiment_by_name(DATASET)
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id], max_results=5000)}
    versions = client.search_model_versions(f"name = '{DATASET}'", max_results=5000)
    for model in models:
        digest = hashlib.sha256(model_of(model)).hexdigest()
        of_model = [version for version in versions if version.tags.get(MODEL_TAG) == digest]
        if len(of_model) != 1:
            lost.append(f"model {model} has {len(of_model)} versions")
            continue
        run, number = runs[of_model[0].run_id], str(of_model[0].version)
        if run.info.status != "FINISHED" or "test_accuracy" not in run.data.metrics:
            lost.append(f"the run of model {model} is {run.info.status}, with {sorted(run.data.metrics)}")
        if number not in {move["target"] for move in moves}:
            lost.append(f"no alias moved to model {model}, version {number}")
    return lost + [f"run {run.info.run_name} is RUNNING" for run in runs.values() if run.info.status == "RUNNING"]
