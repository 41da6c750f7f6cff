"""No message shows a password."""

import random
from base64 import b64encode
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from pipeline.errors import PipelineError
from pipeline.redaction import without_password

SEED = 11
CASES = 300
NASTY = "/@:?#%&=+;,!$'\"\\~ é한"
ENCODERS = (str, quote, quote_plus, lambda text: quote(text, safe=""))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://team:secret@host/db", "postgresql://team:***@host/db"),
        ("cannot open https://a:b-c.d@host:5000/x now", "cannot open https://a:***@host:5000/x now"),
        ("postgresql://team:a/b@c@host/db", "postgresql://team:***@host/db"),
        ("postgresql://team:1/b@host/db", "postgresql://team:***@host/db"),
        ("postgresql://host/db?user=team&password=a@b&x=1", "postgresql://host/db?user=team&password=***&x=1"),
        ("https://token-of-mine@host/repository.git", "https://***@host/repository.git"),
        ("connection to host=a password='b c' failed", "connection to host=a password=*** failed"),
        ("http://localhost:5000", "http://localhost:5000"),
        ("http://[::1]:5000/#/models/tiny@champion", "http://[::1]:5000/#/models/tiny@champion"),
        ("http://localhost:5000 and models:/tiny@champion", "http://localhost:5000 and models:/tiny@champion"),
        ("sqlite:////a/mlflow.db", "sqlite:////a/mlflow.db"),
        ("set PREFECT_API_AUTH_STRING, then again", "set PREFECT_API_AUTH_STRING, then again"),
        ("http://box:5000 and postgresql://u:secret@host", "http://box:5000 and postgresql://u:***@host"),
        ("http://box:5000/,postgresql://u:secret@host", "http://box:5000/,postgresql://u:***@host"),
        ("file:///a,postgresql://u:secret@host", "file:///a,postgresql://u:***@host"),
        ("postgresql://team:a b@host/db", "postgresql://team:***@host/db"),
        ("\x1b[31mhttps://team:secret@host", "\x1b[31mhttps://team:***@host"),
        ("https://x-access-token:abc@github.com/a.git", "https://x-access-token:***@github.com/a.git"),
        ("https://one@a,https://b:c@d", "https://***@d"),
        ("sqlite:////a/b.db?password=x&y=1", "sqlite:////a/b.db?password=***&y=1"),
        ("password: x", "password: ***"),
        ("password = x", "password = ***"),
        ('{"user": "me", "password": "x\\"y"}', '{"user": "me", "password": ***}'),
        ('{"password":"x","user":"me"}', '{"password":***,"user":"me"}'),
        ('{"password":12}', '{"password":***'),
        ("{'password': 'x y'}", "{'password': ***}"),
        ("connection to password='b c", "connection to password=***"),
        ("Authorization: Basic YTpi", "Authorization: ***"),
        ("authorization:Bearer abc.def", "authorization:***"),
    ],
)
def test_passwords_in_addresses_are_not_shown(text: str, shown: str) -> None:
    assert without_password(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/me/mlflow.db is damaged: fetch it again from me@host",
        "file:///home/me:a/b@c is missing",
        "ssh://host/repo: git@github.com: Permission denied",
        "ssh://host:22/repo: git@github.com: Permission denied",
        "http://box:5000: no answer, ask me@host",
        "SECRETS_DIR=/home/me/project",
        "POSTGRES_PASSWORD_FILE=/run/secrets/x",
        "if token == other",
    ],
)
def test_text_without_a_password_is_unchanged(text: str) -> None:
    assert without_password(text) == text


@pytest.mark.parametrize(
    "value",
    [
        "http://127.0.0.1:4200/api",
        "http://box:5000/mlflow",
        "http://box:5000/#/models/tiny@champion",
        "postgresql://db:5432/mlflow",
        "sqlite:////home/me/a:b.db",
        "sqlite:////home/me:a@b/mlflow.db",
    ],
)
def test_an_address_without_a_user_holds_no_secret(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", value)
    text = f"cannot open {value}, or {value.partition('://')[2].partition(':')[2]} of it"
    assert without_password(text) == text


@pytest.mark.timeout(60)  # linear time takes a fraction of a second, quadratic time takes minutes
@pytest.mark.parametrize(
    "piece",
    [
        *("a", "secret", "a.-", "1", ":", "://", "http://,", "http://[ ", "http://a:b ", "x://a: ", "x://a:b@ "),
        *("token='", "token ", "token='\\' ", 'token="\\', "password:\t", "&key=", "\\"),
    ],
)
def test_the_time_is_linear(piece: str) -> None:
    for start in ("", "http://", "x://a:", "http://[", "token", "token='"):
        without_password(start + (piece * 200_000)[:200_000] + "!")


def password(draw: random.Random) -> str:
    """Letters and digits that occur in no other part of an address, with characters between that addresses dislike."""
    parts = ["QX7", "ZV9", "JW4"]
    return draw.choice(NASTY).join(parts[:2]) + draw.choice(NASTY) + draw.choice(["", draw.choice(NASTY)]) + parts[2]


def forms(draw: random.Random, secret: str) -> str:
    written = draw.choice(ENCODERS)(secret)
    return draw.choice(
        [
            f"postgresql+psycopg2://te-am:{written}@host.example:5432/db",
            f"https://te-am:{written}@host.example:5000/api",
            f"postgresql://host.example/db?user=te-am&password={quote_plus(secret)}",
            f"postgresql://host.example/db?sslmode=require&sslpassword={quote(secret, safe='')}&x=1",
            f"https://host.example/api?token={quote(secret, safe='')}",
        ]
    )


def test_a_password_from_the_environment_is_shown_in_no_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(SEED)
    for _ in range(CASES):
        secret = password(draw)
        address = forms(draw, secret)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        spelt = [encode(secret) for encode in ENCODERS]
        found = f"{spelt} and {secret} at ({address})"
        error = PipelineError(f"cannot open '{address}': no", found=found, remedy=address)
        for shown in (str(error), error.found, error.problem, without_password(address)):
            assert not [part for part in ("QX7", "ZV9", "JW4") if part in shown], (address, shown)
        assert "host.example" in error.remedy, error.remedy


def test_a_password_that_is_not_in_the_environment_is_not_shown_in_its_address() -> None:
    draw = random.Random(SEED)
    for _ in range(CASES):
        address = forms(draw, "".join(password(draw).split()))
        for text in (address, f"cannot open '{address}': no"):
            shown = without_password(text)
            assert not [part for part in ("QX7", "ZV9", "JW4") if part in shown], (address, shown)
            assert "host.example" in shown


def test_a_secret_variable_is_not_shown_and_a_word_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:long-and-secret")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "mlflow")
    assert without_password("mlflow says long-and-secret") == "mlflow says ***"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("POSTGRES_PASSWORD", "pipeline", "run `pipeline up`"),
        ("POSTGRES_PASSWORD", "directory", "two directorys"),
        ("SECRETS_DIR", "/home/nobody/project", "cannot read /home/nobody/project/data"),
        ("PREFECT_TOKEN_FILE", "/run/nothing/token-file", "cannot read /run/nothing/token-file"),
        ("TOKEN_PATH", "/run/nothing/token-file", "cannot read /run/nothing/token-file"),
        ("GOOGLE_APPLICATION_CREDENTIALS", str(Path(__file__)), f"cannot read {Path(__file__)}"),
    ],
)
def test_words_and_paths_stay_legible(monkeypatch: pytest.MonkeyPatch, name: str, value: str, text: str) -> None:
    monkeypatch.setenv(name, value)
    assert without_password(text) == text


def test_a_password_of_letters_is_masked_as_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_PASSWORD", "directory")
    assert without_password("'directory' is wrong") == "'***' is wrong"


@pytest.mark.parametrize(
    ("environment", "login"),
    [
        ({"PREFECT_API_AUTH_STRING": "admin:long-and-secret"}, "admin:long-and-secret"),
        ({"MLFLOW_TRACKING_URI": "https://team:a%2Fb-c-d@host"}, "team:a/b-c-d"),
        ({"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "long-and-secret"}, "me:long-and-secret"),
    ],
)
def test_the_header_of_a_login_is_masked(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], login: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    header = b64encode(login.encode()).decode()
    assert without_password(f"(b'x', b'Basic {header}')") == "(b'x', b'Basic ***')"


def test_each_address_of_a_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_NOTIFY_URLS", "json://a:first-one@host json://b:second-one@host")
    assert without_password("first-one, second-one") == "***, ***"


def test_a_secret_that_is_no_text_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_PASSWORD", "\udcffabc-defg")
    assert without_password("it is %FFabc-defg") == "it is ***"
