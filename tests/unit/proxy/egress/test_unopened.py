"""What is remembered of TLS that cannot be opened: of whom, for how long, how much."""

from sidestep.protocols.client_hello import parse
from sidestep.proxy.egress.refusal import Refusal
from sidestep.proxy.egress.unopened import ASKS_LATER, MOST, REFUSED, REMEMBERED, OpenedClient, Unopened
from tests.harness.client_hello import hello_of_ssl

HELLO = parse(hello_of_ssl("api.test", ["h2"]))
OTHER = parse(hello_of_ssl("api.test", []))


def test_a_client_that_refused_is_known_by_its_fingerprint_and_the_server():
    unopened = Unopened()
    assert unopened.reason("api.test", HELLO, 0.0) == ""
    unopened.note("API.test", HELLO, REFUSED, 0.0)
    assert unopened.reason("api.TEST", HELLO, 1.0) == REFUSED
    assert unopened.reason("api.test", OTHER, 1.0) == ""
    assert unopened.reason("b.test", HELLO, 1.0) == ""
    assert unopened.reason("api.test", None, 1.0) == ""


def test_a_server_that_asks_later_is_known_by_its_name():
    unopened = Unopened()
    unopened.note("api.test", HELLO, ASKS_LATER, 0.0)
    assert unopened.reason("api.test", OTHER, 1.0) == ASKS_LATER
    assert unopened.reason("b.test", OTHER, 1.0) == ""


def test_it_is_forgotten_after_a_while():
    unopened = Unopened()
    unopened.note("api.test", HELLO, REFUSED, 5.0)
    assert unopened.reason("api.test", HELLO, 5.0 + REMEMBERED - 1) == REFUSED
    assert unopened.reason("api.test", HELLO, 5.0 + REMEMBERED) == ""
    assert unopened.reason("api.test", HELLO, 5.0) == "", "it is gone"


def test_it_is_forgotten_with_the_policies():
    unopened = Unopened()
    unopened.note("api.test", HELLO, REFUSED, 0.0)
    unopened.forget()
    assert unopened.reason("api.test", HELLO, 1.0) == ""


def test_it_is_bounded():
    unopened = Unopened()
    for at in range(MOST + 1):
        unopened.note(f"n{at}.test", None, ASKS_LATER, 0.0)
    assert unopened.reason("n0.test", None, 1.0) == ""
    assert unopened.reason("n1.test", None, 1.0) == ASKS_LATER


def judge(unopened, refusal, *, at, answered=None, name="api.test", hello=HELLO):
    """A connection that was answered just before it ends, and whether the next one is opened."""
    unopened.judge(name, hello, refusal, answered=at - 0.1 if answered is None else answered, now=at)
    return unopened.reason(name, hello, at) == ""


def test_what_is_certain_counts_at_once_and_what_is_likely_when_it_happens_again():
    assert not judge(Unopened(), Refusal.CERTAIN, at=5.0)
    unopened = Unopened()
    assert judge(unopened, Refusal.LIKELY, at=5.0)
    assert judge(unopened, Refusal.LIKELY, at=6.0, hello=OTHER)
    assert judge(unopened, Refusal.LIKELY, at=6.0, name="b.test")
    assert judge(unopened, Refusal.UNKNOWN, at=6.0)
    assert not judge(unopened, Refusal.LIKELY, at=7.0, name="API.test")


def test_connections_that_end_together_are_one_suspicion():
    unopened = Unopened()
    for at in (5.0, 5.1, 5.2):
        assert judge(unopened, Refusal.LIKELY, at=at, answered=4.0)
    assert not judge(unopened, Refusal.LIKELY, at=6.0)


def test_a_client_of_the_kind_that_accepts_ends_the_suspicion():
    unopened = Unopened()
    for at in (5.0, 7.0, 9.0):
        assert judge(unopened, Refusal.LIKELY, at=at)
        assert judge(unopened, Refusal.NO, at=at + 1)


def relayed(unopened, used, *, name="api.test", hello=HELLO):
    """A connection whose client used it last at this time."""
    client = OpenedClient(unopened, name, hello, lambda: 0.0)
    client.relays(lambda since: used > since)
    return client


def test_so_does_one_that_has_used_a_connection_since_then_which_is_still_there():
    unopened = Unopened()
    assert judge(unopened, Refusal.LIKELY, at=5.0)
    kept = [relayed(unopened, used, name="API.test") for used in (4.0, 6.0)]
    assert judge(unopened, Refusal.LIKELY, at=7.0)
    assert not judge(unopened, Refusal.LIKELY, at=9.0), "since the last one nobody has"
    del kept


def test_others_and_connections_that_have_gone_do_not():
    for others in ({"hello": OTHER}, {"name": "b.test"}, None):
        unopened = Unopened()
        kept = [relayed(unopened, 6.0, **(others or {}))]
        if others is None:
            kept.clear()
        assert judge(unopened, Refusal.LIKELY, at=5.0)
        assert not judge(unopened, Refusal.LIKELY, at=7.0)


def test_nor_do_clients_that_were_shown_other_certificates():
    unopened = Unopened()
    kept = relayed(unopened, 20.0)
    unopened.forget()
    assert judge(unopened, Refusal.LIKELY, at=5.0)
    assert not judge(unopened, Refusal.LIKELY, at=7.0)
    del kept


def test_suspicions_are_forgotten_and_bounded():
    unopened = Unopened()
    assert judge(unopened, Refusal.LIKELY, at=5.0)
    assert judge(unopened, Refusal.LIKELY, at=5.0 + REMEMBERED)
    unopened.forget()
    assert judge(unopened, Refusal.LIKELY, at=6.0 + REMEMBERED)
    for at in range(MOST):
        judge(unopened, Refusal.LIKELY, at=7.0 + REMEMBERED, name=f"n{at}.test")
    assert judge(unopened, Refusal.LIKELY, at=8.0 + REMEMBERED), "the oldest one has gone"
