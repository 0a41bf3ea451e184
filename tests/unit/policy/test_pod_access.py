"""What an access to pods may ask for, and which container and process it means."""

import pytest
from msgspec.structs import replace

from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.model.filter import Filter
from sidestep.model.intercept import Allow, Kind, SessionKind, Snap
from sidestep.model.pod import Location
from sidestep.policy.pod_access import check_access, container_of, process_of, why_not_yet, why_unusable
from tests.unit.node.scenes import header, intercept, pod

ALL = frozenset(Allow)


def access(**fields):
    return intercept(**{"kind": Kind.WIRETAP, "port": "", "filter": Filter(), "allow": ALL, **fields})


def running(**pids):
    where = Location(netns="/proc/1/ns/net", pids=pids, searched=True)
    return replace(pod(), containers=("app", "sidecar"), location=where)


def test_what_it_is_called():
    found = access(allow=frozenset({Allow.FILES, Allow.ENVIRONMENT}))
    assert found.session_kind is SessionKind.ACCESS
    assert (found.leave_name, found.place, found.has_port) == ("access/n-u1", "environment, files", False)
    assert (found.reads_requests, found.wants_opened, found.takes_whole, found.captures_whole) == (False,) * 4


@pytest.mark.parametrize(
    "fields",
    [
        {"port": "8443"},
        {"kind": Kind.INTERCEPT},
        {"filter": header()},
        {"egress": True},
        {"heads_only": True},
        {"capture": Snap.ALL},
        {"reset_existing": True},
        {"container": "App"},
        {"container": "a" * 64},
        {"allow": frozenset({Allow.FILES}), "allow_loopback": True},
        {"allow": frozenset(), "container": "app"},
        {"allow": frozenset(), "allow_loopback": True},
    ],
)
def test_what_it_cannot_be(fields):
    with pytest.raises((RefusedError, ConfigurationError)):
        check_access(access(**fields))


def test_what_it_can_be():
    check_access(access(container="app", allow_loopback=True))
    check_access(intercept())


def test_the_container():
    found = running()
    assert container_of(access(), found) == "app"
    assert container_of(access(), found, "sidecar") == "sidecar"
    assert container_of(access(container="sidecar"), found) == "sidecar"
    default = replace(found, annotations={"kubectl.kubernetes.io/default-container": "sidecar"})
    assert container_of(access(), default) == "sidecar"
    absent = replace(found, annotations={"kubectl.kubernetes.io/default-container": "gone"})
    assert container_of(access(), absent) == "app"
    with pytest.raises(RefusedError, match="no container db"):
        container_of(access(), found, "db")
    with pytest.raises(RefusedError, match="is about container sidecar, not app"):
        container_of(access(container="sidecar"), found, "app")
    with pytest.raises(RefusedError, match="at all"):
        container_of(access(), replace(found, containers=()))


def test_the_process_is_that_of_the_container():
    found = running(app=7)
    assert (process_of(found, "app"), process_of(found, "sidecar")) == (7, None)
    assert why_not_yet(access(), found) == ""
    assert why_not_yet(access(container="sidecar"), found) == "container sidecar does not run"
    assert why_unusable(access(container="sidecar"), found) == ""
    assert "no container db" in why_unusable(access(container="db"), found)


def test_a_location_that_is_stated_names_a_process_of_any_container_or_none():
    stated = replace(pod(), location=Location(netns="/run/netns/a", pids={"": 8}))
    assert process_of(stated, "app") == 8
    without = pod()
    assert why_unusable(access(allow=frozenset({Allow.ENVIRONMENT})), without).endswith("(annotation sidestep.dev/pid)")
    assert why_unusable(access(allow=frozenset({Allow.FILES})), without) == ""
    assert why_unusable(access(allow=frozenset({Allow.NETWORK})), without) == ""
