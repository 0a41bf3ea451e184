"""resolv.conf and hosts, as the C library reads them, and the names that they make of one."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.protocols.resolver_files import (
    MAX_ADDRESSES,
    MAX_SEARCH,
    ResolverSettings,
    address_of,
    candidates,
    parse_hosts,
    parse_resolv_conf,
)

KUBERNETES = """\
search shop.svc.cluster.local svc.cluster.local cluster.local
nameserver 10.96.0.10
options ndots:5 timeout:2
"""


def test_that_of_a_pod():
    found = parse_resolv_conf(KUBERNETES)
    assert [*map(str, found.servers)] == ["10.96.0.10"]
    assert found.search == ("shop.svc.cluster.local", "svc.cluster.local", "cluster.local")
    assert (found.ndots, found.timeout, found.attempts, found.over_tcp) == (5, 2, 2, False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ResolverSettings()),
        ("nameserver\nnameserver x\n# nameserver 10.0.0.1\n; nameserver 10.0.0.1\nsearch\n", ResolverSettings()),
        ("options ndots:99 timeout:99 attempts:99", ResolverSettings(ndots=15, timeout=10, attempts=5)),
        ("options use-vc", ResolverSettings(over_tcp=True)),
        ("options ndots:0 timeout:0 attempts:0", ResolverSettings(ndots=0, timeout=1, attempts=1)),
        ("options ndots:-1 timeout:1_0 attempts:" + "9" * 5000, ResolverSettings(attempts=5)),
        ("domain a.test\nsearch b.test. c.test", ResolverSettings(search=("b.test", "c.test"))),
    ],
)  # fmt: skip
def test_what_is_read(text, expected):
    assert parse_resolv_conf(text) == expected


def test_bounds():
    text = "".join(f"nameserver 10.0.0.{number}\n" for number in range(1, 99)) + "search " + "a.test " * 999
    found = parse_resolv_conf(text)
    assert len(found.servers) == 3
    assert len(found.search) == MAX_SEARCH


def test_hosts():
    found = parse_hosts("127.0.0.1 localhost  Local # loop\n::1 localhost\nx y\n10.0.0.7\tdb db.shop\n")
    assert found["localhost"] == (ip_address("127.0.0.1"), ip_address("::1"))
    assert found["local"] == (ip_address("127.0.0.1"),)
    assert found["db.shop"] == (ip_address("10.0.0.7"),)
    assert set(found) == {"localhost", "local", "db", "db.shop"}
    many = parse_hosts("".join(f"10.0.0.{number} a\n" for number in range(200)))
    assert len(many["a"]) == MAX_ADDRESSES


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("db", ("db.a.test", "db.b.test", "db")),
        ("db.shop", ("db.shop.a.test", "db.shop.b.test", "db.shop")),
        ("x.db.shop", ("x.db.shop", "x.db.shop.a.test", "x.db.shop.b.test")),
        ("db.", ("db",)),
    ],
)
def test_candidates(name, expected):
    assert candidates(name, ResolverSettings(search=("a.test", "b.test"), ndots=2)) == expected


@pytest.mark.parametrize("text", ["127.1", "0x7f000001", "2130706433", "010.0.0.1", "db", "", "10.0.0.1 ", "1.2.3.4.5"])
def test_what_is_no_address(text):
    assert address_of(text) is None


@given(st.text(max_size=300))
def test_nothing_breaks_it(text):
    parse_resolv_conf(text)
    parse_hosts(text)
    candidates(text, parse_resolv_conf(text))
