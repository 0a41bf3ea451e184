"""Settings, prefixes and ports as bpf/egress_layout.h has them."""

from __future__ import annotations

import struct
from ipaddress import IPv4Network, ip_address, ip_network

import pytest

from sidestep.model.errors import BugError
from sidestep.steering.egress_layout import (
    EVERYWHERE,
    NOT_EXTERNAL,
    PORTS_MAX,
    PREFIXES_MAX,
    EgressConfig,
    EgressVerdict,
    pack_down,
    pack_ports,
    pack_prefixes,
    pack_settings,
)

OWN = (ip_address("10.1.2.3"), ip_address("fd00::3"))
MAPPED = bytes(10) + b"\xff\xff"


def settings(config: EgressConfig) -> bytes:
    return pack_settings(config, generation=7, network=IPv4Network("127.200.0.0/16"), entries=4096, netns=11)


def test_settings_are_packed_as_the_programs_read_them():
    packed = settings(EgressConfig(own=OWN))
    assert packed == (
        struct.pack("=II", 7, 2)
        + bytes([127, 200, 0, 0])
        + struct.pack("=I", 4095)
        + MAPPED
        + OWN[0].packed
        + OWN[1].packed
        + struct.pack("=Q", 11)
    )
    assert len(packed) == 56


@pytest.mark.parametrize(
    ("config", "flags"),
    [
        (EgressConfig(), 2),
        (EgressConfig(ports=frozenset()), 0),
        (EgressConfig(ports=frozenset({443}), fail=True), 1),
        (EgressConfig(block_quic=True), 6),
        (EgressConfig(block_quic=True, fail=True), 7),
    ],
    ids=str,
)
def test_flags(config, flags):
    assert struct.unpack_from("=I", settings(config), 4)[0] == flags


def test_prefixes_count_the_generation_and_the_mapping():
    config = EgressConfig(
        steered=(ip_network("198.51.100.0/24"), ip_network("::/0")), passed=(ip_network("fd00::/8"),), own=OWN
    )
    packed = dict(pack_prefixes(config, generation=7))
    assert packed == {
        struct.pack("=II", 32 + 96 + 24, 7) + MAPPED + bytes([198, 51, 100, 0]): b"\1\0\0\0",
        struct.pack("=II", 32, 7) + bytes(16): b"\1\0\0\0",
        struct.pack("=II", 40, 7) + b"\xfd" + bytes(15): b"\0\0\0\0",
        struct.pack("=II", 160, 7) + MAPPED + OWN[0].packed: b"\0\0\0\0",
        struct.pack("=II", 160, 7) + OWN[1].packed: b"\0\0\0\0",
    }


def test_a_pods_own_address_is_passed_even_where_the_configuration_names_it():
    config = EgressConfig(steered=(ip_network("10.1.2.3/32"),), passed=(), own=OWN[:1])
    assert dict(pack_prefixes(config, generation=1)).popitem()[1] == b"\0\0\0\0"


def test_ports():
    assert list(pack_ports(EgressConfig(ports=frozenset({443, 80})), generation=7)) == [
        struct.pack("=II", 7, 80),
        struct.pack("=II", 7, 443),
    ]
    assert list(pack_ports(EgressConfig(), generation=7)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"ports": frozenset({0})},
        {"ports": frozenset({65536})},
        {"ports": frozenset(range(1, PORTS_MAX + 2))},
        {"steered": tuple(ip_network(number) for number in range(PREFIXES_MAX)), "passed": EVERYWHERE},
        {"own": (ip_address("10.0.0.1"), ip_address("10.0.0.2"))},
        {"steered": EVERYWHERE, "passed": EVERYWHERE},
    ],
    ids=["port 0", "port 65536", "ports", "prefixes", "two of one family", "steered and passed"],
)
def test_what_the_maps_cannot_hold_is_refused(changes):
    with pytest.raises(BugError):
        EgressConfig(**changes)


def test_the_default_is_external():
    assert (EgressConfig().steered, EgressConfig().passed) == (EVERYWHERE, NOT_EXTERNAL)


def test_every_verdict_has_a_place():
    assert sorted(EgressVerdict) == list(range(11))


def test_a_destination_that_does_not_answer_and_until_when():
    key, value = pack_down(OWN[0], 443, now=5 << 30, seconds=10)
    assert key == MAPPED + OWN[0].packed + struct.pack("=I", 443)
    assert struct.unpack("=I", value)[0] * 2**30 in range((5 << 30) + 10 * 10**9, (5 << 30) + 10 * 10**9 + 2**30 + 1)
