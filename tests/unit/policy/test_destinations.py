"""Which addresses a session may have a pod connect to."""

from ipaddress import ip_address

import pytest

from sidestep.policy.destinations import Destinations, networks_of

NODE = Destinations(
    networks_of(("203.0.113.0/24", "2001:db8::/32")), frozenset({ip_address("192.0.2.10"), ip_address("2001:470::1")})
)
LOOPBACK, LINK, CLOUD, NOBODY, RESERVED = "the pod's own", "link-local", "metadata", "of no host", "reserved"


def refusal(text, **given):
    return NODE.refusal(ip_address(text), **{"is_local": False, "allow_loopback": False} | given)


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.1",
        "8.8.8.8",
        "172.16.3.4",
        "2600::1",
        "fd12::1",
        "100.64.0.1",
        "192.0.0.8",
        "64:ff9b:1::8.8.8.8",
        "64:ff9b:1:808:8:800::",
    ],
)
def test_what_is_permitted(text):
    assert refusal(text) == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0.0.0.0", NOBODY), ("0.1.2.3", NOBODY), ("::", NOBODY),
        ("127.0.0.1", LOOPBACK), ("127.255.255.254", LOOPBACK), ("::1", LOOPBACK), ("::127.0.0.1", LOOPBACK),
        ("::ffff:127.0.0.1", LOOPBACK),
        ("169.254.169.254", LINK), ("169.254.0.1", LINK), ("fe80::1", LINK), ("fe80::1%eth0", "zone"),
        ("febf::1", LINK), ("::ffff:169.254.169.254", LINK), ("::169.254.169.254", LINK),
        ("64:ff9b::a9fe:a9fe", LINK), ("64:ff9b:1::169.254.169.254", LINK), ("2002:a9fe:a9fe::1", LINK),
        ("::ffff:0:a9fe:a9fe", LINK),
        ("fd00:ec2::254", CLOUD), ("fd00:ec2::23", CLOUD), ("fd20:ce::254", CLOUD), ("fd00:42::42", CLOUD),
        ("100.100.100.200", CLOUD), ("168.63.129.16", CLOUD), ("192.0.0.192", CLOUD), ("::ffff:168.63.129.16", CLOUD),
        ("224.0.0.1", RESERVED), ("239.255.255.250", RESERVED), ("255.255.255.255", RESERVED), ("240.0.0.1", RESERVED),
        ("ff02::1", RESERVED), ("::ffff:224.0.0.1", RESERVED),
        ("192.0.2.10", "the node's own"), ("2001:470::1", "the node's own"), ("::ffff:192.0.2.10", "the node's own"),
        ("203.0.113.9", "outbound-deny"), ("2001:db8::7", "outbound-deny"), ("::ffff:203.0.113.9", "outbound-deny"),
        ("64:ff9b::203.0.113.9", "outbound-deny"), ("64:ff9b:1:a9fe:a9:fe00::", LINK),
        ("64:ff9b:1:a9:fe:a9fe::", LINK), ("64:ff9b:1::a9:fea9:fe00:0", LINK), ("64:ff9b:1:7f00:0:100::", LOOPBACK),
    ],
)  # fmt: skip
def test_what_is_refused(text, reason):
    assert reason in refusal(text)
    if reason != LOOPBACK:
        assert reason in refusal(text, allow_loopback=True)


@pytest.mark.parametrize("text", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_loopback_where_it_is_allowed(text):
    assert refusal(text, allow_loopback=True) == ""


def test_what_the_kernel_delivers_within_the_pod_counts_as_loopback():
    assert LOOPBACK in refusal("10.244.0.9", is_local=True)
    assert refusal("10.244.0.9", is_local=True, allow_loopback=True) == ""
    assert LINK in refusal("169.254.1.1", is_local=True, allow_loopback=True)
    assert "outbound-deny" in refusal("203.0.113.9", is_local=True, allow_loopback=True)


def test_networks_that_are_none():
    for text in ("10.0.0.1/8", "10.0.0.0/33", "shop", ""):
        with pytest.raises(ValueError, match=r".*"):
            networks_of((text,))
