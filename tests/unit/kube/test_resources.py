"""Intercepts and Wiretaps: every field judged, what is written read again, patches."""

import datetime as dt
import json

import pytest

from sidestep.kube import resources
from sidestep.kube.resources import manifest, observe, read
from sidestep.kube.session_specs import SessionFields, SpecFields, filter_fields
from sidestep.model.errors import ConfigurationError
from sidestep.model.filter import Filter, HeaderCondition, HeaderTest, PathCondition, PathTest
from sidestep.model.intercept import Kind, WorkloadRef
from sidestep.model.pod import Transport

KEY = "A" * 43 + "="


def value(**spec):
    return {
        "metadata": {
            "name": "orders",
            "namespace": "shop",
            "uid": "u-1",
            "resourceVersion": "7",
            "creationTimestamp": "2025-03-01T12:00:00Z",
        },
        "spec": {"workload": "deploy/orders", "port": "https", "session": {"publicKey": KEY}, **spec},
    }


def test_a_whole_resource():
    found = read(
        Kind.INTERCEPT,
        value(
            port=8443,
            pod="orders-1",
            owner="ada",
            divertProbes=True,
            handler={"plaintext": True},
            renewTime="2025-03-01T12:00:10.000000Z",
            filter={
                "headers": [
                    {"name": "x-dev", "value": "ada"},
                    {"name": "x-any", "match": "Present"},
                    {"name": "x-r", "match": "Regex", "value": "^a"},
                ],
                "methods": ["GET"],
                "paths": [{"match": "Prefix", "value": "/api"}],
            },
        ),
    )
    intercept = found.intercept
    assert intercept is not None
    assert found.problem == ""
    assert (intercept.uid, intercept.display) == ("u-1", "shop/orders")
    assert intercept.workload == WorkloadRef("orders", "deployment")
    assert (intercept.port, intercept.transport, intercept.pod) == ("8443", Transport.TCP, "orders-1")
    assert (intercept.owner, intercept.divert_probes, intercept.plaintext) == ("ada", True, True)
    assert intercept.created == dt.datetime(2025, 3, 1, 12, tzinfo=dt.UTC).timestamp()
    assert intercept.filter.headers[2] == HeaderCondition("x-r", HeaderTest.REGEX, "^a")
    assert found.path == "/apis/sidestep.dev/v1alpha1/namespaces/shop/intercepts/orders"


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"workload": "a/b/c"}, "is no workload"),
        ({"workload": 3}, "workload"),
        ({"port": "-"}, "spec.port"),
        ({"port": None}, "port"),
        ({"pod": "No/Pod"}, "spec.pod"),
        ({"session": {}}, "publicKey"),
        ({"session": None}, "session"),
        ({"transport": "SCTP"}, "transport"),
        ({"transport": "UDP", "filter": {"methods": ["GET"]}}, "UDP"),
        ({"filter": {"headers": [{"name": "X-Upper", "value": "1"}]}}, "lower-case"),
        ({"filter": {"headers": [{"name": "x y"}]}}, "header name"),
        ({"filter": {"headers": [{"name": "x", "match": "Regex", "value": "("}]}}, "("),
        ({"filter": {"headers": [{"name": "x", "value": "v" * 5000}]}}, "5000 bytes"),
        ({"filter": {"methods": ["G T"]}}, "not a method"),
        ({"filter": {"methods": [f"M{number}" for number in range(40)]}}, "at most 32"),
        ({"filter": {"paths": [{"match": "Suffix", "value": "/"}]}}, "match"),
    ],
)
def test_what_cannot_be_served_is_a_problem_that_names_it(spec, told):
    found = read(Kind.INTERCEPT, value(**spec))
    assert found.intercept is None
    assert told in found.problem
    assert found.metadata.uid == "u-1", "its status can still be written"


@pytest.mark.parametrize(
    "broken", [{}, {"metadata": {}}, {"metadata": {"name": "a", "namespace": "b", "uid": "../.."}}, {"metadata": 3}]
)
def test_without_an_identity_there_is_nothing(broken):
    with pytest.raises(ConfigurationError):
        read(Kind.INTERCEPT, broken)


def test_owners_that_could_not_be_shown_are_not():
    assert read(Kind.INTERCEPT, value(owner="a\nb")).intercept.owner == ""


def test_a_status_that_cannot_be_read_is_none():
    found = read(Kind.INTERCEPT, value() | {"status": {"nodes": 7}})
    assert found.status.nodes == {}
    assert found.problem == ""


def test_what_the_command_line_writes_is_what_the_daemon_reads():
    wanted = Filter(
        headers=(HeaderCondition("host", HeaderTest.EXACT, "a.b"), HeaderCondition("x", HeaderTest.PRESENT)),
        methods=("GET", "PUT"),
        paths=(PathCondition(PathTest.EQUAL, "/a"), PathCondition(PathTest.REGEX, "b$")),
    )
    spec = SpecFields(
        workload="orders", port="https", session=SessionFields(KEY), filter=filter_fields(wanted), owner="ada"
    )
    written = json.loads(manifest(Kind.WIRETAP, "shop", "tap", spec))
    assert (written["apiVersion"], written["kind"]) == ("sidestep.dev/v1alpha1", "Wiretap")
    written["metadata"]["uid"] = "u-2"
    found = read(Kind.WIRETAP, written)
    assert found.problem == ""
    assert found.intercept.filter == wanted
    assert found.intercept.kind is Kind.WIRETAP


def test_patches_and_options():
    now = dt.datetime(2025, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC)
    assert json.loads(resources.renewal(now)) == {"spec": {"renewTime": "2025-01-02T03:04:05.000006Z"}}
    assert json.loads(resources.status_patch({"state": "Active"}, resource_version="9")) == {
        "status": {"state": "Active"},
        "metadata": {"resourceVersion": "9"},
    }
    empty = {"message": "", "nodes": {"n1": {"refusal": "", "pods": ({"name": "a", "detail": ""},)}, "n2": None}}
    assert json.loads(resources.status_patch(empty))["status"] == {
        "message": None,
        "nodes": {"n1": {"refusal": None, "pods": [{"name": "a"}]}, "n2": None},
    }
    assert json.loads(resources.deletion("u"))["preconditions"] == {"uid": "u"}


def digest(changed):
    return observe(Kind.INTERCEPT, changed).digest


HEADER = {"name": "x-dev", "match": "Exact", "value": "ada"}


@pytest.mark.parametrize(
    "spec",
    [
        {"renewTime": "2026-01-01T00:00:00Z"},
        {"transport": "TCP", "divertProbes": False, "resetExisting": False, "handler": {"plaintext": False}},
        {"filter": {}, "pod": "", "owner": ""},
        {"filter": {"headers": [], "methods": [], "paths": []}},
        {"field": "of a later version"},
    ],
    ids=["renewed", "defaults", "empty", "empty filter", "unknown field"],
)
def test_what_means_the_same_has_one_digest(spec):
    assert digest(value(**spec)) == digest(value())


def test_the_order_of_fields_and_a_stated_default_do_not_matter():
    stated = value(filter={"headers": [HEADER]})
    short = {"metadata": stated["metadata"], "spec": dict(reversed(stated["spec"].items()))}
    short["spec"]["filter"] = {"headers": [{"value": "ada", "name": "x-dev"}]}
    assert digest(short) == digest(stated)


@pytest.mark.parametrize(
    "spec",
    [
        {"workload": "deploy/other"},
        {"port": "8443"},
        {"port": 8443},
        {"session": {"publicKey": "B" * 43 + "="}},
        {"transport": "UDP"},
        {"pod": "orders-1"},
        {"owner": "eve"},
        {"divertProbes": True},
        {"resetExisting": True},
        {"headsOnly": True},
        {"handler": {"plaintext": True}},
        {"filter": {"headers": [HEADER]}},
        {"filter": {"headers": [HEADER, HEADER]}},
        {"filter": {"methods": ["GET"]}},
        {"filter": {"paths": [{"match": "Equal", "value": "/"}]}},
        {"workload": 3},
        {"workload": 4},
        {"session": None},
    ],
)
def test_what_means_something_else_has_another_digest(spec):
    others = [digest(value()), digest(value(port=8444)), digest(value(workload=5))]
    assert digest(value(**spec)) not in others
    assert digest(value(**spec)) == digest(value(**spec, renewTime="2026-01-01T00:00:00Z"))


@pytest.mark.parametrize("spec", [None, [], "x", 3, {}])
def test_a_spec_without_shape_has_a_digest_and_a_flaw(spec):
    found = observe(Kind.INTERCEPT, value() | {"spec": spec})
    assert found.flaw
    assert len(found.digest) == 64
