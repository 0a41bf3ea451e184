"""Only a browser with the address that was printed is answered."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict

from sidestep.laptop.page.guard import Guard

GUARD = Guard(4321, "secret")
OURS = {"Host": "127.0.0.1:4321", "Origin": "http://127.0.0.1:4321"}


@pytest.mark.parametrize(
    ("method", "token", "headers", "allowed"),
    [
        ("GET", "secret", {"Host": "127.0.0.1:4321"}, True),
        ("GET", "secret", {"Host": "LOCALHOST:4321"}, True),
        ("GET", "secret", {"host": "127.0.0.1:4321", "Origin": "http://127.0.0.1:4321"}, True),
        ("GET", "secret", {"Host": "127.0.0.1:4321", "Sec-Fetch-Site": "none"}, True),
        ("POST", "secret", OURS, True),
        ("POST", "secret", {**OURS, "Sec-Fetch-Site": "same-origin"}, True),
        ("GET", "", {"Host": "127.0.0.1:4321"}, False),
        ("GET", "Secret", {"Host": "127.0.0.1:4321"}, False),
        ("GET", "secret ", {"Host": "127.0.0.1:4321"}, False),
        ("GET", "sécret", {"Host": "127.0.0.1:4321"}, False),
        ("GET", "\udcff", {"Host": "127.0.0.1:4321"}, False),
        ("GET", "secret", {}, False),
        ("GET", "secret", {"Host": "127.0.0.1"}, False),
        ("GET", "secret", {"Host": "127.0.0.1:4322"}, False),
        ("GET", "secret", {"Host": "rebound.example:4321"}, False),
        ("GET", "secret", {"Host": "127.0.0.1:4321", "Origin": "http://other.example"}, False),
        ("GET", "secret", {"Host": "127.0.0.1:4321", "Origin": "null"}, False),
        ("GET", "secret", {"Host": "127.0.0.1:4321", "Origin": "https://127.0.0.1:4321"}, False),
        ("GET", "secret", {"Host": "127.0.0.1:4321", "Sec-Fetch-Site": "cross-site"}, False),
        ("GET", "secret", {"Host": "127.0.0.1:4321", "Sec-Fetch-Site": "same-site"}, False),
        ("POST", "secret", {"Host": "127.0.0.1:4321"}, False),
        ("POST", "secret", {"Host": "127.0.0.1:4321", "Origin": "null"}, False),
    ],
)  # fmt: skip
def test_who_is_answered(method, token, headers, allowed):
    assert GUARD.allows(method, token, CIMultiDict(headers)) is allowed


def test_tokens_are_drawn_and_stand_in_the_address():
    one, other = Guard(80), Guard(80)
    assert one.token != other.token
    assert len(one.token) >= 43
    assert one.address == f"http://127.0.0.1:80/{one.token}/"
