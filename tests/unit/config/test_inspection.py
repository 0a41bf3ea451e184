"""Documents of inspection policies: a whole one, the defaults, and the path and reason of each fault."""

import json
import pickle
from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.config.field_error import FieldError
from sidestep.config.inspection import cluster_inspection_policy, inspection_policy
from sidestep.config.inspection_fields import MAX_NAMES, MAX_PATTERNS, MAX_PORTS, MAX_RULES, MAX_SOURCES
from sidestep.config.manifests import combine, keep_policies, load_file, load_files
from sidestep.config.objects import MAX_LABELS, MAX_PROBE_PATH, converter
from sidestep.model.config_map_key import ConfigMapKey
from sidestep.model.filter import Filter, HeaderCondition, HeaderTest, PathCondition, PathTest
from sidestep.model.inspection import (
    Action,
    Builtin,
    Direction,
    ExistingConnections,
    FailurePolicy,
    InspectionPolicy,
    Match,
    Mode,
    ParameterCondition,
    Pattern,
    RateLimit,
    Redaction,
    Rule,
    Threshold,
)
from sidestep.model.intercept import WorkloadRef
from sidestep.model.inventory import ConfigMap
from sidestep.model.workload import LabelRequirement, LabelSelector, SelectorOperator
from sidestep.node.manifests import _unpickled
from tests.effort import examples

YAML = """\
apiVersion: sidestep.dev/v1alpha1
kind: InspectionPolicy
metadata: {name: orders, namespace: shop}
spec:
  podSelector: {matchLabels: {app: orders}}
  ports: [8443, https]
  mode: Enforce
  failurePolicy: Fail
  existingConnections: Reset
  log: {samplePercent: 5}
  rules:
  - name: no-admin
    direction: Request
    match: {paths: [{match: Prefix, value: /admin}], methods: [GET],
      headers: [{name: X-Dev, value: ''}], serverNames: [Shop.test]}
    except: {sources: [10.0.0.0/8, "fd00::/8"]}
    action: Block
  - name: cards
    direction: Response
    patterns: [{builtin: CardNumber}, {regex: 'sk_live_[0-9a-z]{24}'}]
    action: Alert
    threshold: {count: 5, period: 1m, by: Client}
    rateLimit: {count: 10, period: 1m30s}
  redact: {queryValues: false, headers: [X-Api-Key]}
"""

SPEC = {"podSelector": {}, "rules": [{"name": "all", "action": "Log"}]}


def ids_of(**changes):
    """The `ids` of a policy."""
    return {"rulesFrom": {"configMapRef": {"name": "ids-rules", "key": "local.rules"} | changes}}


IDS = ids_of()


def policy(spec=None, *, rule=None, **changes):
    wanted = dict(SPEC if spec is None else spec) | changes
    if rule is not None:
        wanted["rules"] = [{"name": "all", "action": "Log"} | rule]
    return inspection_policy({"metadata": {"name": "p", "namespace": "shop"}, "spec": wanted})


def test_a_whole_policy_from_a_manifest():
    inventory, errors = combine(load_files({"policy.yaml": YAML}))
    assert inventory.policies == (
        InspectionPolicy(
            name="orders",
            namespace="shop",
            pod_selector=LabelSelector({"app": "orders"}),
            ports=(8443, "https"),
            mode=Mode.ENFORCE,
            failure_policy=FailurePolicy.FAIL,
            existing_connections=ExistingConnections.RESET,
            sample_percent=5.0,
            rules=(
                Rule(
                    "no-admin",
                    Action.BLOCK,
                    match=Match(
                        Filter(
                            (HeaderCondition("x-dev", HeaderTest.EXACT, ""),),
                            ("GET",),
                            (PathCondition(PathTest.PREFIX, "/admin"),),
                        ),
                        server_names=("shop.test",),
                    ),
                    exception=Match(sources=(ip_network("10.0.0.0/8"), ip_network("fd00::/8"))),
                ),
                Rule(
                    "cards",
                    Action.ALERT,
                    Direction.RESPONSE,
                    patterns=(Pattern(Builtin.CARD_NUMBER), Pattern(regex="sk_live_[0-9a-z]{24}")),
                    threshold=Threshold(5, 60.0),
                    rate_limit=RateLimit(10, 90.0),
                ),
            ),
            redaction=Redaction(False, ("x-api-key",)),
        ),
    )
    [policy] = inventory.policies
    assert policy.display == "shop/orders"
    assert policy.closes
    assert not policy.of_cluster
    assert errors == ()


def test_what_a_manifest_says_passes_from_the_reader_to_the_daemon():
    files = load_files({"policy.yaml": YAML})
    assert _unpickled(pickle.dumps((files, {}))) == (files, {})


def test_defaults():
    assert policy() == InspectionPolicy("p", "shop", LabelSelector(), rules=(Rule("all", Action.LOG),))
    assert not policy().closes
    assert policy().redaction.query_values
    assert policy().rules[0].match.is_empty


def test_a_policy_of_the_cluster():
    spec = {
        "namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "In", "values": ["a", "b"]}]},
        "podSelector": {},
        "rules": [{"name": "all", "action": "Block"}],
    }
    found = cluster_inspection_policy({"metadata": {"name": "base"}, "spec": spec})
    assert found.namespace_selector == LabelSelector(
        {}, (LabelRequirement("team", SelectorOperator.IN, frozenset({"a", "b"})),)
    )
    assert found.of_cluster
    assert found.display == "base"
    assert min([policy(), found], key=lambda each: each.order) is found


def test_every_kind_of_condition():
    rule = {
        "match": {
            "headers": [{"name": "a", "match": "Regex", "value": "^x"}, {"name": "b", "match": "Present"}],
            "paths": [{"match": "Regex", "value": "^/v[0-9]+"}, {"match": "Equal", "value": "*"}],
            "queryParameters": [{"name": "debug", "value": "1"}, {"name": "é", "match": "Present"}],
            "serverNames": ["*.shop.test"],
            "sources": ["192.0.2.7"],
            "clientCertificates": ["spiffe://cluster.local/ns/shop/*", "CN=ada,O=Shop", "*"],
        }
    }
    [found] = policy(rule=rule).rules
    assert found.match == Match(
        Filter(
            headers=(HeaderCondition("a", HeaderTest.REGEX, "^x"), HeaderCondition("b", HeaderTest.PRESENT)),
            paths=(PathCondition(PathTest.REGEX, "^/v[0-9]+"), PathCondition(PathTest.EQUAL, "*")),
        ),
        (ParameterCondition("debug", HeaderTest.EXACT, "1"), ParameterCondition("é", HeaderTest.PRESENT)),
        ("*.shop.test",),
        (ip_network("192.0.2.7/32"),),
        ("spiffe://cluster.local/ns/shop/*", "CN=ada,O=Shop", "*"),
    )


def test_rules_of_an_ids_are_in_a_config_map_of_the_namespace():
    assert policy(SPEC | {"ids": IDS}).ids == ConfigMapKey("shop", "ids-rules", "local.rules")
    assert policy({"podSelector": {}, "ids": IDS}).rules == ()
    assert policy(SPEC).ids is None


def test_a_policy_of_the_cluster_says_where_its_config_map_is():
    spec = {"podSelector": {}, "namespaceSelector": {}, "ids": ids_of(namespace="security")}
    found = cluster_inspection_policy({"metadata": {"name": "p"}, "spec": spec})
    assert found.ids == ConfigMapKey("security", "ids-rules", "local.rules")
    with pytest.raises(FieldError, match="belongs to none"):
        cluster_inspection_policy({"metadata": {"name": "p"}, "spec": spec | {"ids": IDS}})


def test_only_config_maps_that_policies_name_are_kept():
    maps = "".join(
        f"---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: shop}}\n"
        'data: {local.rules: "alert", number: 1}\n'
        for name in ("ids-rules", "others")
    )
    policy = json.dumps(
        {"apiVersion": "sidestep.dev/v1alpha1", "kind": "InspectionPolicy",
         "metadata": {"name": "p", "namespace": "shop"}, "spec": SPEC | {"ids": IDS}}
    )  # fmt: skip
    inventory, errors = combine(load_files({"maps.yaml": maps, "policy.json": policy}))
    assert errors == ()
    assert inventory.config_maps == {
        ("shop", "ids-rules"): ConfigMap("shop", "ids-rules", {"local.rules": "alert"}),
    }
    assert combine(load_files({"maps.yaml": maps}))[0].config_maps == {}


def test_a_workload_in_the_place_of_a_selector():
    spec = {"workload": "Deployment/orders", "rules": SPEC["rules"]}
    assert policy(spec).workload == WorkloadRef("orders", "deployment")
    assert policy(spec).pod_selector is None
    assert policy(spec | {"workload": "orders"}).workload == WorkloadRef("orders")


@pytest.mark.parametrize(
    ("spec", "path", "reason"),
    [
        ({"rules": SPEC["rules"]}, "spec", "exactly one of podSelector and workload"),
        (SPEC | {"workload": "orders"}, "spec", "exactly one of podSelector and workload"),
        (SPEC | {"workload": None}, None, None),
        (SPEC | {"namespaceSelector": {}}, "spec.namespaceSelector", "only a ClusterInspectionPolicy"),
        ({"workload": "a/b/c", "rules": SPEC["rules"]}, "spec.workload", "NAME or KIND/NAME"),
        (SPEC | {"waf": {"ruleSet": "Other"}}, "spec.waf.ruleSet", "Other"),
        (SPEC | {"ids": {}}, "spec.ids", "lacks rulesFrom"),
        (SPEC | {"ids": IDS | {"mode": "ips"}}, "spec.ids", "has no field mode"),
        (SPEC | {"ids": ids_of(name="A")}, "spec.ids.rulesFrom.configMapRef.name", "not a Kubernetes name"),
        (SPEC | {"ids": ids_of(key="a/b")}, "spec.ids.rulesFrom.configMapRef.key", "no key of a ConfigMap"),
        (SPEC | {"ids": ids_of(namespace="bank")}, "spec.ids.rulesFrom.configMapRef.namespace", "only a Cluster"),
        ({"podSelector": {}}, "spec", "needs at least one of rules, ids, waf and egress"),
        (SPEC | {"rule": []}, "spec", "has no field rule"),
        (SPEC | {"rules": []}, "spec.rules", "is empty"),
        (SPEC | {"mode": "enforce"}, "spec.mode", "'enforce' is none of the values"),
        (SPEC | {"ports": [0]}, "spec.ports[0]", "at least 1"),
        (SPEC | {"ports": ["8443"]}, "spec.ports[0]", "no container port"),
        (SPEC | {"ports": list(range(1, MAX_PORTS + 2))}, "spec.ports", f"at most {MAX_PORTS}"),
        (SPEC | {"log": {"samplePercent": 101}}, "spec.log.samplePercent", "at most 100"),
        (SPEC | {"log": {"percent": 1}}, "spec.log", "has no field percent"),
        (SPEC | {"redact": {"headers": ["x y"]}}, "spec.redact.headers[0]", "header name"),
        (SPEC | {"podSelector": {"matchLabels": {"a": True}}}, "spec.podSelector.matchLabels.a", "put the value in"),
        (
            SPEC | {"podSelector": {"matchLabels": {f"a{each}": "b" for each in range(65)}}},
            "spec.podSelector.matchLabels",
            "more than 64",
        ),
        (
            SPEC | {"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}},
            "spec.podSelector.matchExpressions[0].values",
            "operator In takes values",
        ),
        (
            SPEC | {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}},
            "spec.podSelector.matchExpressions[0].values",
            "operator Exists takes no values",
        ),
        (
            SPEC | {"podSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"] * 65}]}},
            "spec.podSelector.matchExpressions[0].values",
            "more than 64 values",
        ),
        (
            SPEC | {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists"}] * 65}},
            "spec.podSelector.matchExpressions",
            "more than 64 expressions",
        ),
        (
            SPEC | {"rules": [{"name": "a", "action": "Log"}, {"name": "a", "action": "Block"}]},
            "spec.rules[1].name",
            "earlier rule",
        ),
        (
            SPEC | {"rules": [{"name": f"r{each}", "action": "Log"} for each in range(MAX_RULES + 1)]},
            "spec.rules",
            f"at most {MAX_RULES}",
        ),
        (
            SPEC
            | {
                "rules": [
                    {"name": f"r{each}", "action": "Log", "patterns": [{"regex": "a"}] * 32} for each in range(17)
                ]
            },
            "spec.rules",
            "544 patterns",
        ),
    ],
)
def test_faults_of_a_spec(spec, path, reason):
    if path is None:
        assert policy(spec)
        return
    with pytest.raises(FieldError) as caught:
        policy(spec)
    assert caught.value.path == path
    assert reason in caught.value.reason


MATCH = "spec.rules[0].match"


@pytest.mark.parametrize(
    ("rule", "path", "reason"),
    [
        ({"name": "A"}, "spec.rules[0].name", "no name"),
        ({"action": "Drop"}, "spec.rules[0].action", "none of the values"),
        ({"direction": "Both"}, "spec.rules[0].direction", "none of the values"),
        ({"match": {"path": []}}, MATCH, "has no field path"),
        ({"match": {"methods": ["get"]}}, f"{MATCH}.methods[0]", "write GET"),
        ({"match": {"paths": [{"match": "Prefix", "value": "admin"}]}}, f"{MATCH}.paths[0].value", "begins with /"),
        ({"match": {"paths": [{"match": "Prefix", "value": "/a?b"}]}}, f"{MATCH}.paths[0].value", "without query"),
        ({"match": {"paths": [{"value": "/a"}]}}, f"{MATCH}.paths[0]", "lacks match"),
        ({"match": {"paths": [{"match": "Regex", "value": "a" * 1025}]}}, f"{MATCH}.paths[0].value", "1025 bytes"),
        ({"match": {"headers": [{"name": "x y"}]}}, f"{MATCH}.headers[0].name", "header name"),
        ({"match": {"headers": [{"name": "x", "value": " a"}]}}, f"{MATCH}.headers[0].value", "no white space"),
        ({"match": {"headers": [{"name": "x", "value": "a\r\n"}]}}, f"{MATCH}.headers[0].value", "CR, LF"),
        (
            {"match": {"headers": [{"name": "x", "match": "Present", "value": "a"}]}},
            f"{MATCH}.headers[0].value",
            "takes no value",
        ),
        ({"match": {"headers": [{"name": "x"}]}}, f"{MATCH}.headers[0]", "match Exact needs a value"),
        ({"match": {"headers": [{"name": "x", "match": "Regex"}]}}, f"{MATCH}.headers[0]", "Regex needs a value"),
        (
            {"match": {"headers": [{"name": "x", "match": "Regex", "value": ""}]}},
            f"{MATCH}.headers[0].value",
            "found everywhere",
        ),
        ({"match": {"headers": [{"name": "x", "value": "y"}] * 33}}, MATCH, "at most 32"),
        ({"match": {"queryParameters": [{"name": "", "value": "y"}]}}, f"{MATCH}.queryParameters[0].name", "between 1"),
        (
            {"match": {"queryParameters": [{"name": "\udc80", "value": "y"}]}},
            f"{MATCH}.queryParameters[0].name",
            "UTF-8",
        ),
        ({"match": {"queryParameters": [{"name": "a"}] * (MAX_NAMES + 1)}}, f"{MATCH}.queryParameters", "at most 64"),
        ({"match": {"serverNames": ["a b"]}}, f"{MATCH}.serverNames[0]", "no DNS name"),
        ({"match": {"serverNames": ["a.*"]}}, f"{MATCH}.serverNames[0]", "no DNS name"),
        ({"match": {"sources": ["10.0.0.1/8"]}}, f"{MATCH}.sources[0]", "no network"),
        ({"match": {"sources": ["10.0.0.0/8"] * (MAX_SOURCES + 1)}}, f"{MATCH}.sources", "at most 256"),
        ({"match": {"clientCertificates": ["a*b"]}}, f"{MATCH}.clientCertificates[0]", "comes last"),
        ({"match": {"clientCertificates": [""]}}, f"{MATCH}.clientCertificates[0]", "printable"),
        ({"match": {"clientCertificates": ["a\n"]}}, f"{MATCH}.clientCertificates[0]", "printable"),
        ({"except": {}}, "spec.rules[0].except", "never apply"),
        ({"except": {"sources": ["x"]}}, "spec.rules[0].except.sources[0]", "no network"),
        ({"patterns": [{}]}, "spec.rules[0].patterns[0]", "exactly one of builtin and regex"),
        ({"patterns": [{"builtin": "Jwt", "regex": "a"}]}, "spec.rules[0].patterns[0]", "exactly one of"),
        ({"patterns": [{"builtin": "Cards"}]}, "spec.rules[0].patterns[0].builtin", "'Cards' is none of"),
        ({"patterns": [{"regex": ""}]}, "spec.rules[0].patterns[0].regex", "is empty"),
        ({"patterns": [{"regex": "é" * 513}]}, "spec.rules[0].patterns[0].regex", "1026 bytes"),
        ({"patterns": [{"regex": "\udc80"}]}, "spec.rules[0].patterns[0].regex", "UTF-8"),
        ({"patterns": [{"regex": "a"}] * (MAX_PATTERNS + 1)}, "spec.rules[0].patterns", "at most 32"),
        ({"threshold": {"count": 0, "period": "1m"}}, "spec.rules[0].threshold.count", "at least 1"),
        ({"threshold": {"count": 5, "period": "60"}}, "spec.rules[0].threshold.period", "not a duration"),
        ({"threshold": {"count": 5, "period": "1m", "by": "Pod"}}, "spec.rules[0].threshold.by", "none of the values"),
        ({"rateLimit": {"count": 5, "period": "25h"}}, "spec.rules[0].rateLimit.period", "between 1s and 24h"),
    ],
)
def test_faults_of_a_rule(rule, path, reason):
    with pytest.raises(FieldError) as caught:
        policy(rule=rule)
    assert caught.value.path == path
    assert reason in caught.value.reason


@pytest.mark.parametrize(
    ("spec", "path", "reason"),
    [
        (SPEC, "spec", "lacks namespaceSelector"),
        ({"namespaceSelector": {}, "rules": SPEC["rules"]}, "spec", "lacks podSelector"),
        (SPEC | {"namespaceSelector": {}, "workload": "orders"}, "spec.workload", "belong to namespaces"),
    ],
)
def test_faults_of_a_policy_of_the_cluster(spec, path, reason):
    with pytest.raises(FieldError) as caught:
        cluster_inspection_policy({"metadata": {"name": "base"}, "spec": spec})
    assert (caught.value.path, reason in caught.value.reason) == (path, True)


def test_a_fault_in_a_manifest_has_its_line():
    inventory, [error] = combine(load_files({"policy.yaml": YAML.replace("value: /admin", "value: admin")}))
    assert inventory.policies == ()
    assert str(error) == (
        "policy.yaml, document 1, line 14: InspectionPolicy shop/orders: spec.rules[0].match.paths[0].value: "
        "a path begins with /"
    )


def test_two_policies_of_one_name_are_told():
    twice = YAML + "---\n" + YAML
    inventory, errors = combine(load_files({"policy.yaml": twice}))
    assert len(inventory.policies) == 1
    assert "the same object stands in" in errors[0].reason


def test_a_manifest_of_the_cluster_is_named_without_namespace():
    text = YAML.replace("kind: Ins", "kind: ClusterIns").replace(", namespace: shop", "")
    inventory, [error] = combine(load_files({"policy.yaml": text}))
    assert error.subject == "ClusterInspectionPolicy orders"
    assert "lacks namespaceSelector" in error.reason
    assert not inventory.policies


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["Log", "a", "10.0.0.0/8"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["rules", "podSelector", "name", "action", "match", "patterns", "regex", "paths", "value", "ports"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=examples())
@given(_JSON)
def test_only_the_documented_error(spec):
    for convert in (inspection_policy, cluster_inspection_policy):
        told = "nothing"
        try:
            convert({"metadata": {"name": "p"}, "spec": spec})
        except FieldError as error:
            told = error.reason
        assert told
        assert told.isprintable()


def test_a_policy_that_cannot_be_parsed_is_still_there():
    files = {
        "a.yaml": YAML.replace("value: /admin", "value: admin"),
        "b.yaml": YAML.replace("kind: Ins", "kind: ClusterIns").replace(", namespace: shop", ""),
        "c.yaml": "apiVersion: sidestep.dev/v1alpha1\nkind: InspectionPolicy\nmetadata: {name: 7}\nspec: {}",
    }
    inventory, errors = combine(load_files(files))
    assert inventory.policies == ()
    assert len(errors) == 3
    assert inventory.invalid_policies == {
        ("shop", "orders"): "spec.rules[0].match.paths[0].value: a path begins with /",
        ("", "orders"): "spec: lacks namespaceSelector ({} selects all)",
    }
    assert combine(_unpickled(pickle.dumps((load_files(files), {})))[0])[0] == inventory


def test_an_illegible_document_ends_no_policy_of_its_file():
    before = load_file("p.yaml", YAML)
    other = YAML.replace("name: orders,", "name: other,")
    kept = keep_policies(load_file("p.yaml", other + "---\n{a: [\n"), before)
    assert [each.subject for each in kept.declared] == ["InspectionPolicy shop/other", "InspectionPolicy shop/orders"]
    assert keep_policies(load_file("p.yaml", other), before) == load_file("p.yaml", other)
    named = load_file("p.yaml", other + "---\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\n")
    assert named.errors
    assert keep_policies(named, before) == named
    edited = keep_policies(load_file("p.yaml", "}\n---\n" + YAML.replace("Enforce", "Detect")), before)
    assert len(edited.declared) == 1


def test_namespaces_have_labels():
    text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: a, b: c}}"
    inventory, _ = combine(load_files({"n.yaml": text}))
    assert inventory.namespace_labels == {"shop": {"b": "c", "team": "a"}}
    assert inventory.labels_of("shop") == {"b": "c", "team": "a", "kubernetes.io/metadata.name": "shop"}
    assert inventory.labels_of("other") == {"kubernetes.io/metadata.name": "other"}
    many = ", ".join(f"l{number:04}: x" for number in range(MAX_LABELS + 9))
    inventory, _ = combine(load_files({"n.yaml": text.replace("b: c", many)}))
    assert len(inventory.namespace_labels["shop"]) == MAX_LABELS


def test_the_requests_of_probes_are_read():
    container = {
        "name": "app",
        "ports": [{"containerPort": 8443, "name": "https"}],
        "livenessProbe": {"httpGet": {"port": "https", "path": "healthz?a=b"}},
        "readinessProbe": {"httpGet": {"port": 8443}},
        "startupProbe": {"grpc": {"port": 9000}},
    }
    other = {"name": "b", "livenessProbe": {"tcpSocket": {"port": 9001}}}
    other["readinessProbe"] = {"httpGet": {"port": 9002, "path": "/" + "x" * MAX_PROBE_PATH}}
    document = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "a"},
        "spec": {"containers": [container, other]},
    }
    pod = converter("", "Pod")(document).pod
    assert pod.probe_ports == {8443, 9000, 9001, 9002}
    assert pod.probes == {
        8443: {("GET", "/healthz?a=b"), ("GET", "/")},
        9000: {("POST", "/grpc.health.v1.Health/Check")},
    }
