"""`egress` of inspection policies: a whole block, the defaults, and the path and reason of each fault."""

import re
from ipaddress import ip_network

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.config.field_error import FieldError
from sidestep.config.inspection import cluster_inspection_policy, inspection_policy
from sidestep.config.inspection_fields import MAX_DESTINATIONS, MAX_NAMES, MAX_PORTS, MAX_RULES, MAX_SOURCES
from sidestep.model.config_map_key import ConfigMapKey
from sidestep.model.egress import EVERYTHING, Destination, EgressMode, Quic, SecretRef
from sidestep.model.filter import Filter, PathCondition, PathTest
from sidestep.model.inspection import Action, Direction, Egress, FailurePolicy, Match, Mode, Pattern, Rule
from tests.effort import examples

JA4 = "t13d1516h2_8daaf6152771_e5627efa2ab1"
JA3 = "0149f47eabf9a20d0893e2a44e5a6323"


def issuer(**changes):
    return {"secretRef": {"name": "egress-ca"} | changes}


EGRESS = {
    "failurePolicy": "Fail",
    "quic": "Block",
    "issuer": issuer(),
    "destinations": [
        {"name": "api", "mode": "Originate", "names": ["API.example.com", "*.example.org"], "ports": [80, 80, 8080]},
        {"name": "partners", "mode": "Decrypt", "networks": ["203.0.113.0/24", "2001:db8::/32"]},
        {"name": "others"},
    ],
    "rules": [
        {
            "name": "no-paste",
            "action": "Block",
            "match": {"serverNames": ["paste.test"], "networks": ["198.51.100.7"], "ports": [443]},
            "except": {"fingerprints": [JA4, JA3]},
        },
        {"name": "keys", "action": "Alert", "direction": "Request", "patterns": [{"regex": "sk_live"}]},
    ],
}


def policy(egress, **changes):
    spec = {"podSelector": {}, "egress": egress} | changes
    return inspection_policy({"metadata": {"name": "p", "namespace": "shop"}, "spec": spec})


def test_a_whole_block():
    assert policy(EGRESS, mode="Enforce").egress == Egress(
        destinations=(
            Destination("api", EgressMode.ORIGINATE, ("api.example.com", "*.example.org"), (), (80, 8080)),
            Destination(
                "partners", EgressMode.DECRYPT, (), (ip_network("203.0.113.0/24"), ip_network("2001:db8::/32"))
            ),
            Destination("others"),
        ),
        rules=(
            Rule(
                "no-paste",
                Action.BLOCK,
                match=Match(server_names=("paste.test",), networks=(ip_network("198.51.100.7"),), ports=(443,)),
                exception=Match(fingerprints=(JA4, JA3)),
            ),
            Rule("keys", Action.ALERT, patterns=(Pattern(regex="sk_live"),)),
        ),
        failure_policy=FailurePolicy.FAIL,
        quic=Quic.BLOCK,
        issuer=SecretRef("shop", "egress-ca"),
    )


def test_an_empty_block_observes_what_is_external():
    found = policy({})
    assert found.egress == Egress(EVERYTHING)
    assert [each.mode for each in EVERYTHING] == [EgressMode.OBSERVE]
    assert not found.is_inward
    assert policy({}, rules=[{"name": "a", "action": "Log"}]).is_inward


def test_the_policy_of_what_pods_send():
    found = policy(EGRESS, mode="Enforce", redact={"headers": ["X-Key"]})
    outward = found.outward
    assert (outward.mode, outward.failure_policy, outward.closes) == (Mode.ENFORCE, FailurePolicy.FAIL, True)
    assert outward.rules == found.egress.rules
    assert outward.redaction.headers == ("x-key",)
    assert outward.display == found.display
    assert (outward.sample_percent, outward.ids, found.ids_rules, found.texts) == (0, None, None, ())
    assert (outward.egress, outward.outward) == (None, None)
    assert not found.closes, "its failure policy for what pods accept is another one"


RULES = {"rulesFrom": {"configMapRef": {"name": "ids-rules", "key": "local.rules"}}}


def test_engines_of_its_own():
    """They are about the connections that pods make alone, as `log` and `ids` of the policy are about the others."""
    found = policy({"log": {"samplePercent": 5}, "ids": RULES})
    text = ConfigMapKey("shop", "ids-rules", "local.rules")
    assert (found.sample_percent, found.ids, found.is_inward) == (0, None, False)
    assert (found.outward.sample_percent, found.outward.ids) == (5, text)
    assert (found.ids_rules, found.texts) == (text, (text,))


def test_both_directions_have_one_text_of_rules():
    found = policy({"ids": RULES}, ids=RULES, log={"samplePercent": 5})
    assert (found.is_inward, found.ids, found.outward.ids) == (True, found.ids_rules, found.ids_rules)
    assert (found.sample_percent, found.outward.sample_percent) == (5, 0)
    assert len(found.texts) == 1
    other = {"rulesFrom": {"configMapRef": {"name": "others", "key": "local.rules"}}}
    with pytest.raises(FieldError, match="a policy has one, for both directions") as caught:
        policy({"ids": other}, ids=RULES)
    assert caught.value.path == "spec.egress.ids"


@pytest.mark.parametrize(
    ("said", "path"),
    [
        ({"log": {"samplePercent": 5}}, "spec.log"),
        ({"failurePolicy": "Fail"}, "spec.failurePolicy"),
        ({"existingConnections": "Reset"}, "spec.existingConnections"),
    ],
)
def test_what_is_about_accepted_connections_is_refused_where_nothing_else_is_said_of_those(said, path):
    with pytest.raises(FieldError, match="is about connections that the pod accepts") as caught:
        policy({}, **said)
    assert caught.value.path == path
    if path != "spec.existingConnections":
        [written] = re.findall("write `(.*)`", caught.value.reason)
        assert policy(yaml.safe_load(written)["egress"]).outward
    assert policy({}, rules=[{"name": "a", "action": "Log"}], **said).is_inward


@pytest.mark.parametrize(
    ("said", "path"),
    [({"log": {"samplePercent": 5}}, "log.samplePercent"), ({"ids": RULES}, "ids"), ({"waf": {}}, "waf")],
)
def test_engines_are_refused_where_nothing_is_read(said, path):
    observed = [{"name": "https", "ports": [443]}]
    with pytest.raises(FieldError, match="every destination has mode Observe and port 443 only") as caught:
        policy({"destinations": observed} | said)
    assert caught.value.path == f"spec.egress.{path}"
    assert policy({"destinations": [{"name": "any"}]} | said)


def test_a_firewall_has_settings_of_its_own():
    found = policy({"waf": {"paranoiaLevel": 2} | RULES}, mode="Enforce")
    text = ConfigMapKey("shop", "ids-rules", "local.rules")
    assert (found.waf, found.is_inward, found.outward.waf) == (None, False, found.egress.waf)
    assert (found.egress.waf.paranoia, found.waf_rules, found.texts) == (2, text, (text,))
    with pytest.raises(FieldError, match="no rule of the Core Rule Set") as caught:
        policy({"waf": {"excludeRules": [7]}})
    assert caught.value.path == "spec.egress.waf.excludeRules[0]"


def test_firewalls_of_both_directions_have_one_text_of_rules():
    found = policy({"waf": {"paranoiaLevel": 2}}, waf=RULES)
    assert (found.waf.rules_from, found.egress.waf.rules_from) == (found.waf_rules, None)
    assert policy({"waf": RULES}, waf=RULES).waf_rules == found.waf_rules
    other = {"rulesFrom": {"configMapRef": {"name": "others", "key": "local.rules"}}}
    with pytest.raises(FieldError, match="a policy has one, for both directions") as caught:
        policy({"waf": other}, waf=RULES)
    assert caught.value.path == "spec.egress.waf.rulesFrom"


@pytest.mark.parametrize(
    ("rule", "alone"),
    [
        (Rule("a", Action.LOG), True),
        (Rule("a", Action.LOG, match=Match(server_names=("a.test",), ports=(443,))), True),
        (Rule("a", Action.LOG, exception=Match(networks=(ip_network("192.0.2.0/24"),))), True),
        (Rule("a", Action.LOG, patterns=(Pattern(regex="a"),)), False),
        (Rule("a", Action.LOG, Direction.RESPONSE), False),
        (Rule("a", Action.LOG, match=Match(Filter(methods=("GET",)), server_names=("a.test",))), False),
        (Rule("a", Action.LOG, exception=Match(Filter(paths=(PathCondition(PathTest.PREFIX, "/a"),)))), False),
    ],
)
def test_which_rules_look_at_connections_alone(rule, alone):
    assert rule.of_connection is alone


def test_a_policy_of_the_cluster_says_where_its_issuer_is():
    spec = {"podSelector": {}, "namespaceSelector": {}, "egress": EGRESS | {"issuer": issuer(namespace="security")}}
    found = cluster_inspection_policy({"metadata": {"name": "p"}, "spec": spec})
    assert found.egress.issuer == SecretRef("security", "egress-ca")
    with pytest.raises(FieldError, match="belongs to none"):
        cluster_inspection_policy({"metadata": {"name": "p"}, "spec": spec | {"egress": EGRESS}})


def test_authorities_of_servers():
    assert policy(EGRESS | {"trust": issuer()}).egress.trust == SecretRef("shop", "egress-ca")
    with pytest.raises(FieldError, match="mode Observe, in which servers are verified by the pod alone"):
        policy({"trust": issuer()})
    with pytest.raises(FieldError, match="only a ClusterInspectionPolicy names one"):
        policy(EGRESS | {"trust": issuer(namespace="security")})


AT = "spec.egress"
BLOCK = {"name": "a", "action": "Block"}


@pytest.mark.parametrize(
    ("egress", "path", "reason"),
    [
        ({"mode": "Observe"}, AT, "has no field mode"),
        ({"failurePolicy": "Close"}, f"{AT}.failurePolicy", "'Close' is none of the values"),
        ({"quic": "Refuse"}, f"{AT}.quic", "'Refuse' is none of the values"),
        ({"destinations": []}, f"{AT}.destinations", "is empty"),
        ({"destinations": [{}]}, f"{AT}.destinations[0]", "lacks name"),
        ({"destinations": [{"name": "A"}]}, f"{AT}.destinations[0].name", "is no name"),
        ({"destinations": [{"name": "a"}, {"name": "a"}]}, f"{AT}.destinations[1].name", "earlier one"),
        ({"destinations": [{"name": "a", "mode": "Open"}]}, f"{AT}.destinations[0].mode", "none of the values"),
        ({"destinations": [{"name": "a", "hosts": []}]}, f"{AT}.destinations[0]", "has no field hosts"),
        ({"destinations": [{"name": "a", "names": ["a.*"]}]}, f"{AT}.destinations[0].names[0]", "no DNS name"),
        (
            {"destinations": [{"name": "a", "networks": ["203.0.113.1/24"]}]},
            f"{AT}.destinations[0].networks[0]",
            "no network",
        ),
        ({"destinations": [{"name": "a", "ports": [65536]}]}, f"{AT}.destinations[0].ports[0]", "at most 65535"),
        (
            {"destinations": [{"name": "a", "ports": ["https"]}]},
            f"{AT}.destinations[0].ports[0]",
            "must be a whole number",
        ),
        (
            {"destinations": [{"name": "a"}] * (MAX_DESTINATIONS + 1)},
            f"{AT}.destinations",
            f"at most {MAX_DESTINATIONS}",
        ),
        (
            {"destinations": [{"name": "a", "networks": ["192.0.2.1"] * (MAX_SOURCES + 1)}]},
            f"{AT}.destinations[0].networks",
            f"at most {MAX_SOURCES}",
        ),
        (
            {"destinations": [{"name": "a", "names": ["a.test"] * (MAX_NAMES + 1)}]},
            f"{AT}.destinations[0].names",
            f"at most {MAX_NAMES}",
        ),
        (
            {"destinations": [{"name": "a", "ports": [1] * (MAX_PORTS + 1)}]},
            f"{AT}.destinations[0].ports",
            f"at most {MAX_PORTS}",
        ),
        ({"rules": [BLOCK] * (MAX_RULES + 1)}, f"{AT}.rules", f"at most {MAX_RULES}"),
        ({"rules": [BLOCK, BLOCK]}, f"{AT}.rules[1].name", "earlier rule"),
        ({"rules": [BLOCK | {"match": {"sources": ["10.0.0.0/8"]}}]}, f"{AT}.rules[0].match", "has no field sources"),
        (
            {"rules": [BLOCK | {"match": {"clientCertificates": ["CN=a"]}}]},
            f"{AT}.rules[0].match",
            "has no field clientCertificates",
        ),
        ({"rules": [BLOCK | {"match": {"networks": ["x"]}}]}, f"{AT}.rules[0].match.networks[0]", "no network"),
        ({"rules": [BLOCK | {"match": {"fingerprints": ["t13"]}}]}, f"{AT}.rules[0].match.fingerprints[0]", "no JA3"),
        (
            {"rules": [BLOCK | {"match": {"fingerprints": [JA3.upper()]}}]},
            f"{AT}.rules[0].match.fingerprints[0]",
            "32 hexadecimal digits",
        ),
        ({"rules": [BLOCK | {"except": {}}]}, f"{AT}.rules[0].except", "never apply"),
        (
            {"destinations": [{"name": "a", "ports": [443]}], "rules": [BLOCK | {"patterns": [{"builtin": "Jwt"}]}]},
            f"{AT}.rules[0]",
            "every destination has mode Observe and port 443 only",
        ),
        (
            {
                "destinations": [{"name": "a", "ports": [443]}],
                "rules": [BLOCK, BLOCK | {"name": "b", "direction": "Response"}],
            },
            f"{AT}.rules[1]",
            "looks at requests or responses",
        ),
        (
            {"rules": [{"name": f"r{n}", "action": "Log", "patterns": [{"regex": "a"}] * 32} for n in range(17)]},
            f"{AT}.rules",
            "544 patterns",
        ),
        ({"issuer": issuer()}, f"{AT}.issuer", "no destination has mode Decrypt"),
        ({"destinations": [{"name": "a", "mode": "Decrypt"}]}, f"{AT}.issuer", "is missing"),
        (EGRESS | {"issuer": {}}, f"{AT}.issuer", "lacks secretRef"),
        (EGRESS | {"issuer": issuer(name="A")}, f"{AT}.issuer.secretRef.name", "not a Kubernetes name"),
        (EGRESS | {"issuer": issuer(namespace="bank")}, f"{AT}.issuer.secretRef.namespace", "only a Cluster"),
    ],
)
def test_faults(egress, path, reason):
    with pytest.raises(FieldError) as caught:
        policy(egress)
    assert caught.value.path == path
    assert reason in caught.value.reason


def test_conditions_on_what_pods_make_are_no_conditions_on_what_they_accept():
    for kind, value in (("networks", ["192.0.2.1"]), ("ports", [443]), ("fingerprints", [JA4])):
        with pytest.raises(FieldError, match=f"has no field {kind}"):
            policy({}, rules=[BLOCK | {"match": {kind: value}}])


def test_ports_without_anything_about_what_the_pod_accepts():
    with pytest.raises(FieldError, match="nothing is said of connections that it accepts"):
        policy({}, ports=[8443])
    assert policy({}, ports=[8443], rules=[BLOCK]).ports == (8443,)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["Log", "a", "10.0.0.0/8", JA4]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "names", "networks", "ports", "mode", "match", "secretRef"]), inner)
    ),
    max_leaves=10,
)


@settings(max_examples=examples(200))
@given(st.dictionaries(st.sampled_from(["destinations", "rules", "quic", "failurePolicy", "issuer"]), _JSON))
def test_any_block_is_a_policy_or_a_fault_with_its_path(egress):
    fault = None
    try:
        found = policy(egress)
    except FieldError as error:
        fault = error
    if fault is None:
        assert found.egress.destinations
    else:
        assert fault.path.startswith("spec")
        assert fault.reason
