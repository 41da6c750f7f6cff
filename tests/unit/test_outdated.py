"""The report of `make outdated`: what pyproject.toml declares, why it is held back, and the table."""

from packaging.requirements import Requirement

from tests.conftest import REPOSITORY
from tools.outdated import make_table, read_declared, read_versions, remove_bound

DECLARED = read_declared((REPOSITORY / "pyproject.toml").read_text())
COMMENTS = {package.name: comment for package, comment in DECLARED.items()}
LOCKED = read_versions((REPOSITORY / "requirements-dev.lock").read_text())
PINS = read_versions((REPOSITORY / "pins.txt").read_text())


def test_every_declared_package_is_read_and_locked() -> None:
    assert {"tensorflow", "prefect", "boto3", "cleanlab", "pytest"} <= COMMENTS.keys() <= LOCKED.keys()
    assert PINS.items() <= LOCKED.items()


def test_every_bound_below_a_major_version_says_why() -> None:
    for package, comment in DECLARED.items():
        bounds = [part.version for part in package.specifier if part.operator == "<"]
        if package.name not in PINS and any("." in bound for bound in bounds):
            assert comment, f"{package}: say beside it why newer versions are held back"


def test_bounds_are_removed() -> None:
    assert (
        remove_bound(Requirement("uvloop>=0.21,<1; sys_platform != 'win32'")) == 'uvloop>=0.21; sys_platform != "win32"'
    )
    assert remove_bound(Requirement("moto[server]<6")) == "moto[server]"


def test_the_table_gives_the_reason_for_each_package() -> None:
    declared = read_declared(
        """
[project]
name = "a-project"
dependencies = [
    "held>=1,<2",  # from 2 on, it fails
    "silent<2",
    "later>=1",
    "blocked>=1",
    "pinned>=1",
    "newest>=1",
]
[project.optional-dependencies]
dev = ["a-project[one]"]
one = ["single<2"]  # for one thing
gpu = ["cuda"]
"""
    )
    names = [package.name for package in declared]
    assert "cuda" not in names
    locked, newest = dict.fromkeys(names, "1.0"), {**dict.fromkeys(names, "2.0"), "newest": "1.0"}
    together = {**newest, "blocked": "1.5"}
    assert make_table(declared, ["pinned"], locked, together, newest)[2:] == [
        "| blocked | 1.0 | 1.5 | 2.0 | another package |",
        "| held | 1.0 | 2.0 | 2.0 | `<2,>=1`: from 2 on, it fails |",
        "| later | 1.0 | 2.0 | 2.0 | nothing: `make lock` raises it |",
        "| pinned | 1.0 | 2.0 | 2.0 | pins.txt: it determines the bytes of outputs |",
        "| silent | 1.0 | 2.0 | 2.0 | `<2`: no reason is given |",
        "| single | 1.0 | 2.0 | 2.0 | `<2`: for one thing |",
    ]
    assert make_table(declared, [], newest, newest, newest) == ["Every declared package has its newest version."]
