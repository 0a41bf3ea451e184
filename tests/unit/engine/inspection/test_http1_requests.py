"""Requests of an inspected HTTP/1 connection: what is blocked, held, refused; what the app and the client get."""

import gzip

import pytest

from sidestep.engine.inspection.limits import InspectionLimits
from sidestep.engine.inspection.sampling import Sampling
from sidestep.engine.leg import Ending
from sidestep.model.inspection import Action, Pattern, Rule, Threshold
from sidestep.policy.route import Route
from tests.unit.engine.inspection.inspecting import (
    BLOCKED,
    DETECT,
    ENFORCE,
    FAIL,
    MODES,
    NO_ADMIN,
    NO_LEAK,
    NO_SECRET,
    SECRET,
    Inspected,
    answer,
    chunked,
    get,
    post,
)
from tests.unit.engine.shell import everything, rule

OK = answer()


def answers(shell):
    """Statuses and bodies that the client got; all have a length."""
    found = []
    rest = shell.to_client
    while rest:
        head, _, rest = rest.partition(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])
        found.append((int(head.split(b" ")[1]), rest[:size]))
        rest = rest[size:]
    return found


# --- heads ------------------------------------------------------------------------------------------------------------


def test_a_request_that_a_rule_blocks_is_answered_here_and_the_connection_goes_on():
    shell = Inspected(NO_ADMIN)
    shell.client(get(b"/admin/users"))
    assert answers(shell) == [(403, BLOCKED)]
    assert shell.to_app == b""
    shell.client(get(b"/"))
    shell.app(OK)
    assert shell.to_app == get(b"/")
    assert answers(shell) == [(403, BLOCKED), (200, b"ok")]
    [record] = shell.seen.records
    exchange = record.exchange
    assert (exchange.id, record.policy, record.rule, int(record.action)) == ("x1", "shop/p", "no-admin", 3)
    assert (exchange.method, exchange.target, exchange.host) == (
        b"GET",
        b"/admin/users",
        b"app.test",
    )


def test_pipelined_answers_stay_in_order():
    shell = Inspected(NO_ADMIN)
    shell.client(get(b"/1") + get(b"/admin") + get(b"/2") + get(b"/admin") + get(b"/3"))
    assert shell.to_app == get(b"/1")
    assert shell.to_client == b""
    shell.app(OK)
    assert shell.to_app == get(b"/1") + get(b"/2")
    assert [status for status, _ in answers(shell)] == [200, 403]
    shell.app(OK)
    shell.app(OK)
    assert [status for status, _ in answers(shell)] == [200, 403, 200, 403, 200]
    assert shell.to_app == get(b"/1") + get(b"/2") + get(b"/3")
    assert [record.exchange.id for record in shell.seen.records] == ["x1", "x2"]  # each was judged once
    assert shell.relay.idle


def test_what_no_rule_wants_takes_the_fast_way_once_it_is_known():
    shell = Inspected(NO_ADMIN)
    relay = shell.relay
    shell.client(get(b"/"))
    shell.app(OK)
    assert relay.passes(relay.client, get(b"/")) is relay.app
    assert relay.passes(relay.app, OK) is relay.client
    assert relay.passes(relay.client, get(b"/admin")) is None
    assert relay.passes(relay.client, get(b"/new")) is relay.app
    assert relay.passes(relay.client, get(b"/n%65w")) is None


@pytest.mark.parametrize("rules", [(NO_ADMIN,), (NO_SECRET,), (NO_ADMIN, NO_SECRET)])
def test_a_request_with_its_whole_body_takes_the_fast_way_where_nothing_is_found(rules):
    def passed(data):
        shell = Inspected(*rules, sampling=Sampling(100.0, 1), **FAIL)
        relay = shell.relay
        shell.client(get(b"/first"))
        shell.app(OK)
        to = relay.passes(relay.client, data)
        if to is not None:
            assert relay.passes(relay.app, OK) is relay.client
            told = shell.seen.exchanges[-1]
            assert (told.target, told.status) == (b"/p", 200)
        shell.client(data)
        refused = b"HTTP/1.1 403" in shell.to_client
        assert not (refused and to)
        return to is relay.app, refused

    seeks = NO_SECRET in rules
    assert passed(post(b"nothing")) == (True, False)
    assert passed(post(b"a+b \\n%41")) == (True, False)
    assert passed(post(SECRET)) == (not seeks, seeks)
    assert passed(post(SECRET.replace(b" ", b"+"))) == (not seeks, seeks)
    assert passed(post(gzip.compress(SECRET), b"Content-Encoding: gzip")) == (not seeks, seeks)
    assert passed(post(b"nothing")[:-1]) == (False, False)
    assert passed(post(b"nothing") + b"G") == (False, False)
    assert passed(post(b"nothing", chunk=3))[0] is False
    assert passed(post(b"nothing", b"Expect: 100-continue"))[0] is False


@pytest.mark.parametrize("data", [get(b"/next"), post(b"nothing")])
def test_after_a_refusal_the_app_is_asked_again_so_that_its_answer_and_its_end_count(data):
    def after_a_refusal():
        shell = Inspected(NO_ADMIN)
        shell.client(get(b"/first"))
        shell.app(OK)
        shell.client(get(b"/admin"))
        return shell, len(shell.to_client)

    shell, _ = after_a_refusal()
    shell.client(data)
    shell.app(OK[:-1])
    shell.eof(shell.relay.app)
    assert shell.relay.client.ending is Ending.CLOSE  # the client learns that the answer is cut

    shell, before = after_a_refusal()
    shell.client(data)
    shell.eof(shell.relay.client)
    shell.app(OK)
    assert shell.to_client[before:] == OK

    shell, _ = after_a_refusal()
    shell.now += 1000.0
    shell.client(data)
    assert len(shell.apps) == 2  # the app may be about to close a connection that was idle for so long


def test_a_body_beyond_the_window_is_not_cleared():
    shell = Inspected(NO_SECRET, limits=InspectionLimits(window=10), **FAIL)
    shell.client(get(b"/first"))
    shell.app(OK)
    assert shell.relay.passes(shell.relay.client, post(b"x" * 11)) is None
    assert shell.relay.passes(shell.relay.client, post(b"x" * 10)) is shell.relay.app


def test_below_a_threshold_nothing_is_remembered_as_clean():
    shell = Inspected(Rule("often", Action.BLOCK, match=NO_ADMIN.match, threshold=Threshold(3, 60.0)))
    for expected in (200, 200, 403):
        shell.client(get(b"/admin"))
        if expected == 200:
            shell.app(OK)
        assert answers(shell)[-1][0] == expected


@pytest.mark.parametrize(
    ("request_", "closes"),
    [
        (get(b"/admin"), False),
        (get(b"/admin").replace(b"GET", b"HEAD"), False),
        (get(b"/admin", b"Connection: close"), True),
        (get(b"/admin").replace(b"1.1", b"1.0"), True),
        (get(b"/admin", b"Content-Length: 3"), True),
        (get(b"/admin", b"Content-Length: 3") + b"abc", True),
        (get(b"/admin", b"Upgrade: websocket", b"Connection: upgrade"), True),
    ],
)
@pytest.mark.parametrize("more", [b"", get(b"/next")])
def test_when_a_refusal_ends_the_connection(request_, closes, more):
    shell = Inspected(NO_ADMIN)
    shell.client(request_ + (more if closes else b""))
    assert shell.to_client.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert (b"Connection: close" in shell.to_client) is closes
    assert (shell.relay.client.ending is Ending.FINISH) is closes
    assert shell.to_client.endswith(b"\r\n\r\n") is request_.startswith(b"HEAD")
    assert shell.to_app == b""
    if closes:
        shell.client(get(b"/dropped"))
        assert shell.to_app == b""
        shell.eof(shell.relay.client)
        assert shell.relay.done


def test_detect_reports_and_changes_nothing():
    shell = Inspected(NO_ADMIN, NO_SECRET, NO_LEAK, **DETECT)
    said = get(b"/admin") + post(SECRET, target=b"/admin", chunk=3)
    shell.client(said)
    assert shell.to_app == said
    shell.app(answer(SECRET) + OK)
    assert shell.to_client == answer(SECRET) + OK
    assert sorted(shell.seen.told) == [
        ("no-admin", 2, True), ("no-admin", 2, True), ("no-leak", 2, True), ("no-secret", 2, True),
    ]  # fmt: skip
    assert shell.relay.idle


def test_a_refused_request_is_neither_diverted_nor_copied():
    shell = Inspected(NO_ADMIN, route=Route((everything(),)))
    shell.client(get(b"/admin"))
    assert not shell.handlers
    shell.client(get(b"/"))
    assert shell.to_handler == get(b"/")


def test_a_refusal_waits_for_a_handler():
    shell = Inspected(NO_ADMIN, route=Route((rule(),)))
    shell.client(get(b"/b", b"X-Dev: me") + get(b"/admin", b"X-Dev: me") + get(b"/a"))
    assert shell.to_client == b""
    shell.handler(OK)
    assert [status for status, _ in answers(shell)] == [200, 403]
    assert shell.to_app == get(b"/a")
    assert shell.to_handler == get(b"/b", b"X-Dev: me")


def test_an_idle_app_that_leaves_after_a_refusal_does_not_end_the_client():
    shell = Inspected(NO_ADMIN)
    shell.client(get(b"/"))
    shell.app(OK)
    shell.client(get(b"/admin"))
    shell.eof(shell.relay.app)
    assert not shell.relay.done
    shell.client(get(b"/again"))
    assert shell.to_app == get(b"/") + get(b"/again")


def test_a_refused_request_that_waits_does_not_go_with_a_wire():
    shell = Inspected(NO_ADMIN, **ENFORCE)
    shell.client(get(b"/1") + get(b"/admin"))
    shell.app(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
    assert shell.relay.done
    assert shell.to_app == get(b"/1")


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [0, 1, 5, 1000])
@pytest.mark.parametrize("cut", [1, 7, 1 << 20])
def test_a_body_is_held_until_there_is_a_verdict(chunk, cut):
    for body, refused in ((b"a harmless body " * 9, False), (b"first " * 9 + SECRET + b" last" * 9, True)):
        shell = Inspected(NO_SECRET)
        said = post(body, chunk=chunk)
        pieces = [said[at : at + cut] for at in range(0, len(said), cut)]
        for piece in pieces[:-1]:
            shell.client(piece)
            assert shell.to_app == b""
            if shell.relay.client.ending:
                break
        else:
            shell.client(pieces[-1])
        if refused:
            assert shell.to_app == b""
            assert answers(shell) == [(403, BLOCKED)]
        else:
            assert shell.to_app == said
            shell.app(OK)
            assert answers(shell) == [(200, b"ok")]
            assert shell.relay.idle


def test_a_request_that_is_refused_whole_leaves_the_connection_as_it_was():
    shell = Inspected(NO_SECRET)
    shell.client(post(SECRET) + get(b"/next"))
    assert answers(shell) == [(403, BLOCKED)]
    assert shell.to_app == get(b"/next")


def test_patterns_are_found_in_heads_and_trailers():
    for said in (
        get(b"/", b"X-Note: " + SECRET),
        get(b"/", b"Transfer-Encoding: chunked").replace(b"GET", b"POST")
        + chunked(b"body", 2, b"X-Note: " + SECRET + b"\r\n"),
    ):
        shell = Inspected(NO_SECRET)
        shell.client(said)
        assert answers(shell) == [(403, BLOCKED)]
        assert shell.to_app == b""


def test_an_encoded_body_is_decoded():
    said = post(gzip.compress(b"x" * 1000 + SECRET), b"Content-Encoding: gzip")
    shell = Inspected(NO_SECRET)
    shell.client(said)
    assert answers(shell) == [(403, BLOCKED)]
    assert shell.to_app == b""


@pytest.mark.parametrize(
    ("fields", "body", "reason"),
    [
        ([b"Content-Encoding: br"], b"abc", "request-encoding"),
        ([b"Content-Encoding: gzip"], b"abc", "request-malformed"),
        ([b"Content-Encoding: gzip"], gzip.compress(bytes(400_000)), "request-ratio"),
        ([], b"a" * 70_000, "request-window"),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_a_body_that_cannot_be_inspected(mode, fields, body, reason):
    shell = Inspected(NO_SECRET, **MODES[mode])
    said = post(body, *fields)
    shell.client(said[:1000])
    if not shell.relay.client.ending and said[1000:]:
        shell.client(said[1000:])
    if mode == "Enforce+Fail":
        assert shell.to_app == b""
        assert [status for status, _ in answers(shell)] == [403]
        assert shell.seen.reasons == [(reason, True)]
    else:
        assert shell.to_app == said
        assert shell.seen.reasons == ([] if reason == "request-window" and mode == "Detect" else [(reason, False)])


def test_a_long_body_is_read_to_its_end_and_its_app_reset():
    shell = Inspected(NO_SECRET, **ENFORCE)
    said = post(b"a" * 100_000 + SECRET)
    shell.client(said[:90_000])
    assert shell.to_app == said[:90_000]
    shell.client(said[90_000:])
    assert shell.shut[shell.apps[0]] is Ending.ABORT
    assert not shell.to_app.endswith(SECRET)
    assert answers(shell) == [(403, BLOCKED)]


@pytest.mark.parametrize("refused", [False, True])
def test_the_head_goes_ahead_where_the_client_waits_for_that(refused):
    shell = Inspected(NO_SECRET)
    head, _, body = post(SECRET if refused else b"good", b"Expect: 100-continue").partition(b"\r\n\r\n")
    head += b"\r\n\r\n"
    shell.client(head)
    assert shell.to_app == head
    shell.app(b"HTTP/1.1 100 Continue\r\n\r\n")
    shell.client(body[:3])
    assert shell.to_app == head
    shell.client(body[3:])
    if refused:
        assert shell.to_app == head
        assert shell.shut[shell.apps[0]] is Ending.ABORT
        assert shell.to_client.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 ")
    else:
        assert shell.to_app == head + body
        shell.app(OK)
        assert shell.relay.idle


def test_a_held_request_goes_to_its_handler():
    shell = Inspected(NO_SECRET, route=Route((everything(),)))
    said = post(b"harmless", chunk=3)
    shell.client(said[:-5])
    assert not shell.handlers
    shell.client(said[-5:])
    assert shell.to_handler == said
    shell.handler(OK)
    shell.client(post(SECRET))
    assert shell.to_handler == said
    assert answers(shell) == [(200, b"ok"), (403, BLOCKED.replace(b"x1", b"x2"))]


@pytest.mark.parametrize("policy", [ENFORCE, FAIL], ids=["Ignore", "Fail"])
def test_a_body_that_does_not_come(policy):
    shell = Inspected(NO_SECRET, limits=InspectionLimits(request_seconds=7.0), **policy)
    said = post(b"harmless")
    shell.client(said[:-3])
    assert shell.relay.deadline == 7.0
    shell.expire()
    assert shell.relay.deadline is None
    assert shell.seen.reasons == [("request-slow", policy is FAIL)]
    assert shell.to_app == (b"" if policy is FAIL else said[:-3])
    assert bool(shell.to_client) is (policy is FAIL)


def test_a_held_request_whose_client_leaves_goes_nowhere():
    shell = Inspected(NO_SECRET, **ENFORCE)
    shell.client(post(b"harmless")[:-3])
    shell.eof(shell.relay.client)
    assert shell.relay.done
    assert shell.to_app == b""


@pytest.mark.parametrize("policy", [ENFORCE, FAIL], ids=["Ignore", "Fail"])
def test_a_held_request_with_broken_framing(policy):
    shell = Inspected(NO_SECRET, **policy)
    said = get(b"/", b"Transfer-Encoding: chunked") + b"3\r\nabc\r\n" + b"zz\r\n"
    shell.client(said)
    assert shell.to_app == (b"" if policy is FAIL else said)
    assert shell.relay.done is (policy is FAIL)
    assert shell.seen.reasons == [("h1-chunk", policy is FAIL)]


def test_rules_that_only_alert_hold_nothing():
    shell = Inspected(Rule("see", Action.ALERT, patterns=(Pattern(regex="dawn"),)))
    said = post(SECRET, chunk=4)
    for at in range(len(said)):
        shell.client(said[at : at + 1])
    assert shell.to_app == said
    assert shell.seen.told == [("see", 2, False)]


@pytest.mark.parametrize("policy", [ENFORCE, FAIL], ids=["Ignore", "Fail"])
@pytest.mark.parametrize(
    ("rule_", "protocol", "reason"),
    [(NO_ADMIN, b"websocket", ""), (NO_SECRET, b"other", "h1-upgrade"), (NO_ADMIN, b"other", "h1-upgrade")],
)
def test_an_upgrade(policy, rule_, protocol, reason):
    shell = Inspected(rule_, **policy)
    said = get(b"/chat", b"Upgrade: " + protocol, b"Connection: upgrade")
    shell.client(said)
    shell.client(b"\x81\x00")
    assert shell.to_app == said  # nothing is sent ahead: it could be a request
    shell.app(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: " + protocol + b"\r\nConnection: upgrade\r\n\r\n")
    closed = policy is FAIL and bool(reason)
    assert shell.seen.reasons == ([(reason, policy is FAIL)] if reason else [])
    assert shell.relay.done is closed
    assert shell.to_app == said + (b"" if closed else b"\x81\x00")


@pytest.mark.parametrize("policy", [ENFORCE, FAIL], ids=["Ignore", "Fail"])
def test_a_tunnel(policy):
    shell = Inspected(NO_ADMIN, **policy)
    shell.client(b"CONNECT db.test:5432 HTTP/1.1\r\nHost: db.test:5432\r\n\r\n")
    shell.app(b"HTTP/1.1 200 OK\r\n\r\n")
    assert shell.seen.reasons == [("h1-connect", policy is FAIL)]
    assert shell.relay.done is (policy is FAIL)
