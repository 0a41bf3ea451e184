import click
import pytest

from sidestep.cli.options import PortMapping, PortType


@pytest.mark.parametrize(
    ("text", "mapping"),
    [
        ("8080", PortMapping(8080, "8080", "tcp")),
        ("8080:443", PortMapping(8080, "443", "tcp")),
        ("8080:https", PortMapping(8080, "https", "tcp")),
        ("5353:53/UDP", PortMapping(5353, "53", "udp")),
        ("5353:dns-udp/udp", PortMapping(5353, "dns-udp", "udp")),
        ("5353/UDP", PortMapping(5353, "5353", "udp")),
        ("1:1/TCP", PortMapping(1, "1", "tcp")),
    ],
)
def test_a_port_mapping(text, mapping):
    assert PortType().convert(text, None, None) == mapping


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "x",
        "0",
        "65536",
        "-1",
        "8080:",
        "8080:-x",
        "8080:A",
        "8080:1:2",
        "8080:1/SCTP",
        "8080:1/",
        "٣",
        "1_0",
        " 1",
    ],
)
def test_what_is_no_port_mapping(text):
    with pytest.raises(click.BadParameter):
        PortType().convert(text, None, None)
