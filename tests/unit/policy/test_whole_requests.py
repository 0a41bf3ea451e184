"""A request of which `clears` says that no rule applies is one in which judging it piece by piece finds nothing."""

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from sidestep.model.filter import Filter, PathCondition, PathTest
from sidestep.model.inspection import Action, Builtin, Direction, InspectionPolicy, Match, Mode, Pattern, Rule
from sidestep.policy.accepted_policy import accept
from sidestep.policy.body_views import WHOLE, BodyViews, whole_texts
from sidestep.policy.inspection import Inspection, is_nothing
from sidestep.policy.inspection_match import ConnectionFacts
from tests.effort import examples

CARD = b"4111 1111 1111 1111"
SENT = Rule(
    "sent",
    Action.ALERT,
    patterns=(Pattern(builtin=Builtin.CARD_NUMBER), Pattern(regex="attack at dawn"), Pattern(regex=r"\bend$")),
)
PATH = Rule("path", Action.BLOCK, match=Match(Filter(paths=(PathCondition(PathTest.PREFIX, "/admin"),))))
TOLD = Rule("told", Action.ALERT, direction=Direction.RESPONSE, patterns=(Pattern(regex="attack"),))

pieces = st.sampled_from(
    [b"a", b"attack at ", b"dawn", b"attack+at+", b"attack%20at%20", b"\\u0064awn", b"dawn".replace(b"", b"\0"), CARD,
     CARD.replace(b" ", b"%20"), CARD[:10], b"4111111111111112", b"1764444444444", b"end", b"\n", b"+", b"%", b"\\",
     b"=", b"quoted-printable", b"=64awn", b"x" * 1500, b"\0", b"content-transfer-encoding: base64\r\n",
     b"charset=utf-7;"]
)  # fmt: skip
bodies = st.lists(pieces, max_size=8).map(b"".join)
types = st.sampled_from(
    [b"application/json", b"text/plain; charset=utf-8", b"text/plain; charset=utf-7", b"x; content-encoding: gzip",
     b"multipart/form-data; boundary=x"]
)  # fmt: skip
targets = st.sampled_from([b"/", b"/a?b=c", b"/admin/x", b"/%61dmin", b"/a?q=attack+at+dawn", b"/a/..;/b", b"/end"])
policies = st.lists(st.sampled_from([SENT, PATH, TOLD]), unique_by=id, min_size=1, max_size=3)


def connection(rules):
    policy = InspectionPolicy("p", "shop", mode=Mode.ENFORCE, rules=tuple(rules))
    return Inspection([accept(policy)]).connection(ConnectionFacts())


@given(policies, targets, types, bodies, st.data())
@settings(max_examples=examples(1000), deadline=None)
def test_what_is_cleared_has_nothing_to_find(rules, target, kind, body, data):
    made = connection(rules)
    fields = [(b"host", b"app.test"), (b"content-type", kind)]
    cleared = made.clears(target, fields, body)
    event(f"cleared: {cleared}")
    exchange = made.request(b"POST", target, fields, 1.0)
    if not is_nothing(exchange):
        at = 0
        while at < len(body):
            size = data.draw(st.integers(1, len(body) - at))
            exchange.request_body(body[at : at + size], 1.0)
            at += size
        exchange.request_end(1.0)
    found = exchange.verdict.hits or exchange.unread or exchange.matched or exchange.reads_response
    assert not (cleared and found)


@given(bodies, types)
@settings(max_examples=examples(500), deadline=None)
def test_whole_texts_are_those_of_the_views(body, kind):
    fields = [(b"content-type", kind)]
    views = BodyViews(WHOLE, fields)
    texts = {}
    for view, text in (*views.feed(body), *views.finish()):
        texts[view] = texts.get(view, b"") + text
    expected = None if views.doubts else [body, *texts.values()]
    assert whole_texts(body, fields) == expected


def test_longer_bodies_are_left_to_others():
    assert whole_texts(bytes(WHOLE + 1)) is None
    assert whole_texts(b"a" * WHOLE) == [b"a" * WHOLE]


@pytest.mark.parametrize(
    ("rules", "target", "body", "expected"),
    [
        ([SENT], b"/", b"nothing", True),
        ([SENT], b"/a?b=c", b'{"at": 1764444444444, "text": "a+b %41 \\n"}', True),
        ([SENT], b"/", b"attack at dawn", False),
        ([SENT], b"/", b"attack%20at%20dawn", False),
        ([SENT], b"/?q=attack+at+dawn", b"", False),
        ([SENT, PATH], b"/admin", b"", False),
        ([SENT, TOLD], b"/", b"", False),
        ([PATH], b"/other", b"attack at dawn", True),
    ],
)
def test_what_is_cleared(rules, target, body, expected):
    if TOLD in rules:
        assert connection(rules).clears(target, [(b"host", b"app.test")], body, searches_answer=True)
    assert connection(rules).clears(target, [(b"host", b"app.test")], body) is expected
