"""What is copied of HTTP/1 requests, how copies end, and that nobody else notices them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.engine.http1.relay import Http1Relay
from sidestep.engine.leg import HIGH_WATER, Ending
from sidestep.engine.mirror.gate import Why
from sidestep.engine.mirror.ledger import Ledger, TapLimits
from sidestep.engine.mirror.notes import Lost
from sidestep.engine.mirror.whole_connection import copy_whole
from sidestep.engine.mirror.wiretaps import wiretap_mirror
from sidestep.policy.route import Route, SteeredPort
from tests.effort import examples
from tests.unit.engine.shell import Shell, everything, http1, rule

A = b"GET /a HTTP/1.1\r\nHost: app.test\r\n\r\n"
B = b"GET /b HTTP/1.1\r\nHost: app.test\r\nX-Dev: me\r\n\r\n"
T = b"GET /t HTTP/1.1\r\nHost: app.test\r\nX-Dev: tap\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
POST = b"POST /t HTTP/1.1\r\nHost: app.test\r\nX-Dev: tap\r\nContent-Length: %d\r\n\r\n"
CHUNKED = b"POST /t HTTP/1.1\r\nHost: app.test\r\nX-Dev: tap\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY = b"5;a=b\r\nhello\r\n0005\r\nworld\r\n0\r\nX-Sum: 1\r\n\r\n"
UPGRADE = b"GET /t HTTP/1.1\r\nHost: app.test\r\nX-Dev: tap\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
UPGRADE_POST = (POST % 4)[:-2] + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
OTHER_POST = b"POST /other HTTP/1.1\r\nHost: app.test\r\nContent-Length: 6\r\n\r\nsecret"
TAP = rule("tap", b"tap")


def copies(shell: Shell) -> list[bytes]:
    return [shell.to(leg) for leg in shell.taps]


def lost(shell: Shell) -> list[Lost]:
    return [each.lost for each in shell.notes if each.lost]


def test_matching_requests_are_copied_and_the_app_answers_all():
    shell = http1(taps=(TAP,))
    for request in (A, T, A, T):
        shell.client(request)
        shell.app(OK)
    assert shell.to_app == A + T + A + T
    assert shell.to_client == OK * 4
    assert copies(shell) == [T, T]
    assert [each.path for each in shell.notes] == [b"/t", b"/t"]
    assert all(each.copied and not each.lost for each in shell.notes)


def test_beside_an_intercept_each_gets_its_own():
    both = b"GET /x HTTP/1.1\r\nHost: app.test\r\nX-Dev: me\r\nX-Dev: tap\r\n\r\n"
    shell = http1(rule(), taps=(TAP,))
    for request in (A, both, T, B):
        shell.client(request)
        (shell.handler if b"me" in request else shell.app)(OK)
    assert shell.to_app == A + T
    assert shell.to_handler == both + B
    assert copies(shell) == [both, T]
    assert shell.to_client == OK * 4


def test_several_taps_of_one_request():
    shell = http1(taps=(TAP, everything("all"), everything("more")))
    shell.client(T)
    assert copies(shell) == [T, T, T]
    assert len({leg.rule.uid for leg in shell.taps}) == 3


@given(st.lists(st.tuples(st.integers(1, 200), st.booleans()), max_size=12), st.booleans())
@settings(max_examples=examples(200), deadline=None)
def test_bodies_are_copied_as_received_however_they_are_cut_and_whenever(cuts, diverted):
    everybody = A + CHUNKED + BODY + POST % 10 + b"0123456789" + T
    shell = http1(*([everything()] if diverted else []), taps=(TAP,))
    shell.late = True
    at = 0
    for cut, copies_now in [*cuts, (len(everybody), False)]:
        if at < len(everybody):
            shell.client(everybody[at : at + cut])
        at += cut
        if copies_now:
            shell.copy()
    for _ in range(4):
        (shell.handler if diverted else shell.app)(OK)
    shell.copy()
    assert (shell.to_handler if diverted else shell.to_app) == everybody
    assert copies(shell) == [CHUNKED + BODY, POST % 10 + b"0123456789", T]
    assert shell.to_client == OK * 4
    assert not lost(shell)


def test_a_request_and_its_answer_pass_before_anything_is_done_for_a_copy():
    shell = http1(taps=(TAP,), app_open=True)
    shell.late = True
    shell.client(T)
    shell.app(OK)
    assert shell.relay.passes(shell.relay.client, T) is shell.relay.app  # like one that nobody wants
    assert shell.relay.passes(shell.relay.app, OK) is shell.relay.client
    assert (shell.to_app, shell.to_client) == (T, OK)
    assert not shell.taps
    assert not shell.notes
    shell.copy()
    assert copies(shell) == [T, T]
    assert len(shell.notes) == 2


@pytest.mark.parametrize("how", ["lost", "eof", "wire"])
def test_what_ends_a_copy_is_not_done_before_what_began_it(how):
    shell = http1(taps=(TAP,), app_open=True)
    shell.late = True
    shell.client(T)
    shell.client(CHUNKED + b"5\r\nhel")
    if how == "lost":
        shell.lose(shell.relay.client)
    elif how == "eof":
        shell.eof(shell.relay.client)
    else:
        shell.client(b"lo!!")
    shell.relay.farewell()
    shell.copy()
    whole, cut = shell.taps
    assert shell.to(whole) == T
    assert (whole.ending, cut.ending) == (Ending.AWAIT, Ending.ABORT)
    assert lost(shell) == [Lost.REST]


def test_an_upgrade_finds_the_copies_that_go_on():
    shell = http1(taps=(TAP,), app_open=True)
    shell.late = True
    shell.client(UPGRADE)
    shell.app(SWITCHING)
    shell.client(b"\x81\x02hi")
    assert shell.relay.wired is None
    shell.eof(shell.relay.client)
    shell.copy()
    assert copies(shell) == [UPGRADE + b"\x81\x02hi"]
    assert shell.taps[0].ending is Ending.FINISH


def test_a_copy_waits_for_its_answer_and_is_then_closed():
    shell = http1(taps=(TAP,))
    shell.client(T)
    (leg,) = shell.taps
    assert leg.ending is Ending.AWAIT
    shell.receive(leg, b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Le")
    assert leg.ending is Ending.AWAIT
    shell.receive(leg, b"ngth: 2\r\n\r\nok")
    assert leg.ending is Ending.CLOSE
    assert shell.to_client == b""


def test_an_answer_before_the_request_is_whole_does_not_end_the_copy():
    shell = http1(taps=(TAP,))
    shell.client(POST % 4 + b"ab")
    (leg,) = shell.taps
    shell.receive(leg, OK)
    shell.eof(leg)
    shell.client(b"cd")
    assert copies(shell) == [POST % 4 + b"abcd"]
    assert leg.ending is Ending.CLOSE


@pytest.mark.parametrize("how", ["refuse", "lose", "eof"])
def test_a_handler_that_is_not_there_costs_the_app_nothing(how):
    shell = http1(taps=(TAP,), auto=False)
    shell.client(POST % 4 + b"ab")
    shell.open(shell.relay.app)
    (leg,) = shell.taps
    if how == "refuse":
        shell.refuse(leg)
    else:
        shell.open(leg)
        (shell.lose if how == "lose" else shell.eof)(leg)
    shell.client(b"cd" + A)
    shell.app(OK + OK)
    assert shell.to_app == POST % 4 + b"abcd" + A
    assert shell.to_client == OK + OK
    assert lost(shell) == ([] if how == "eof" else [Lost.REST])


def test_a_copy_that_overflows_is_reset_and_the_app_gets_all():
    shell = http1(taps=(TAP,), ledger=Ledger(TapLimits(copy=1000)), auto=False)
    shell.client(POST % 3000)
    shell.open(shell.relay.app)
    for _ in range(30):
        assert shell.relay.reads(shell.relay.client)
        shell.client(b"x" * 100)
    (leg,) = shell.taps
    assert leg.ending is Ending.ABORT
    assert leg.queued == 0
    assert lost(shell) == [Lost.REST]
    assert shell.to_app == POST % 3000 + b"x" * 3000
    shell.app(OK)
    shell.client(T)  # the next copy has room again
    assert [leg.ending for leg in shell.taps[1:]] == [Ending.AWAIT]


def test_taps_do_not_hold_the_client_back():
    shell = http1(taps=(TAP,), ledger=Ledger(TapLimits(copy=1 << 30, tap=1 << 30)), auto=False)
    shell.client(POST % (4 * HIGH_WATER))
    shell.open(shell.relay.app)
    shell.client(b"x" * 2 * HIGH_WATER)
    assert shell.relay.reads(shell.relay.client)
    assert shell.taps[0].queued > 2 * HIGH_WATER


def test_all_copies_of_a_tap_share_a_bound_and_do_not_take_from_another():
    ledger = Ledger(TapLimits(copy=10_000, tap=2 * len(T) + 10))
    shell = http1(taps=(TAP, everything("all")), ledger=ledger, auto=False)
    shell.client(T * 3)
    assert [(each.rule.uid, each.lost) for each in shell.notes if each.lost] == [
        ("uid-tap", Lost.ALL),
        ("uid-all", Lost.ALL),
    ]
    assert ledger.count == 4


def test_one_connection_has_so_many_copies_at_once():
    ledger = Ledger(TapLimits(per_connection=2))
    shell = http1(taps=(TAP,), ledger=ledger, auto=False)
    shell.client(T * 5)
    assert lost(shell) == [Lost.ALL] * 3
    for leg in shell.taps:
        shell.refuse(leg)
    assert ledger.count == 0
    shell.client(T)
    assert ledger.count == 1


@pytest.mark.parametrize("diverted", [False, True])
def test_after_an_upgrade_the_bytes_of_the_client_are_copied(diverted):
    shell = http1(*([everything()] if diverted else []), taps=(TAP,))
    answering = shell.handler if diverted else shell.app
    shell.client(UPGRADE)
    (leg,) = shell.taps
    shell.receive(leg, SWITCHING + b"frames of the tap's handler")
    assert not leg.ending
    answering(SWITCHING)
    assert shell.relay.wired is None
    shell.client(b"\x81\x02hi")
    answering(b"\x81\x02ho")
    shell.client(b"more")
    shell.eof(shell.relay.client)
    assert copies(shell) == [UPGRADE + b"\x81\x02himore"]
    assert leg.ending is Ending.FINISH
    assert shell.to_client == SWITCHING + b"\x81\x02ho"


def test_bytes_sent_ahead_of_the_switch_are_copied():
    shell = http1(taps=(TAP,))
    shell.client(UPGRADE + b"eager")
    shell.app(SWITCHING)
    assert copies(shell) == [UPGRADE + b"eager"]
    assert shell.to_app == UPGRADE + b"eager"


def test_a_refused_upgrade_is_an_ordinary_request():
    shell = http1(taps=(TAP,))
    shell.client(UPGRADE)
    shell.app(OK)
    assert shell.taps[0].ending is Ending.AWAIT
    shell.client(T)
    shell.app(OK)
    assert copies(shell) == [UPGRADE, T]


@pytest.mark.parametrize("cut", [0, 3, 6])
def test_after_a_refused_upgrade_the_next_body_is_no_part_of_its_copy(cut):
    shell = http1(taps=(TAP,))
    shell.client(UPGRADE_POST + b"bo")
    shell.app(OK)
    shell.client(b"dy")
    end = len(OTHER_POST) - cut
    shell.client(OTHER_POST[:end])
    if cut:
        shell.client(OTHER_POST[end:])
    shell.app(OK)
    assert shell.to_app == UPGRADE_POST + b"body" + OTHER_POST
    assert copies(shell) == [UPGRADE_POST + b"body"]
    assert not lost(shell)


def test_a_wire_is_the_shells_once_its_last_copy_is_gone():
    shell = http1(taps=(TAP,))
    shell.client(UPGRADE)
    shell.app(SWITCHING)
    shell.lose(shell.taps[0])
    assert shell.relay.wired == (shell.relay.client, shell.relay.app)
    shell.client(b"more")
    assert shell.to_app.endswith(b"more")


@pytest.mark.parametrize("end", ["eof", "lost", "broken chunk", "app ends", "unsolicited answer"])
def test_a_copy_whose_original_is_not_whole_is_reset(end):
    shell = http1(taps=(TAP,))
    shell.client(CHUNKED + b"5\r\nhel")
    match end:
        case "eof":
            shell.eof(shell.relay.client)
        case "lost":
            shell.lose(shell.relay.client)
        case "broken chunk":
            shell.client(b"lo!!")
        case "app ends":
            shell.eof(shell.relay.app)
        case "unsolicited answer":
            shell.app(OK + OK)
    assert shell.taps[0].ending is Ending.ABORT
    assert lost(shell) == [Lost.REST]


def test_a_whole_copy_survives_the_client():
    shell = http1(taps=(TAP,), auto=False)
    shell.client(T)
    shell.open(shell.relay.app)
    shell.app(OK)
    shell.lose(shell.relay.client)
    assert shell.relay.done
    shell.relay.farewell()
    shell.open(shell.taps[0])
    assert copies(shell) == [T]
    shell.receive(shell.taps[0], OK)
    assert shell.taps[0].ending is Ending.CLOSE
    assert not lost(shell)


def test_every_copy_leaves_the_ledger():
    ledger = Ledger()
    shell = http1(taps=(TAP, everything("all")), ledger=ledger)
    for _ in range(50):
        shell.client(T)
        for leg in shell.taps[-2:]:
            shell.receive(leg, OK)
        shell.app(OK)
    assert ledger.count == 0
    assert len(shell.relay.legs) < 10


def test_a_rule_for_heads_only_copies_nothing_and_shows_no_secret():
    flows = type(TAP)("uid-flows", "shop/flows", lambda method, path, fields: True, heads_only=True)
    shell = http1(taps=(flows,))
    shell.client(
        b"GET /t?q HTTP/1.1\r\nHost: app.test\r\nAuthorization: Bearer s3cret\r\nCOOKIE: s3cret\r\nX-A: 1\r\n\r\n"
    )
    assert not shell.taps
    shell.app(OK)
    (told,) = shell.notes
    assert (told.method, told.path, told.authority) == (b"GET", b"/t?q", b"app.test")
    assert told.fields == (
        (b"host", b"app.test"),
        (b"authorization", b"[redacted]"),
        (b"cookie", b"[redacted]"),
        (b"x-a", b"1"),
    )


@pytest.mark.parametrize("early", [True, False])
def test_an_answered_copy_counts_until_it_is_written(early):
    ledger = Ledger()
    shell = http1(taps=(TAP,), ledger=ledger, auto=False)
    shell.client(POST % 4 + b"ab")
    shell.open(shell.relay.app)
    (leg,) = shell.taps
    shell.stuck.add(leg)
    shell.open(leg)
    if early:
        shell.receive(leg, OK)
    shell.client(b"cd")
    if not early:
        shell.receive(leg, OK)
    assert leg.ending is Ending.CLOSE
    assert ledger.count == 1
    shell.stuck.clear()
    shell.copy()
    assert copies(shell) == [POST % 4 + b"abcd"]
    assert ledger.count == 0
    assert not lost(shell)


def test_a_copy_that_was_truncated_is_told_of_once():
    shell = http1(taps=(TAP,), ledger=Ledger(TapLimits(copy=1000)), auto=False)
    shell.client(POST % 3000 + b"x" * 3000)
    shell.lose(shell.taps[0])
    assert lost(shell) == [Lost.REST]


@pytest.mark.parametrize("padding", [1, 100, 500])
def test_a_connection_copied_whole_and_by_request_passes_or_is_received(padding):
    mirror = wiretap_mirror(Ledger(), port=80)
    copy_whole(mirror, [everything("all")], Ledger())
    shell = Shell(Http1Relay(SteeredPort(80, Route((), (TAP,))), tls=False, mirror=mirror), app_open=True)
    shell.late = True  # which checks that what passes changes nothing
    request = T[:-2] + b"X-Padding: %s\r\n\r\n" % (b"p" * padding)
    for _ in range(300):
        shell.client(request)
        shell.app(OK)
    shell.copy()
    assert shell.to_app == request * 300
    assert shell.to(shell.taps[0]) == request * 300


def spent_ledger() -> Ledger:
    """No copy may be begun, for the time that copies may take is spent."""
    ledger = Ledger()
    ledger.gate.spend(0.25, 0.0)
    return ledger


@pytest.mark.parametrize("request_", [T, POST % 3 + b"abc", UPGRADE], ids=["head", "body", "upgrade"])
def test_of_a_request_that_is_held_back_nothing_is_noted(request_):
    """For copies and for flows alike, whichever way the request takes."""
    ledger = spent_ledger()
    flows = type(TAP)("uid-flows", "shop/flows", lambda method, path, fields: True, heads_only=True)
    shell = http1(taps=(TAP, flows), ledger=ledger)
    for _ in range(3):
        shell.client(request_)
        assert not shell.mirror.events
        shell.app(OK)
    assert shell.to_app == request_ * 3
    assert shell.to_client == OK * 3
    assert not shell.taps
    assert not shell.notes
    assert {(loss.uid, count) for loss, count in ledger.gate.take_losses().items()} == {
        ("uid-tap", 3),
        ("uid-flows", 3),
    }
    assert ledger.count == 0


def test_copies_begin_again_in_the_middle_of_a_connection():
    ledger = spent_ledger()
    shell = http1(taps=(TAP,), ledger=ledger)
    shell.client(T)
    shell.app(OK)
    ledger.gate.expire(60.0)
    shell.client(CHUNKED + BODY)
    shell.app(OK)
    ledger.gate.spend(1.0, 60.0)
    shell.client(T)
    shell.app(OK)
    assert copies(shell) == [CHUNKED + BODY]


def test_a_body_is_cut_when_the_budget_is_overdrawn():
    ledger = Ledger()
    shell = http1(taps=(TAP,), ledger=ledger)
    shell.client(POST % 10 + b"01234")
    ledger.gate.spend(0.25, 0.0)
    shell.client(b"5")
    assert not lost(shell)
    ledger.gate.spend(0.1, 0.0)
    shell.client(b"6789")
    shell.app(OK)
    assert lost(shell) == [Lost.REST]
    assert shell.to_app == POST % 10 + b"0123456789"
    assert ledger.count == 0


def test_what_was_noted_before_the_budget_was_spent_is_held_back_too():
    ledger = Ledger()
    shell = http1(taps=(TAP,), ledger=ledger)
    shell.late = True
    shell.client(T * 3)
    ledger.gate.spend(0.25, 0.0)
    shell.copy()
    assert not shell.taps
    assert sum(ledger.gate.take_losses().values()) == 3


def test_while_the_budget_is_overdrawn_a_flood_is_dropped_and_its_copy_reset():
    ledger = Ledger()
    shell = http1(taps=(TAP,), ledger=ledger)
    shell.client(POST % 500_000 + b"x")
    shell.late = True
    ledger.gate.spend(0.35, 0.0)
    for _ in range(50):
        shell.client(b"x" * 9_999)
        assert shell.mirror.queue.size < 80_000
    assert len(shell.to_app) == len(POST % 500_000) + 1 + 50 * 9_999
    shell.copy()
    assert lost(shell) == [Lost.REST]
    assert shell.taps[0].ending is Ending.ABORT
    assert ledger.count == 0


def test_a_head_that_finds_no_room_is_counted():
    ledger = Ledger()
    flows = type(TAP)("uid-flows", "shop/flows", lambda method, path, fields: True, heads_only=True)
    shell = http1(taps=(TAP, flows), ledger=ledger)
    shell.late = True
    wait = shell.mirror
    shell.client(T)
    while not wait.is_full:
        wait.diverted(0, TAP, b"GET", b"/" + b"x" * 1000, b"a")
    ledger.gate.spend(0.25, 0.0)
    ledger.gate.spend(0.1, 0.0)
    assert ledger.gate.cuts
    ledger.gate.holds = False  # as for the probe of a handler that was dead
    shell.client(T)
    losses = ledger.gate.take_losses()
    assert {loss.uid: (loss.why, count) for loss, count in losses.items()} == {
        "uid-tap": (Why.BUDGET, 1),
        "uid-flows": (Why.BUDGET, 1),
    }
    assert shell.to_app == T + T
