"""Fingerprints equal to those that tshark 4.4 showed for recorded hellos, and to the examples of their descriptions."""

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.protocols import ja4, tls_weakness
from sidestep.protocols.client_hello import ClientHello, parse
from tests.effort import examples
from tests.harness.table import each_row
from tests.unit.protocols import made_hellos
from tests.unit.protocols.made_hellos import alpn, groups, hello, numbers, sni, versions

RECORDED = json.loads(Path(__file__).with_name("client_hellos.json").read_text())["hellos"]


@each_row("row", RECORDED, ids=[row["client"] for row in RECORDED])
def test_fingerprints_of_recorded_hellos(row):
    parsed = parse(base64.b64decode(row["hello"]))
    assert ja4.ja3_text(parsed) == row["ja3_full"]
    assert ja4.ja3(parsed) == row["ja3"]
    assert ja4.ja4_raw(parsed) == row["ja4_r"]
    assert ja4.ja4(parsed) == row["ja4"]


def test_the_recording_has_many_clients():
    assert len({row["ja3"] for row in RECORDED if not row["client"].startswith("made")}) >= 30


@pytest.mark.parametrize(("shown", "name"), made_hellos.ALPN.items())
def test_the_first_alpn_value(shown, name):
    assert ja4.ja4(parse(hello(alpn(name, b"zz"))))[8:10] == shown


def test_a_hello_cut_into_records_has_the_same_fingerprint():
    whole = made_hellos.MADE["made: a browser"]
    cut = b"".join(b"\x16\x03\x01" + made_hellos.vector(2, whole[at : at + 50]) for at in range(5, len(whole), 50))
    assert ja4.ja4(parse(cut)) == ja4.ja4(parse(whole)) == "t13d1116h2_" + ja4.ja4(parse(whole)).split("_", 1)[1]
    assert ja4.ja3(parse(cut)) == ja4.ja3(parse(whole))


@given(st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=examples())
def test_arbitrary_order_of_extensions_and_suites_changes_ja3_only(random):
    kinds = [23, 35, 0xFF01, 5, 18, 0x3A3A]
    suites = [0x1301, 0x1302, 0xC02B, 0xC02F, 0x8A8A]
    before = parse(hello(*(made_hellos.extension(kind) for kind in kinds), suites=numbers(*suites)))
    random.shuffle(kinds)
    random.shuffle(suites)
    after = parse(hello(*(made_hellos.extension(kind) for kind in kinds), suites=numbers(*suites)))
    assert ja4.ja4(after) == ja4.ja4(before)
    ordered = [suite for suite in suites if suite != 0x8A8A]
    assert ja4.ja3_text(after).split(",")[1] == "-".join(map(str, ordered))


@given(st.dictionaries(st.sampled_from([0, 10, 11, 13, 16, 43, 0x1A1A, 0xABCD]), st.binary(max_size=20), max_size=8))
@settings(deadline=None, max_examples=examples())
def test_arbitrary_bodies_of_extensions_have_a_fingerprint_or_no_hello(bodies):
    parsed = parse(hello(*(made_hellos.extension(kind, body) for kind, body in bodies.items())))
    if isinstance(parsed, ClientHello):
        assert len(ja4.ja4(parsed)) == 36
        assert len(ja4.ja3(parsed)) == 32
        assert ja4.ja4_raw(parsed).isascii()
        tls_weakness.of_offer(parsed)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (hello(versions(0x0304, 0x0303)), ()),
        (hello(), ()),
        (hello(legacy=0x0302), ("tls-1.1",)),
        (hello(legacy=0x0301), ("tls-1.0",)),
        (hello(legacy=0x0300), ("ssl-3",)),
        (hello(versions(0x0304, 0x0301, 0x0302)), ()),
        (hello(versions(0x0301, 0x0302)), ("tls-1.1",)),
        (hello(sni(b"a"), groups(23), suites=numbers(0x1301, 0x0017)), ("anonymous-cipher", "export-cipher", "rc4")),
        (hello(suites=numbers(0x000A, 0x0016, 0x0002)), ("3des", "null-cipher")),
        (hello(suites=numbers(0x0A0A, 0x00FF, 0x5600)), ()),
        (hello(legacy=0x0301, suites=numbers(0x0009, 0x0006)), ("tls-1.0", "des", "export-cipher", "rc2")),
    ],
)
def test_what_is_weak_in_an_offer(data, words):
    assert tls_weakness.of_offer(parse(data)) == words


@pytest.mark.parametrize(
    ("version", "suite", "words"),
    [(0x0304, 0x1301, ()), (0x0303, 0xC02F, ()), (0x0301, 0x0005, ("tls-1.0", "rc4")), (0x0302, 0x1301, ("tls-1.1",)),
     (0x0303, 0xC010, ("null-cipher",))],
)  # fmt: skip
def test_what_is_weak_in_a_connection(version, suite, words):
    assert tls_weakness.of_connection(version, suite) == words


def test_remembered_fingerprints_are_those_of_the_offer():
    made = [parse(base64.b64decode(row["hello"])) for row in RECORDED]
    made += [parse(hello(alpn(name), groups(29), versions(0x0304))) for name in (b"h2", b"h3", b"http/1.1")]
    made += [parse(hello(made_hellos.extension(11, body))) for body in (b"\x01\x00", b"\x02\x00\x01")]
    made += [parse(hello(*kinds)) for kinds in ((), (sni(b"a.test"),), (sni(b"a.test"), groups(29)))]
    for each in [*made, *reversed(made)]:
        assert ja4.fingerprints(each) == (ja4.ja3(each), ja4.ja3_text(each), ja4.ja4(each))


def test_as_many_offers_are_remembered_as_is_said():
    for number in range(2 * ja4.REMEMBERED):
        ja4.fingerprints(parse(hello(suites=numbers(0x1301, number))))
    assert len(ja4._known) == ja4.REMEMBERED
