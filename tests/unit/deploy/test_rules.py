"""The validation rules (CEL) of the resource definitions: what may change and what may not."""

import copy
import re

import pytest
import yaml

from sidestep.kube.session_specs import DEFINITIONS as SESSIONS
from tests.unit.deploy.cel import RULES, holds, rules_of
from tests.unit.deploy.test_manifest import DEPLOY

DEFINITIONS = tuple(f"{each.plural}.sidestep.dev" for each in SESSIONS.values())
SPEC = {
    "workload": "deployment/orders",
    "port": "https",
    "transport": "TCP",
    "pod": "orders-1",
    "filter": {"headers": [{"name": "x-dev", "match": "Exact", "value": "ada"}], "methods": ["GET"]},
    "divertProbes": False,
    "resetExisting": False,
    "headsOnly": False,
    "egress": False,
    "duration": "60s",
    "maxBytes": 4096,
    "snap": "All",
    "records": "All",
    "alert": "2c6db743-1",
    "allow": ["Environment"],
    "container": "app",
    "allowLoopback": False,
    "handler": {"plaintext": True},
    "show": {"statuses": ["5xx"]},
    "owner": "ada",
    "session": {"publicKey": "A" * 43 + "="},
    "renewTime": "2026-01-01T00:00:00.000000Z",
}
OTHER = {
    "workload": "deployment/payments",
    "port": 8443,
    "transport": "UDP",
    "pod": "orders-2",
    "filter": {"headers": []},
    "divertProbes": True,
    "resetExisting": True,
    "headsOnly": True,
    "egress": True,
    "duration": "61s",
    "maxBytes": 4097,
    "snap": "Heads",
    "records": "Alerts",
    "alert": "2c6db743-2",
    "allow": ["Environment", "Files"],
    "container": "sidecar",
    "allowLoopback": True,
    "handler": {"plaintext": False},
    "show": {"statuses": ["5xx", "none"]},
    "owner": "eve",
    "session": {"publicKey": "B" * 43 + "="},
}


def schema(name):
    files = {f"{each.plural}.sidestep.dev": each.manifest for each in SESSIONS.values()}
    documents = yaml.safe_load_all((DEPLOY / files[name]).read_text())
    [definition] = [one for one in documents if one and one["metadata"]["name"] == name]
    [version] = definition["spec"]["versions"]
    return version["schema"]["openAPIV3Schema"]


def passes(part, new, old):
    return all(holds(each["rule"], new, old) for each in part[RULES])


@pytest.mark.parametrize(("file", "count"), [("daemonset.yaml", 8), ("inspection.yaml", 11)])
def test_rules_use_what_the_first_api_servers_with_rules_had(file, count):
    """`has`, comparisons, `!`, `&&`, `||`, `in` a short list, fields: no function that came later, or that costs."""
    found = [*rules_of([*yaml.safe_load_all((DEPLOY / file).read_text())])]
    assert len(found) >= count
    for rule in found:
        field = r"(?:self|oldSelf)(?:\.\w+)+"
        words = re.sub(rf"has\({field}\)|'\w+' in self\.allow\b|\b{field}", "", " ".join(rule.split()))
        assert re.fullmatch(r"[\s()=!&|]*", words), words


@pytest.mark.parametrize(
    ("rule", "new", "old", "expected"),
    [
        ("has(self.a) != has(self.b)", {"a": 1}, None, True),
        ("has(self.a) != has(self.b)", {"a": 1, "b": 1}, None, False),
        ("has(self.a.b)", {}, None, False),  # an error in CEL
        ("!has(self.a.b)", {}, None, False),
        ("self.a == oldSelf.a", {"a": [{"b": 1}]}, {"a": [{"b": 1}]}, True),
        ("self.a == oldSelf.a", {"a": [{"b": 1}]}, {"a": [{"b": "1"}]}, False),
        ("self.a == oldSelf.a", {"a": {"b": True}}, {"a": {}}, False),
    ],
)
def test_rules_are_asked_as_cel_says(rule, new, old, expected):
    assert holds(rule, new, old) is expected


@pytest.mark.parametrize("name", DEFINITIONS)
def test_every_field_of_a_spec_but_renew_time_is_kept(name):
    part = schema(name)["properties"]["spec"]
    [rule] = [each["rule"] for each in part[RULES] if "oldSelf" in each["rule"]]
    fields = set(part["properties"])
    old = {field: value for field, value in SPEC.items() if field in fields}
    assert set(old) == fields, "a new field wants a value here, and a place in the rule"
    assert passes(part, old, old)
    assert holds(rule, old | {"renewTime": "2027-01-01T00:00:00.000000Z"}, old)
    assert holds(rule, {field: value for field, value in old.items() if field != "renewTime"}, old)
    for field in fields - {"renewTime"}:
        assert not holds(rule, old | {field: OTHER[field]}, old), f"{field} changed"
        if field not in part["required"]:
            without = {each: value for each, value in old.items() if each != field}
            assert not holds(rule, without, old), f"{field} taken away"
            assert not holds(rule, old, without), f"{field} added"
            assert holds(rule, without, without)


@pytest.mark.parametrize("name", [each for each in DEFINITIONS if not each.startswith(("intercepts", "podaccesses"))])
@pytest.mark.parametrize(
    ("fields", "passed"),
    [
        ({"port": "https"}, True),
        ({"port": "https", "egress": False}, True),
        ({"egress": True}, True),
        ({"port": "https", "egress": True}, False),
        ({"egress": False}, False),
        ({}, False),
    ],
)
def test_a_session_is_about_a_port_or_about_what_pods_send(name, fields, passed):
    part = schema(name)["properties"]["spec"]
    spec = {"workload": "orders", "session": SPEC["session"], "headsOnly": True, **fields}
    spec = {field: value for field, value in spec.items() if field in part["properties"]}
    assert passes(part, spec, spec) is passed


def test_a_wiretap_of_what_pods_send_gets_heads_only():
    part = schema("wiretaps.sidestep.dev")["properties"]["spec"]
    for heads in ({}, {"headsOnly": False}):
        spec = {"workload": "orders", "session": SPEC["session"], "egress": True, **heads}
        assert not passes(part, spec, spec)


@pytest.mark.parametrize(
    ("fields", "passed"),
    [
        ({"headsOnly": True, "show": {"last": 100}}, True),
        ({"headsOnly": True, "show": {"since": "10m", "statuses": ["5xx"]}}, True),
        ({"filter": {"methods": ["GET"]}, "show": {"last": 100}}, True),
        ({"show": {"statuses": ["5xx"]}}, True),
        ({"show": {"last": 100}}, False),
        ({"headsOnly": False, "show": {"since": "10m"}}, False),
    ],
)
def test_earlier_requests_are_shown_to_whoever_gets_requests(fields, passed):
    part = schema("wiretaps.sidestep.dev")["properties"]["spec"]
    spec = {"workload": "orders", "session": SPEC["session"], "port": "https", **fields}
    assert passes(part, spec, spec) is passed


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize(
    ("old", "new", "passed"),
    [
        ({}, {"status": {"specDigest": "a"}}, True),
        ({"status": {}}, {"status": {"specDigest": "a"}}, True),
        ({"status": {"specDigest": "a"}}, {"status": {"specDigest": "a", "state": "Active"}}, True),
        ({"status": {"specDigest": "a"}}, {"status": {"specDigest": "b"}}, False),
        ({"status": {"specDigest": "a"}}, {"status": {}}, False),
        ({"status": {"specDigest": "a"}}, {}, False),
    ],
)
def test_the_digest_is_written_once(name, old, new, passed):
    assert passes(schema(name), copy.deepcopy(new), old) is passed


@pytest.mark.parametrize(
    ("fields", "passed"),
    [
        ({"workload": "orders"}, True),
        ({"pod": "orders-1"}, True),
        ({"workload": "orders", "pod": "o"}, True),
        ({}, False),
    ],
)
def test_an_access_is_to_a_workload_or_to_a_pod(fields, passed):
    part = schema("podaccesses.sidestep.dev")["properties"]["spec"]
    spec = {"allow": ["Files"], "session": SPEC["session"], **fields}
    assert passes(part, spec, spec) is passed


@pytest.mark.parametrize(
    ("fields", "passed"),
    [
        ({"allow": ["Network"], "allowLoopback": True}, True),
        ({"allow": ["Environment", "Network"], "allowLoopback": True}, True),
        ({"allow": ["Network"]}, True),
        ({"allow": ["Environment"], "allowLoopback": False}, True),
        ({"allow": ["Environment"], "allowLoopback": True}, False),
    ],
)
def test_the_loopback_of_an_access_is_about_connections(fields, passed):
    part = schema("podaccesses.sidestep.dev")["properties"]["spec"]
    spec = {"workload": "orders", "session": SPEC["session"], **fields}
    assert passes(part, spec, spec) is passed
