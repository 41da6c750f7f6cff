"""The main process of a server, and its command: what they refuse before anything starts."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli.__main__ import app
from pipeline.errors import FlowError
from pipeline.serving import supervisor
from pipeline.serving.errors import ServeError
from pipeline.serving.keys import KEY_FILE, KEY_VARIABLE, load_or_create_key
from pipeline.serving.settings import VARIABLE, dump_settings, load_settings
from pipeline.serving.supervisor import Child
from tests.conftest import REPOSITORY
from tests.serving.running import KEY, make_settings


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as used, pytest.raises(ServeError, match="choose another with --port"):
        supervisor.listen("127.0.0.1", used.getsockname()[1])


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ServeError, match=r"cannot listen on 192\.0\.2\.1 port 0"):
        supervisor.listen("192.0.2.1", 0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--version", "champion"], ServeError),
        (["--version", "-1"], ServeError),
        (["--allowed-hosts", "gpu-box:80"], FlowError),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: list[str], expected: type[Exception]) -> None:
    result = CliRunner().invoke(app, ["serve", *options])
    assert isinstance(result.exception, expected)


def test_a_process_that_ends_is_restarted_and_one_that_never_stays_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "PAUSE_SECONDS", 0)
    monkeypatch.chdir(REPOSITORY)
    child = Child("answering process 0", "tests.no_such_module", {})
    ended = []
    while child.quick_ends < supervisor.MOST_QUICK_ENDS:
        supervisor._require_start([child])
        if number := child.supervise():
            ended.append(number)
    assert len(set(ended)) == supervisor.MOST_QUICK_ENDS
    with pytest.raises(ServeError, match="ended 5 times right after its start"):
        supervisor._require_start([child])


def test_the_settings_reach_the_processes_without_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_settings(tmp_path)
    assert KEY not in dump_settings(settings)
    monkeypatch.setenv(VARIABLE, dump_settings(settings))
    assert load_settings() == make_settings(tmp_path, key=None)


def test_the_key_is_made_once_even_by_several_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    code = "import sys; from pathlib import Path; from pipeline.serving.keys import *"
    code += "; print(load_or_create_key(Path(sys.argv[1])))"
    made = [subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) for _ in range(4)]
    keys = {process.communicate()[0].decode().strip() for process in made}
    assert keys == {load_or_create_key(tmp_path)}
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv(KEY_VARIABLE, "short")
    with pytest.raises(ServeError, match="too short"):
        load_or_create_key(tmp_path)
    monkeypatch.setenv(KEY_VARIABLE, "a-key-from-the-environment")
    assert load_or_create_key(tmp_path) == "a-key-from-the-environment"
