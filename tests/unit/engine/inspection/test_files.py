"""The hash of bodies in which a rule has found something: of which, over what, and that nothing else changes."""

from __future__ import annotations

import gzip
import hashlib
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.inspection.body_file import BodyFile
from sidestep.engine.inspection.limits import LIMITS, InspectionLimits
from sidestep.engine.inspection.sampling import Sampling
from sidestep.model.inspection import Action, Direction, Pattern, RateLimit, Rule
from sidestep.protocols.http2 import DATA, END_STREAM, frame
from tests.unit.engine.http2.talk import Talk
from tests.unit.engine.http2_peers import request
from tests.unit.engine.inspection.inspecting import (
    DETECT,
    ENFORCE,
    FAIL,
    MODES,
    NO_SECRET,
    SECRET,
    Inspected,
    Recorder,
    answer,
    gate,
    get,
    inspection,
    post,
)

SEE = Rule("see", Action.ALERT, patterns=(Pattern(regex="attack at dawn"),))
SEE_ANSWER = Rule("see-answer", Action.ALERT, Direction.RESPONSE, patterns=(Pattern(regex="attack at dawn"),))
BODY = b"a" * 3000 + SECRET + b"b" * 3000


def quiet() -> Sampling:
    """Somebody reads records; none is sampled."""
    return Sampling(0.0, 1)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def told(shell) -> list[tuple[bool, int, str | None]]:
    return [(each.in_response, each.size, each.sha256) for each in shell.seen.files]


def shell_of(*rules, limits=LIMITS, sampling=None, **policy):
    return Inspected(*rules, limits=limits, sampling=quiet() if sampling is None else sampling, **policy)


@pytest.mark.parametrize("cut", [1 << 20, 1000, 1])
@pytest.mark.parametrize("chunk", [0, 700])
def test_a_body_is_hashed_from_its_first_byte_to_its_end(cut, chunk):
    shell = shell_of(SEE, **DETECT)
    said = post(BODY, chunk=chunk)
    for at in range(0, len(said), cut):
        shell.client(said[at : at + cut])
    assert told(shell) == [(False, len(BODY), digest(BODY))]
    assert shell.to_app == said
    assert shell.seen.files[0].exchange.target == b"/p"


def test_answers_are_hashed_too():
    shell = shell_of(SEE_ANSWER, **DETECT)
    shell.client(get(b"/report.pdf"))
    shell.app(answer(BODY))
    assert told(shell) == [(True, len(BODY), digest(BODY))]
    assert shell.seen.files[0].exchange.status == 200
    assert shell.to_client == answer(BODY)


@pytest.mark.parametrize("where", ["request", "response"])
def test_it_is_the_hash_of_what_is_decoded(where):
    packed = gzip.compress(BODY)
    shell = shell_of(SEE, SEE_ANSWER, **DETECT)
    if where == "request":
        shell.client(post(packed, b"Content-Encoding: gzip"))
    else:
        shell.client(get())
        shell.app(answer(packed, b"Content-Encoding: gzip"))
    assert told(shell) == [(where == "response", len(BODY), digest(BODY))]


def test_nothing_is_told_without_a_hit_in_the_body():
    shell = shell_of(SEE, Rule("path", Action.ALERT), **DETECT)
    shell.client(post(b"nothing of the kind"))
    shell.client(get(b"/attack%20at%20dawn"))
    shell.client(post(b"x", target=b"/?q=attack%20at%20dawn"))
    assert shell.seen.records
    assert told(shell) == []


def test_nothing_is_told_or_kept_while_nobody_reads_records():
    shell = Inspected(SEE, **DETECT)
    shell.client(post(BODY))
    assert shell.seen.records
    assert told(shell) == []


@pytest.mark.parametrize("mode", [ENFORCE, FAIL], ids=["Ignore", "Fail"])
def test_a_blocked_body_that_has_come_whole_is_hashed(mode):
    shell = shell_of(NO_SECRET, **mode)
    shell.client(post(BODY))
    assert b" 403 " in shell.to_client
    assert told(shell) == [(False, len(BODY), digest(BODY))]


def test_a_blocked_body_that_has_not_is_truncated():
    shell = shell_of(NO_SECRET, **FAIL)
    said = post(BODY)
    shell.client(said[:-100])
    assert b" 403 " in shell.to_client
    assert told(shell) == [(False, len(BODY) - 100, None)]


def test_a_body_beyond_the_window_is_truncated():
    shell = shell_of(SEE, limits=InspectionLimits(window=5000), **DETECT)
    shell.client(post(BODY)[:4500])
    shell.client(post(BODY)[4500:])
    [(_, size, sha256)] = told(shell)
    assert 5000 < size <= len(BODY)
    assert sha256 is None
    assert shell.to_app == post(BODY)


def test_a_hit_beyond_the_window_is_told_at_once_without_a_hash():
    shell = shell_of(SEE, limits=InspectionLimits(window=1000), **DETECT)
    said = post(BODY)
    for at in range(0, len(said), 500):
        shell.client(said[at : at + 500])
    [(_, size, sha256)] = told(shell)
    assert 3000 < size < 4000
    assert sha256 is None


def test_a_body_that_cannot_be_decoded_to_its_end_is_truncated():
    packed = gzip.compress(BODY, 0)
    shell = shell_of(SEE, **DETECT)
    shell.client(post(packed[:4000] + b"\xff" * 100, b"Content-Encoding: gzip"))
    assert [sha256 for _, _, sha256 in told(shell)] in ([], [None])
    assert shell.seen.reasons


def test_a_client_that_breaks_off_leaves_a_truncated_body():
    shell = shell_of(SEE, **DETECT)
    shell.client(post(BODY, chunk=1000)[:5000])
    shell.eof(shell.relay.client)
    assert [sha256 for _, _, sha256 in told(shell)] in ([], [None])


def test_hits_beyond_the_rate_have_no_file():
    rule = Rule("see", Action.ALERT, patterns=(Pattern(regex="attack at dawn"),), rate_limit=RateLimit(1, 60.0))
    shell = shell_of(rule, **DETECT)
    shell.client(post(BODY) * 3)
    assert len(shell.seen.records) == 3
    assert len(told(shell)) == 1


def test_kept_pieces_never_have_an_exchange_refused_or_unread():
    """Where memory runs out they go first."""
    said = post(b"x" * 4000 + SECRET)
    without = Inspected(SEE, **FAIL)
    without.client(said[:3900])
    shell = shell_of(SEE, **FAIL)
    shell.gate.memory.budget.total = 2 * without.gate.memory.held + 1000
    shell.client(said[:3900])
    shell.client(said[3900:])
    assert shell.seen.records
    assert not [reason for reason, _ in shell.seen.reasons if reason.endswith("memory")]
    assert [sha256 for _, _, sha256 in told(shell)] == [None]


class Recorded(Talk):
    """A `Talk` around an inspected relay of which somebody reads records; none is sampled."""

    def __init__(self, *rules, **policy):
        self.seen = Recorder()
        made = gate(inspection(*rules, **policy), self.seen, sampling=quiet())
        super().__init__(relay=lambda port: Http2Relay(port, tls=True, gate=made))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [1, 1000, 9000])
def test_bodies_over_http2(mode, size):
    talk = Recorded(SEE, NO_SECRET, **MODES[mode])
    talk.send(talk.head(1, request(b"/upload", (b"content-length", b"%d" % len(BODY))), ends=False))
    for at in range(0, len(BODY), size):
        talk.send(frame(DATA, END_STREAM * (at + size >= len(BODY)), 1, BODY[at : at + size]))
    [(in_response, seen, sha256)] = told(talk)
    assert not in_response
    if mode == "Detect" or size == 9000:
        assert (seen, sha256) == (len(BODY), digest(BODY))
    else:
        assert len(SECRET) + 3000 <= seen < len(BODY)  # nothing is read after it was blocked
        assert sha256 is None


@pytest.mark.parametrize("size", [1, 2, 100, 30_000])
def test_what_is_kept_does_not_depend_on_how_a_client_cuts_its_body(size):
    made = BodyFile(64 * 1024)
    piece = b"x" * size
    tracemalloc.start()
    try:
        for _ in range(60_000 // size):
            made.read(b"" + piece[:-1] + b"y")
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert made.held <= used + 1000
    assert used < 1.3 * made.held + 1000


@given(st.lists(st.binary(max_size=40), max_size=20), st.integers(0, 20), st.integers(0, 300))
def test_any_pieces_hash_as_one(pieces, begins, most):
    made = BodyFile(most)
    for number, piece in enumerate(pieces):
        if number == begins:
            made.begin()
        made.read(piece)
        assert made.held <= most
    whole = b"".join(pieces)
    begun = begins < len(pieces)
    assert made.finish(is_whole=True) == (digest(whole) if begun and len(whole) <= most else None)
    assert made.size == len(whole)
    assert not made.wants_more
    assert made.held == 0
