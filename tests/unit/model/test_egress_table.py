"""The table of original destinations, in memory of this process."""

from __future__ import annotations

import struct
from ipaddress import IPv4Network, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.model.egress_table import ENTRY, IN_USE, EgressTable, Original, table_size
from sidestep.model.errors import BugError

NETWORK = IPv4Network("127.200.0.0/16")
ENTRIES = 512


def memory(index: int = 0, *, address: str = "::", port: int = 0, sequence: int = 0, state: int = IN_USE) -> bytearray:
    """A table with one entry."""
    table = bytearray(table_size(ENTRIES))
    ENTRY.pack_into(table, index * 48, 77, ip_address(address).packed, 5, sequence, 0, 0, port, 0, state, 2, 0)
    return table


def table(data: bytearray) -> EgressTable:
    return EgressTable(data, network=NETWORK, entries=ENTRIES)


def taken(data: bytearray, index: int) -> int:
    return int(struct.unpack_from("=I", data, index * 48 + 32)[0])


@pytest.mark.parametrize(
    ("local", "port", "address", "original"),
    [
        ("127.200.1.44", 443, "::ffff:198.51.100.7", "198.51.100.7"),
        ("::ffff:127.200.1.44", 443, "::ffff:198.51.100.7", "198.51.100.7"),
        ("::1", 300, "2001:db8::7", "2001:db8::7"),
    ],
)
def test_the_local_address_tells_the_entry_which_is_then_taken(local, port, address, original):
    data = memory(300, address=address, port=8443, sequence=9)
    untouched = bytes(data)
    assert table(data).take(ip_address(local), port) == Original(ip_address(original), 8443, 77)
    assert taken(data, 300) == 9
    assert table(data).take(ip_address(local), port) == Original(ip_address(original), 8443, 77)
    data[300 * 48 + 32 : 300 * 48 + 36] = bytes(4)
    assert data == untouched


@pytest.mark.parametrize(
    ("local", "port"),
    [
        ("127.200.1.45", 443),
        ("127.201.1.44", 443),
        ("10.0.1.44", 443),
        ("::1", 301),
        ("fd00::1", 300),
        ("127.200.0.0", 443),
        ("127.200.2.0", 443),
        ("127.200.255.255", 443),
        ("::1", 65535),
    ],
    ids=str,
)
def test_other_addresses_have_no_entry_and_nothing_is_written(local, port):
    data = memory(300, address="::ffff:198.51.100.7", port=8443, sequence=9)
    before = bytes(data)
    assert table(data).take(ip_address(local), port) is None
    assert data == before


@given(st.ip_addresses(network=NETWORK) | st.just(IPv6Address("::1")), st.integers(0, 65535))
def test_no_address_leads_out_of_the_table(local, port):
    assert table(memory()).take(local, port) is None


def test_entries_in_use_are_counted():
    data = memory(300)
    for index, state in ((1, 1), (2, 2), (3, 0), (511, 1)):
        data[index * 48 + 44] = state
    assert table(data).in_use() == 3


@pytest.mark.parametrize("entries", [0, -1, 3, 1000, 131072])
def test_a_table_has_a_power_of_two_of_entries(entries):
    with pytest.raises(BugError):
        table_size(entries)


def test_a_table_that_is_too_short_is_refused():
    with pytest.raises(BugError):
        EgressTable(bytearray(table_size(512) - 1), network=NETWORK, entries=512)
    with pytest.raises(BugError):
        EgressTable(bytearray(table_size(512)), network=IPv4Network("127.200.0.0/24"), entries=512)


def test_the_largest_table_takes_three_mebibytes():
    assert table_size(65536) == 3 << 20
