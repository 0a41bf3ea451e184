"""PodAccesses as resources: every field judged, and what is written read again."""

import json

import pytest

from sidestep.kube.resources import manifest, observe, read
from sidestep.laptop.session_resource import kind_of, spec_fields
from sidestep.model.intercept import Allow, Kind, SessionKind, WorkloadRef
from sidestep.tunnel.messages import SessionSpec

KEY = "A" * 43 + "="


def value(**spec):
    metadata = {"name": "orders", "namespace": "shop", "uid": "u-1", "creationTimestamp": "2025-03-01T12:00:00Z"}
    given = {"workload": "deploy/orders", "allow": ["Environment"], "session": {"publicKey": KEY}} | spec
    return {"metadata": metadata, "spec": {name: each for name, each in given.items() if each is not None}}


def test_a_whole_resource():
    found = read(
        SessionKind.ACCESS, value(pod="orders-1", container="app", owner="ada", allow=["Files", "Environment"])
    )
    intercept = found.intercept
    assert (found.problem, found.path) == ("", "/apis/sidestep.dev/v1alpha1/namespaces/shop/podaccesses/orders")
    assert (intercept.kind, intercept.session_kind) == (Kind.WIRETAP, SessionKind.ACCESS)
    assert (intercept.workload, intercept.pod) == (WorkloadRef("orders", "deployment"), "orders-1")
    assert (intercept.allow, intercept.container) == ({Allow.ENVIRONMENT, Allow.FILES}, "app")
    assert (intercept.port, intercept.allow_loopback) == ("", False)


def test_connections_and_the_loopback():
    found = read(SessionKind.ACCESS, value(allow=["Network"], allowLoopback=True)).intercept
    assert (found.allow, found.allow_loopback) == ({Allow.NETWORK}, True)
    assert "allowLoopback" in read(SessionKind.ACCESS, value(allowLoopback=True)).problem
    spec = SessionSpec("shop", "orders", "", kind="wiretap", allow=("network",), allow_loopback=True)
    fields = spec_fields(spec, KEY, "ada")
    assert (fields.allow, fields.allow_loopback) == (["Network"], True)


def test_a_pod_alone_is_meant_by_its_name():
    intercept = read(SessionKind.ACCESS, value(workload=None, pod="orders-1")).intercept
    assert (intercept.workload, intercept.pod) == (WorkloadRef("orders-1", "pod"), "orders-1")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"allow": []}, "spec.allow"),
        ({"allow": None}, "allow"),
        ({"allow": ["Environment", "Environment"]}, "spec.allow"),
        ({"allow": ["Everything"]}, "Everything"),
        ({"workload": None}, "spec.workload"),
        ({"workload": "a/b/c"}, "is no workload"),
        ({"pod": "No/Pod"}, "spec.pod"),
        ({"container": "No"}, "container"),
        ({"session": None}, "session"),
    ],
)
def test_what_cannot_be_used_is_told(spec, told):
    found = read(SessionKind.ACCESS, value(**spec))
    assert told in found.problem
    assert found.intercept is None


@pytest.mark.parametrize(
    "kind", [SessionKind.INTERCEPT, SessionKind.WIRETAP, SessionKind.CAPTURE, SessionKind.INSPECTION]
)
def test_no_other_kind_allows_anything(kind):
    """Who may create another resource gets none of this by a field in it."""
    found = read(kind, value(port="https", container="app", allowLoopback=True))
    assert found.intercept.allow == frozenset()
    assert found.intercept.container == ""


def test_the_digest_keeps_what_is_allowed():
    plain = observe(SessionKind.ACCESS, value()).digest
    assert observe(SessionKind.ACCESS, value(renewTime="2026-01-01T00:00:00.000000Z")).digest == plain
    assert observe(SessionKind.ACCESS, value(allow=["Environment", "Files"])).digest != plain
    assert observe(SessionKind.ACCESS, value(container="app")).digest != plain


def test_what_a_session_writes_is_read_again():
    spec = SessionSpec("shop", "orders", "", kind="wiretap", allow=("environment", "files"), container="app", pod="o-1")
    assert kind_of(spec) is SessionKind.ACCESS
    written = json.loads(manifest(SessionKind.ACCESS, "shop", "orders-access", spec_fields(spec, KEY, "ada")))
    assert written["kind"] == "PodAccess"
    written["metadata"] |= {"uid": "u-2"}
    intercept = read(SessionKind.ACCESS, written).intercept
    assert (intercept.allow, intercept.container, intercept.pod, intercept.owner) == (
        {Allow.ENVIRONMENT, Allow.FILES},
        "app",
        "o-1",
        "ada",
    )
