"""`dvc.yaml` tells the truth: each stage declares the modules that its bytes depend on, and nothing else."""

import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import grimp
import pytest
import yaml

from tests.conftest import DECLARED_STAGES, REPOSITORY, create_project

# What a stage may import without declaring it: none of these can change an output's bytes. A stage's parameters are
# hashed by DVC as values, so the module that reads them needs no hash of its own.
NOT_DECLARED = {
    "pipeline.deferred_imports",
    "pipeline.errors",
    "pipeline.garbage_collection",
    "pipeline.params",
    "pipeline.partitions",
    "pipeline.redaction",
    "pipeline.registry",
    "pipeline.rooms",
    "pipeline.workspace",
    "pipeline.stages.entrypoint",
    "pipeline.tracking",
}
LOCKS = [*REPOSITORY.glob("requirements*.lock")]
DVC = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    graph = grimp.build_graph("pipeline", cache_dir=None)
    for module in list(graph.modules):
        if any(module == name or module.startswith(f"{name}.") for name in NOT_DECLARED):
            graph.remove_module(module)
    return graph


def file_of(module: str) -> str:
    path = Path(*module.split("."))
    return str(path / "__init__.py" if (REPOSITORY / path).is_dir() else path.with_suffix(".py"))


def test_the_three_places_of_a_stage_match() -> None:
    modules = {path.stem for path in (REPOSITORY / "pipeline/stages").glob("*.py")}
    assert set(DECLARED_STAGES) == modules - {"__init__", "entrypoint"}
    for stage, definition in DVC["stages"].items():
        assert definition["cmd"] == f"python -m pipeline.stages.{stage}"


@pytest.mark.parametrize("stage", DECLARED_STAGES)
def test_declared_modules_are_those_imported(stage: str, graph: grimp.ImportGraph) -> None:
    module = f"pipeline.stages.{stage}"
    imported = {file_of(name) for name in {module, *graph.find_upstream_modules(module)}}
    imported -= {name for name in imported if name.endswith("__init__.py")}  # docstrings only: see the test below
    declared = [dep for dep in DVC["stages"][stage]["deps"] if dep.startswith("pipeline/")]
    missing = {name for name in imported if not any(name == dep or name.startswith(f"{dep}/") for dep in declared)}
    idle = {dep for dep in declared if not any(name == dep or name.startswith(f"{dep}/") for name in imported)}
    assert not missing, f"{stage} imports modules that dvc.yaml does not declare"
    assert not idle, f"{stage} declares modules that it does not import"


def test_packages_hold_nothing_but_a_docstring() -> None:
    for path in (REPOSITORY / "pipeline").rglob("__init__.py"):
        assert re.fullmatch(r'"""[^"]+"""\n', path.read_text()), path


@pytest.mark.parametrize("stage", [stage for stage in DECLARED_STAGES if stage != "register"])
def test_every_stage_whose_bytes_depend_on_libraries_declares_their_versions(stage: str) -> None:
    assert "pins.txt" in DVC["stages"][stage]["deps"]


def test_pinned_versions_are_locked_and_installed() -> None:
    pins = re.findall(r"^([a-z-]+)==(\S+)$", (REPOSITORY / "pins.txt").read_text(), re.MULTILINE)
    assert len(pins) >= 8
    for lock in LOCKS:
        text = lock.read_text()
        for name, pinned in pins:
            found = re.findall(rf"^{name}==([^\s;]+)", text, re.MULTILINE)
            is_of_image = (REPOSITORY / "docker" / lock.name).with_suffix(".in").exists()  # it may lack some
            assert found == [pinned] or (is_of_image and not found), f"{name} in {lock.name}"
    for name, pinned in pins:
        assert version(name) == pinned


def test_every_version_of_the_images_and_of_the_installed_packages_is_the_same() -> None:
    versions = {lock.name: dict(re.findall(r"^(\S+)==([^\s;]+)", lock.read_text(), re.MULTILINE)) for lock in LOCKS}
    everything = versions["requirements-extras.lock"].items()
    for name in versions.keys() - {"requirements-dev.lock"}:
        assert versions[name].items() <= everything, name


def test_locks_hold_hashes_and_no_addresses() -> None:
    assert len(LOCKS) >= 3
    for lock in LOCKS:
        text = lock.read_text()
        assert "://" not in text
        assert text.count("--hash=sha256:") >= text.count("==")


def test_the_test_split_has_two_readers() -> None:
    users = [stage for stage, definition in DVC["stages"].items() if "data/splits/test.parquet" in definition["deps"]]
    assert users == ["evaluate", "register"]


def test_nothing_is_persisted_and_only_the_registration_is_outside_the_cache() -> None:
    for stage, definition in DVC["stages"].items():
        flags = [out for out in definition["outs"] if isinstance(out, dict)]
        assert flags == ([{"reports/registration.json": {"cache": False}}] if stage == "register" else [])


def test_a_clone_with_other_line_ends_has_the_committed_bytes(tmp_path: Path) -> None:
    """`core.autocrlf=true`, which git for Windows sets, would change every digest in `dvc.lock`."""
    project = create_project(tmp_path / "project", tmp_path / "home")
    clone = tmp_path / "clone"
    command = ["git", "clone", "--quiet", "-c", "core.autocrlf=true", str(project.path), str(clone)]
    subprocess.run(command, check=True)
    names = project.run("git", "ls-files", "-z").stdout.split("\0")[:-1]
    assert {"dvc.yaml", "params.yaml", "data/catalog/tiny.yaml", "pipeline/stages/ingest.py"} <= set(names)
    assert [name for name in names if (clone / name).read_bytes() != (project.path / name).read_bytes()] == []
