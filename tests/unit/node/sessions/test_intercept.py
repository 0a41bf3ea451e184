"""The intercept that a session at the unix socket asks for."""

import time
import uuid

import msgspec
import pytest

from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.model.intercept import Kind
from sidestep.model.pod import Transport
from sidestep.node.sessions.intercept import intercept_of
from sidestep.tunnel.messages import HeaderSpec, PathSpec, SessionSpec

SPEC = SessionSpec(
    namespace="shop", workload="deploy/orders", port="8443", headers=(HeaderSpec("x-dev", "exact", "a"),)
)


def made(*, name="orders", owner="ada", **changes):
    return intercept_of(msgspec.structs.replace(SPEC, **changes), name=name, owner=owner)


def test_a_new_intercept_has_a_uid_and_an_age_of_its_own():
    before = time.time()
    first, second = made(), made()
    assert before <= first.created <= second.created <= time.time()
    assert first.uid != second.uid
    assert (first.kind, first.transport, first.port) == (Kind.INTERCEPT, Transport.TCP, "8443")
    assert (first.name, first.owner, first.pod) == ("orders", "ada", None)


def test_one_that_comes_back_is_the_same_and_no_younger_than_it_may_be():
    uid = str(uuid.uuid4())
    found = made(resume=uid, created=1000.0)
    assert (found.uid, found.created) == (uid, 1000.0)
    assert made(resume=uid, created=time.time() + 1e6).created <= time.time()
    assert made(resume=uid, created=-1.0).created > 1000.0
    assert made(created=1000.0).created > 1000.0, "only one that comes back has an age"


def test_only_a_wiretap_may_want_heads_only():
    assert made(kind="wiretap", heads_only=True).heads_only
    assert not made(heads_only=True).heads_only


def test_an_owner_that_cannot_be_shown_is_nobody():
    assert made(owner="a\x1b[2J").owner == ""
    assert made(owner="x" * 65).owner == ""


@pytest.mark.parametrize(
    ("changes", "subject"),
    [
        ({"namespace": "Shop"}, "namespace"),
        ({"namespace": "a/b"}, "namespace"),
        ({"name": "orders\n"}, "--name"),
        ({"name": "-x"}, "--name"),
        ({"pod": "../x"}, "--pod"),
        ({"resume": "x"}, "resume"),
        ({"resume": "X" * 36}, "resume"),
    ],
)
def test_names_are_those_of_kubernetes(changes, subject):
    with pytest.raises(ConfigurationError) as caught:
        made(**changes)
    assert caught.value.subject == subject


@pytest.mark.parametrize(
    "changes",
    [
        {"headers": (HeaderSpec("X-Dev", "exact", "a"),)},
        {"methods": ("G T",)},
        {"paths": tuple(PathSpec("equal", f"/{number}") for number in range(40))},
        {"workload": "a/b/c"},
    ],
    ids=["header", "method", "conditions", "workload"],
)
def test_a_filter_and_a_workload_that_cannot_be_used(changes):
    with pytest.raises((ConfigurationError, RefusedError)):
        made(**changes)
