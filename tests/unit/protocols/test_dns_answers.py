"""Answers of name servers: sound ones, those of others, and hostile ones."""

import dns.message
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.model.errors import ConfigurationError, PeerError
from sidestep.protocols.dns_answers import KINDS, Answer, Outcome, Question
from sidestep.protocols.resolver_files import MAX_ADDRESSES

A, AAAA = KINDS


def question(kind=A, name="db.shop.test"):
    return Question(name, kind, number=4711)


def answered(asked, *sets, code="NOERROR", flags=(), number=4711):
    found = dns.message.make_response(dns.message.from_wire(asked.encode()), recursion_available=True)
    found.id = number
    found.set_rcode(dns.rcode.from_text(code))
    for flag in flags:
        found.flags |= flag
    found.answer += [dns.rrset.from_text(*each) for each in sets]
    return found.to_wire()


def test_addresses_behind_an_alias():
    asked = question()
    data = answered(
        asked,
        ("db.shop.test.", 30, "IN", "CNAME", "x.test."),
        ("x.test.", 30, "IN", "A", "10.0.0.7", "10.0.0.8"),
        ("other.test.", 30, "IN", "A", "10.0.0.9"),
    )
    found = asked.answer(data)
    assert found is not None
    assert sorted(map(str, found.addresses)) == ["10.0.0.7", "10.0.0.8"]
    six = question(AAAA)
    assert [*map(str, six.answer(answered(six, ("db.shop.test.", 30, "IN", "AAAA", "fd00::7"))).addresses)] == [
        "fd00::7"
    ]


@pytest.mark.parametrize(
    ("code", "flags", "outcome"),
    [
        ("NXDOMAIN", (), Outcome.NOTHING), ("NOERROR", (), Outcome.NOTHING), ("SERVFAIL", (), Outcome.FAILED),
        ("REFUSED", (), Outcome.FAILED), ("NOERROR", (dns.flags.TC,), Outcome.TRUNCATED),
    ],
)  # fmt: skip
def test_answers_without_an_address(code, flags, outcome):
    asked = question()
    assert asked.answer(answered(asked, code=code, flags=flags)) == Answer(outcome)


def test_answers_to_somebody_else_are_none():
    asked = question()
    record = ("db.shop.test.", 30, "IN", "A", "10.0.0.7")
    assert asked.answer(answered(asked, record, number=4712)) is None
    assert asked.answer(answered(question(name="other.test"), record)) is None
    assert asked.answer(answered(question(AAAA), record)) is None
    assert asked.answer(asked.encode()) is None


def test_many_addresses_are_cut():
    asked = question()
    record = ("db.shop.test.", 30, "IN", "A", *(f"10.0.{number // 200}.{number % 200}" for number in range(500)))
    assert len(asked.answer(answered(asked, record)).addresses) == MAX_ADDRESSES


def test_circles_of_aliases_end():
    asked = question()
    circle = [("db.shop.test.", 30, "IN", "CNAME", "x.test."), ("x.test.", 30, "IN", "CNAME", "db.shop.test.")]
    try:
        found = asked.answer(answered(asked, *circle))
    except PeerError:
        found = None
    assert found is None or found.addresses == ()


@pytest.mark.parametrize("name", ["", "a..b", "a" * 64, "é.test", ".".join(["a" * 60] * 6)])
def test_names_that_are_none(name):
    if not name:
        return
    with pytest.raises(ConfigurationError):
        question(name=name)


@given(st.binary(max_size=600))
def test_garbage_is_an_error_or_no_answer(data):
    try:
        assert question().answer(data) is None
    except PeerError:
        pass


@given(st.data())
def test_damaged_answers(data):
    asked = question()
    sound = bytearray(answered(asked, ("db.shop.test.", 30, "IN", "A", "10.0.0.7")))
    for _ in range(data.draw(st.integers(1, 4))):
        sound[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.integers(0, 255))
    try:
        asked.answer(bytes(sound[: data.draw(st.integers(0, len(sound)))]))
    except PeerError:
        pass
