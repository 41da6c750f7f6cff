"""No message shows a password."""

import random
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
    ],
)
def test_passwords_in_addresses_are_not_shown(text: str, shown: str) -> None:
    assert without_password(text) == shown


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
