"""The addresses of workers: several, of this machine or not, and none without consent."""

import pytest

from pipeline.errors import WorkspaceError
from pipeline.scale.addresses import parse_addresses, require_trusted_network


def test_addresses_know_whether_they_are_of_this_machine() -> None:
    addresses = parse_addresses("127.0.0.1:9001, localhost:9002,192.0.2.77:9001")
    assert list(map(str, addresses)) == ["127.0.0.1:9001", "localhost:9002", "192.0.2.77:9001"]
    assert [address.is_local for address in addresses] == [True, True, False]


@pytest.mark.parametrize(
    "text", ["127.0.0.1", "127.0.0.1:0,127.0.0.1:1", ":9001,:9002", "a:b,c:d", "127.0.0.1:99999,x:1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(WorkspaceError, match="is not the address of a worker\n  expected: HOST:PORT,HOST:PORT"):
        parse_addresses(text)


@pytest.mark.parametrize("text", ["127.0.0.1:9001", "127.0.0.1:9001,127.0.0.1:9001"])
def test_several_workers_need_several_addresses(text: str) -> None:
    with pytest.raises(WorkspaceError, match="needs several addresses"):
        parse_addresses(text)


def test_ports_without_a_password_are_opened_on_a_trusted_network_only() -> None:
    addresses = parse_addresses("127.0.0.1:9001,127.0.0.1:9002")
    with pytest.raises(WorkspaceError, match="listens on ports 9001, 9002 of all networks of this machine"):
        require_trusted_network(addresses, trusted=False)
    require_trusted_network(addresses, trusted=True)
