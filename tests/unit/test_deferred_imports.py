import subprocess
import sys

DEFER = """
import sys

from pipeline.deferred_imports import deferred

with deferred("package.large"):
    from package import large
print("executed" in sys.modules, large.answer, "executed" in sys.modules)
"""


def test_a_deferred_module_is_executed_when_it_is_used(tmp_path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").touch()
    (tmp_path / "package/large.py").write_text("import executed\n\nanswer = 42\n")
    (tmp_path / "executed.py").touch()
    run = subprocess.run([sys.executable, "-c", DEFER], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "42", "True"]
