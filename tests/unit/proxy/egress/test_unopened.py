"""What is remembered of TLS that cannot be opened: of whom, for how long, how much."""

from sidestep.protocols.client_hello import parse
from sidestep.proxy.egress.unopened import ASKS_LATER, MOST, REFUSED, REMEMBERED, Unopened
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
