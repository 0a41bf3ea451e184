import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from sidestep.model.errors import PeerError
from sidestep.tunnel.opening import MAX_REASON, StreamOpening, clean_reason
from tests.unit.tunnel.ends import OPENING


@pytest.mark.parametrize(
    "opening",
    [
        OPENING,
        replace(OPENING, client="fe80::1", client_port=0, port=65535),
        replace(OPENING, protocol="h2", tls=False, server_name=""),
        replace(OPENING, protocol="tcp"),
    ],
)
def test_headers_carry_everything(opening):
    assert StreamOpening.from_headers(opening.to_headers()) == opening


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sidestep-intercept", ""),
        ("sidestep-intercept", "a b"),
        ("sidestep-intercept", "x" * 65),
        ("sidestep-pod", "orders"),
        ("sidestep-pod", "Shop/orders"),
        ("sidestep-port", "65536"),
        ("sidestep-port", "-1"),
        ("sidestep-port", "1_0"),
        ("sidestep-port", "٣"),
        ("sidestep-client", "localhost"),
        ("sidestep-client", "10.0.0"),
        ("sidestep-client-port", ""),
        ("sidestep-protocol", "h3"),
        ("sidestep-tls", "yes"),
        ("sidestep-server-name", "a\tb"),
        ("sidestep-server-name", "x" * 256),
    ],
)
def test_a_wrong_field_is_named(name, value):
    headers = tuple((key, value if key == name else old) for key, old in OPENING.to_headers())
    with pytest.raises(PeerError, match=name):
        StreamOpening.from_headers(headers)


@pytest.mark.parametrize("name", [name for name, _ in OPENING.to_headers() if name.startswith("sidestep-")])
def test_every_field_stands_exactly_once(name):
    headers = OPENING.to_headers()
    with pytest.raises(PeerError, match=name):
        StreamOpening.from_headers(tuple(field for field in headers if field[0] != name))
    with pytest.raises(PeerError, match=name):
        StreamOpening.from_headers((*headers, *(field for field in headers if field[0] == name)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"server_name": "a\r\nb"},
        {"server_name": "x" * 60_000},
        {"server_name": "ä"},
        {"server_name": "\u20ac"},
        {"client": "10.0.0.1\0"},
        {"client_port": 65_536},
        {"protocol": "h3"},
        {"intercept": "../other"},
    ],
)
def test_what_could_not_be_parsed_is_not_sent(wrong):
    OPENING.check()
    with pytest.raises(PeerError, match="a stream was opened"):
        replace(OPENING, **wrong).check()


def test_unknown_fields_are_ignored():
    assert StreamOpening.from_headers((*OPENING.to_headers(), ("sidestep-later", "x"))) == OPENING


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=20))
def test_any_headers_parse_or_are_refused(headers):
    with pytest.raises(PeerError):
        StreamOpening.from_headers(tuple(headers))


@given(st.text())
def test_a_reason_is_one_bounded_printable_line(text):
    cleaned = clean_reason(text)
    assert len(cleaned) <= MAX_REASON
    assert cleaned.isascii()
    assert cleaned.isprintable()
