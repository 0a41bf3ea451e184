"""Which policies apply where, and what of a plan they decide: each rule of precedence."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from msgspec.structs import replace

from sidestep.config import annotation_names as names
from sidestep.config.node_settings import NodeSettings, resolve
from sidestep.model.condition import ConditionType
from sidestep.model.egress import Destination, EgressMode, SecretRef
from sidestep.model.errors import RefusedError
from sidestep.model.filter import Filter
from sidestep.model.inspection import (
    Action,
    Egress,
    ExistingConnections,
    FailurePolicy,
    InspectionPolicy,
    Mode,
    Rule,
)
from sidestep.model.intercept import Allow, Kind, WorkloadRef
from sidestep.model.pod import ContainerPort, Family, Location, Owner, PodKey, ServicePort, Transport
from sidestep.model.workload import LabelSelector
from sidestep.node.planning import inspection
from sidestep.node.planning.admission import admit
from sidestep.node.planning.inspection import Placements, PlannedPolicy, placed
from sidestep.node.planning.plan import CertificateFacts, PodPlan
from sidestep.node.planning.planner import plan
from sidestep.node.planning.port_plan import PortPlans
from sidestep.policy.egress_rows import to_egress_snapshot
from sidestep.policy.inspection_rows import to_snapshot
from sidestep.policy.survey import CertificateKey, Side
from sidestep.steering.layout import STEERED_MAX
from tests.unit.node.scenes import CERTIFIED, DNS, HTTPS, PLAIN, intercept, inventory, pod, service

POD = PodKey("shop", "orders-1")
KEY = CertificateKey(POD, 8443, Side.DOWNSTREAM)
GOOD = {KEY: CertificateFacts("identity:a", "trust:a", "orders.shop")}
GLOBAL = Filter()
ALL = LabelSelector()
ORDERS = LabelSelector({"app": "orders"})


def policy(name="p", *, namespace="shop", size=100, **fields):
    fields.setdefault("rules", (Rule("all", Action.BLOCK),))
    if "workload" not in fields:
        fields.setdefault("pod_selector", ORDERS)
    if not namespace:
        fields.setdefault("namespace_selector", ALL)
    written = InspectionPolicy(name, namespace, **fields)
    return PlannedPolicy(written, to_snapshot(written), size)


def enforced(name="p", **fields):
    return policy(name, mode=Mode.ENFORCE, **fields)


def closing(name="p", **fields):
    return enforced(name, failure_policy=FailurePolicy.FAIL, **fields)


def planned(*policies, stock=None, intercepts=(), settings=None, certificates=GOOD, **fields):
    fields.setdefault("node_annotations", {})
    return plan(
        stock or inventory(), intercepts, settings or NodeSettings(), certificates, policies=tuple(policies), **fields
    )


def applying(result, pod=POD):
    """The policies that the proxy of a pod is told, by port."""
    found = result.pods.get(pod)
    if found is None:
        return {}
    return {port.number: [each.name for each in port.snapshot.policies] for port in found.ports}


def reasons(result, pod=POD):
    return [(condition.type, condition.subject) for condition in result.conditions.get(pod, ())]


def outward(name="p", **fields):
    """A policy that is about connections that pods make, and with rules about those that they accept, too."""
    made = policy(name, **({"egress": Egress()} | fields))
    return replace(made, egress=to_egress_snapshot(made.policy))


# --- which pods and ports -------------------------------------------------------------------------------------------


def test_a_policy_steers_every_port_that_may_speak_http_without_any_intercept():
    result = planned(policy())
    assert applying(result) == {8080: ["p"], 8443: ["p"]}
    https = result.pods[POD].ports[1]
    assert (https.snapshot.identity, https.snapshot.rules, https.needs_app) == ("identity:a", (), True)
    assert [each.key for each in result.certificates] == [KEY]
    assert result.inspected == {POD: {8080: ("shop/p",), 8443: ("shop/p",)}}
    assert result.conditions == result.not_inspected == {}


def test_a_policy_about_what_pods_send_makes_a_target_without_ports():
    each = outward(rules=())
    result = planned(each)
    assert result.pods == {POD: PodPlan(inventory().pods[POD], (), (each.egress,))}
    assert result.outward == {POD: ("shop/p",)}
    assert result.inspected == result.conditions == result.not_inspected == {}
    assert result.certificates == ()


def test_an_access_makes_no_connections_past_a_policy_that_enforces():
    access = intercept("u1", kind=Kind.WIRETAP, port="", filter=Filter(), allow=frozenset({Allow.NETWORK}))
    result = planned(outward(rules=(), mode=Mode.ENFORCE), intercepts=[access])
    assert result.pods[POD].access == ()
    assert "shop/p enforces rules" in result.refusals["u1", POD]
    assert ConditionType.POLICY_ENFORCED in {kind for kind, _ in reasons(result)}
    result = planned(outward(rules=()), intercepts=[access])
    assert ([each.uid for each in result.pods[POD].access], result.refusals) == (["u1"], {})


def test_what_else_such_a_policy_says_is_carried_out():
    result = planned(outward())
    assert applying(result) == {8080: ["p"], 8443: ["p"]}
    assert len(result.pods[POD].egress) == 1


def test_policies_about_what_pods_send_take_no_room_from_others():
    many = [outward(f"a{at}", rules=()) for at in range(inspection.MAX_POLICIES)]
    result = planned(*many, policy("z"))
    assert applying(result) == {8080: ["z"], 8443: ["z"]}
    assert len(result.pods[POD].egress) == inspection.MAX_POLICIES
    result = planned(*many, outward("z", rules=()))
    [condition] = result.conditions[POD]
    assert condition.text.startswith("not inspected by shop/z: more than")
    assert result.not_inspected.keys() == {("shop/z", POD)}


def test_what_pods_send_is_left_alone_where_the_node_refuses():
    result = planned(outward(rules=()), settings=resolve({names.INSPECTION: "false"})[0])
    assert result.pods == result.outward == {}
    assert ("shop/p", POD) in result.not_inspected
    result = planned(outward(rules=()), settings=NodeSettings(max_pods=0))
    assert result.pods == {}
    assert ("shop/p", POD) in result.not_inspected


ISSUER = CertificateKey(POD, 0, Side.DOWNSTREAM, "shop/ca")
TRUST = CertificateKey(POD, 0, Side.UPSTREAM, "security/roots")
OPENING = Egress(
    (Destination("d", EgressMode.DECRYPT),), issuer=SecretRef("shop", "ca"), trust=SecretRef("security", "roots")
)


def test_a_policy_that_opens_wants_its_secrets_and_is_told_with_what_is_in_them():
    each = outward(rules=(), egress=OPENING)
    result = planned(each, certificates={})
    assert POD in result.waiting
    assert [(wanted.key, wanted.namespace, wanted.source.value) for wanted in result.certificates] == [
        (ISSUER, "shop", "ca"),
        (TRUST, "security", "roots"),
    ]
    found = {ISSUER: CertificateFacts(identity="identity:ca"), TRUST: CertificateFacts(trust="trust:roots")}
    [told] = planned(each, certificates=found).pods[POD].egress
    assert told.credentials == {"identity:ca": "issuer", "trust:roots": "trust"}
    assert told.opens


def test_two_policies_that_name_one_secret_want_it_once():
    each = outward(rules=(), egress=OPENING)
    other = outward("q", rules=(), egress=OPENING)
    assert len(planned(each, other, certificates={}).certificates) == 2


def test_without_its_authorities_a_policy_opens_nothing_and_without_its_ca_it_has_none():
    each = outward(rules=(), egress=OPENING)
    [told] = (
        planned(each, certificates={ISSUER: CertificateFacts(identity="i"), TRUST: CertificateFacts()}).pods[POD].egress
    )
    assert (told.credentials, told.opens) == ({}, False)
    [told] = (
        planned(each, certificates={ISSUER: CertificateFacts(), TRUST: CertificateFacts(trust="t")}).pods[POD].egress
    )
    assert (told.credentials, told.opens) == ({"t": "trust"}, True)


def test_nothing_is_steered_once_the_policy_is_gone():
    plans, placements = PortPlans(), Placements()
    stock = inventory()
    assert applying(planned(policy(), stock=stock, port_plans=plans, placements=placements))
    assert planned(stock=stock, port_plans=plans, placements=placements).pods == {}


@pytest.mark.parametrize(
    ("ports", "meant"),
    [((8443,), {8443}), (("https",), {8443}), (("web", 8443), {8080, 8443}), ((9000,), {9000}), ((8443, 8443), {8443})],
)
def test_ports_are_named_by_number_or_name(ports, meant):
    assert set(applying(planned(policy(ports=ports)))) == meant


def test_a_port_that_the_pod_lacks_is_told_and_the_others_are_inspected():
    result = planned(policy(ports=("grpc", "dns", "web")))
    assert applying(result) == {8080: ["p"]}
    assert result.not_inspected == {("shop/p", POD): "the pod has no TCP port grpc, dns"}
    assert reasons(result) == [(ConditionType.NOT_INSPECTED, "pod shop/orders-1")]


def test_ports_to_which_services_lead_need_not_be_declared():
    to_9000 = service(ServicePort(80, 9000), ServicePort(53, 5353, transport=Transport.UDP))
    assert set(applying(planned(policy(), stock=inventory(services=(to_9000,))))) == {8080, 8443, 9000}
    assert set(applying(planned(policy(ports=(8080,)), stock=inventory(services=(to_9000,))))) == {8080}


def test_a_port_that_rules_http_out_is_inspected_only_where_it_is_named():
    redis = service(ServicePort(80, "web", app_protocol="tcp"))
    assert set(applying(planned(policy(), stock=inventory(services=(redis,))))) == {8443}
    result = planned(policy(ports=("web",)), stock=inventory(services=(redis,)))
    assert set(applying(result)) == {8080}
    assert reasons(result) == [(ConditionType.NOT_INSPECTED, "pod shop/orders-1 port 8080")]


def test_an_undeclared_port_that_an_intercept_takes_is_inspected_too():
    assert 9999 in applying(planned(policy(), intercepts=[intercept(port="9999")]))


def test_a_policy_selects_pods_of_its_namespace_by_labels_or_workload():
    carts = replace(pod("carts-1"), labels={"app": "carts"}, owners=())
    elsewhere = pod("orders-9", namespace="other")
    stock = inventory(pod(), carts, elsewhere)

    def selected(**fields):
        return {key.name for key in placed(stock, (policy(**fields),))}

    assert selected() == {"orders-1"}
    assert selected(pod_selector=ALL) == {"orders-1", "carts-1"}
    assert selected(workload=WorkloadRef("orders", "deployment")) == {"orders-1"}
    assert selected(workload=WorkloadRef("carts-1", None)) == {"carts-1"}
    assert selected(workload=WorkloadRef("none", None)) == set()


def test_another_object_of_a_workloads_name_takes_no_pod_out_of_a_policy():
    alone = replace(pod("orders"), labels={}, owners=())
    of_job = replace(pod("orders-x"), labels={}, owners=(Owner("job", "orders"),))
    stock = inventory(pod(), alone, of_job)

    def selected(kind):
        return {key.name for key in placed(stock, (policy(workload=WorkloadRef("orders", kind)),))}

    assert selected(None) == {"orders", "orders-1", "orders-x"}
    assert selected("deployments") == {"orders-1"}
    assert selected("pod") == {"orders"}


def test_a_policy_of_the_cluster_selects_namespaces_by_labels_and_by_their_name():
    stock = inventory(
        pod(),
        pod("orders-9", namespace="other"),
        namespace_labels={"shop": {"team": "a"}, "none": {"team": "a"}},
    )

    def selected(**labels):
        found = placed(stock, (policy(namespace="", namespace_selector=LabelSelector(labels)),))
        return {key.namespace for key in found}

    assert selected() == {"shop", "other"}
    assert selected(team="a") == {"shop"}
    assert selected(**{"kubernetes.io/metadata.name": "other"}) == {"other"}
    assert selected(team="b") == set()


def test_a_plan_tells_the_labels_of_its_namespaces_while_there_are_policies():
    stock = inventory(pod(), namespace_labels={"shop": {"team": "a"}, "none": {"team": "a"}})
    elsewhere = policy(namespace="bank")
    expected = {"shop": {"team": "a", "kubernetes.io/metadata.name": "shop"}}
    assert planned(elsewhere, stock=dataclasses.replace(stock, policies=(elsewhere,))).namespace_labels == expected
    assert planned(stock=stock).namespace_labels == {}


def test_policies_of_the_cluster_come_first():
    base, mine = enforced("z", namespace=""), policy("a")
    result = planned(base, mine)
    assert applying(result)[8443] == ["z", "a"]
    assert result.inspected[POD][8443] == ("z", "shop/a")


def test_ended_pods_are_not_inspected():
    assert planned(policy(), stock=inventory(pod(ended=True))).pods == {}


def test_the_plan_does_not_depend_on_the_order_of_intercepts_and_pods():
    pods = [pod(f"orders-{number}") for number in range(3)]
    wanting = [intercept("u1"), intercept("u2", port="8080")]
    policies = (enforced("z", namespace=""), policy("a"))
    results = [
        planned(*policies, stock=inventory(*some), intercepts=others)
        for some in itertools.permutations(pods)
        for others in itertools.permutations(wanting)
    ]
    assert all(result == results[0] for result in results)


# --- where a policy is not carried out ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotations", "word"),
    [({names.ENABLED: "false"}, "switched off"), ({names.NAMESPACES: "other"}, "may not be steered")],
)
def test_a_node_that_refuses_a_pod_does_not_inspect_it(annotations, word):
    settings, _ = resolve(annotations)
    for each in (policy(), closing()):
        result = planned(each, settings=settings)
        assert result.pods == {}
        assert word in result.not_inspected["shop/p", POD]
        assert reasons(result) == [(ConditionType.NOT_INSPECTED, "pod shop/orders-1")]


def test_a_pod_on_the_hosts_network_is_open_and_told():
    result = planned(closing(), stock=inventory(pod(host_network=True)))
    assert result.pods == {}
    assert "host's network" in result.not_inspected["shop/p", POD]


def test_a_node_may_switch_inspection_off_and_go_on_with_intercepts():
    result = planned(closing(), settings=NodeSettings(inspection=False), intercepts=[intercept()])
    assert applying(result) == {8443: []}
    assert names.INSPECTION in result.not_inspected["shop/p", POD]


def test_policies_take_targets_before_intercepts_and_the_strictest_first():
    others = [pod(f"orders-{number}", annotations={}) for number in range(4)]
    labelled = [replace(each, labels={"app": each.key.name}) for each in others]
    by_name = [LabelSelector({"app": each.key.name}) for each in others]
    policies = (policy("a", pod_selector=by_name[1]), closing("b", pod_selector=by_name[3]))
    policies = (*policies, enforced("c", pod_selector=by_name[2]))
    wanting = [intercept(port="8080", created=1.0)]

    def targets(most):
        settings = NodeSettings(max_pods=most)
        return planned(*policies, stock=inventory(*labelled), intercepts=wanting, settings=settings)

    assert [set(targets(most).pods) for most in (1, 2, 3, 4)] == [
        {others[3].key},
        {others[3].key, others[2].key},
        {others[3].key, others[2].key, others[1].key},
        {each.key for each in others},
    ]
    result = targets(2)
    assert "max-pods" in result.not_inspected["shop/a", others[1].key]
    assert "max-pods" in result.refusals["u1", others[0].key]
    assert ("u1", others[1].key) in result.refusals


def test_too_many_or_too_large_policies_are_left_out_by_their_order():
    many = tuple(policy(f"p{number:03}") for number in range(inspection.MAX_POLICIES + 1))
    result = planned(*many)
    assert len(applying(result)[8443]) == inspection.MAX_POLICIES
    last = many[-1].display
    assert list(result.not_inspected) == [(last, POD)]
    large = (policy("a", size=inspection.MAX_BYTES // 2), policy("b", size=1), policy("c", ports=("web",), size=1))
    result = planned(*large)
    assert applying(result) == {8080: ["a"], 8443: ["a"]}
    assert {name for name, _ in result.not_inspected} == {"shop/b", "shop/c"}
    base = replace(policy("z", namespace=""), instructions=inspection.MAX_INSTRUCTIONS)
    result = planned(base, replace(policy("a"), instructions=1), policy("b"))
    assert applying(result)[8443] == ["z", "b"]
    assert "too large together" in result.not_inspected["shop/a", POD]


# --- TLS ------------------------------------------------------------------------------------------------------------

UNUSABLE = [
    pytest.param({KEY: CertificateFacts(problem="expired")}, CERTIFIED, id="invalid"),
    pytest.param({KEY: CertificateFacts(pending="not there")}, CERTIFIED, id="pending"),
    pytest.param({}, {}, id="none"),
    pytest.param(
        {KEY: CertificateFacts("identity:a")}, {**CERTIFIED, f"{names.CLIENT_AUTH}.8443": "require"}, id="no-ca"
    ),
]


@pytest.mark.parametrize("make", [policy, enforced, closing])
@pytest.mark.parametrize(("certificates", "annotations"), UNUSABLE)
def test_a_tls_port_that_cannot_be_opened_is_steered_without_a_key_and_told(certificates, annotations, make):
    stock = inventory(pod(annotations=annotations))
    result = planned(make(ports=("https",)), stock=stock, certificates=certificates)
    [port] = result.pods[POD].ports
    assert [each.name for each in port.snapshot.policies] == ["p"]
    assert port.snapshot.credentials == {}
    assert reasons(result) == [(ConditionType.NOT_INSPECTED, "pod shop/orders-1 port 8443")]
    assert "8443" in result.not_inspected["shop/p", POD]


@pytest.mark.parametrize(("make", "steers"), [(policy, False), (enforced, False), (closing, True)])
def test_a_port_that_tells_who_its_clients_are_is_left_alone_unless_a_policy_closes(make, steers):
    annotations = {**CERTIFIED, f"{names.FORWARD_CLIENT_CERT}.8443": "enabled"}
    stock = inventory(pod(annotations=annotations))
    result = planned(make(ports=("https",)), stock=stock, certificates={KEY: CertificateFacts(problem="expired")})
    assert (POD in result.pods) is steers
    assert ("shop/p", POD) in result.not_inspected


def test_a_pod_whose_certificate_nobody_has_looked_for_waits():
    result = planned(policy(), certificates={})
    assert result.waiting == {POD}
    assert [each.key for each in result.certificates] == [KEY]


def test_a_pod_that_has_not_been_started_waits():
    starting = replace(pod(), ips=(), location=Location(searched=True))
    assert planned(policy(), stock=inventory(starting)).waiting == {POD}


# --- beside intercepts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("created", [0.0, 9.0])
@pytest.mark.parametrize("make", [enforced, closing])
def test_a_global_intercept_is_refused_where_a_policy_enforces(created, make):
    result = planned(make(), intercepts=[intercept(filter=GLOBAL, created=created)])
    assert "inspection policy shop/p enforces on port 8443" in result.refusals["u1", POD]
    [port] = [each for each in result.pods[POD].ports if each.number == 8443]
    assert port.uids == frozenset()
    assert port.needs_app
    assert (ConditionType.POLICY_ENFORCED, "pod shop/orders-1 port 8443") in reasons(result)


@pytest.mark.parametrize(
    "wanting",
    [
        intercept(),
        intercept(filter=GLOBAL, kind=Kind.WIRETAP),
        intercept(filter=GLOBAL, port="53", transport=Transport.UDP),
    ],
    ids=["filtered", "wiretap", "udp"],
)
def test_others_are_not(wanting):
    result = planned(enforced(), intercepts=[wanting])
    assert result.refusals == {}
    assert "u1" in frozenset().union(*(port.uids for port in result.pods[POD].ports))


def test_neither_is_a_global_one_where_policies_detect_or_apply_to_another_port():
    for each in (policy(), enforced(ports=("web",))):
        result = planned(each, intercepts=[intercept(filter=GLOBAL)])
        assert result.refusals == {}
        [port] = [port for port in result.pods[POD].ports if port.number == 8443]
        assert port.snapshot.global_uid == "u1"
        assert not port.needs_app


def test_where_requests_are_blocked_a_wiretap_of_whole_connections_gets_requests():
    tap = intercept(filter=GLOBAL, kind=Kind.WIRETAP)
    [port] = planned(policy(ports=("https",)), intercepts=[tap]).pods[POD].ports
    assert (port.snapshot.global_taps, port.snapshot.rules) == (("u1",), ())
    [port] = planned(enforced(ports=("https",)), intercepts=[tap]).pods[POD].ports
    assert (port.snapshot.global_taps, [each.uid for each in port.snapshot.rules]) == ((), ["u1"])


def test_an_intercept_at_the_command_line_is_refused_with_the_policy_s_name():
    stock = inventory()

    def refused(wanting, *policies, settings=None):
        found = placed(stock, policies)
        admit(wanting, (), stock, settings or NodeSettings(), GOOD, node_annotations={}, policies=found)

    whole = intercept(filter=GLOBAL)
    with pytest.raises(RefusedError, match="inspection policy shop/p enforces on port 8443"):
        refused(whole, policy("a"), enforced())
    refused(intercept(), enforced())
    refused(whole, policy())
    refused(whole, enforced(ports=("web",)))
    refused(whole, enforced(), settings=NodeSettings(inspection=False))
    refused(intercept(filter=GLOBAL, port="53", transport=Transport.UDP), enforced())


def test_a_global_intercept_that_is_refused_everywhere_stands_in_nobody_s_way():
    whole, mine = intercept(filter=GLOBAL), intercept("u2", created=2.0)
    for each in (policy(), enforced(ports=("web",))):
        result = planned(each, intercepts=[whole, mine])
        assert "exclude each other" in result.refusals["u2", POD]
    result = planned(enforced(), intercepts=[whole, mine])
    assert list(result.refusals) == [("u1", POD)]
    [port] = [port for port in result.pods[POD].ports if port.number == 8443]
    assert port.uids == {"u2"}
    switched_off = planned(enforced(), intercepts=[whole, mine], settings=NodeSettings(inspection=False))
    assert list(switched_off.refusals) == [("u2", POD)]
    carts = replace(pod("orders-2"), labels={"app": "carts"})
    partly = planned(enforced(), intercepts=[whole, mine], stock=inventory(pod(), carts))
    assert {uid for uid, _ in partly.refusals} == {"u1", "u2"}


def test_nor_in_the_way_of_who_asks_at_the_command_line():
    stock = inventory()
    whole, mine = intercept(filter=GLOBAL), intercept("u2", created=2.0)

    def asked(*policies):
        found = placed(stock, policies)
        admit(mine, [whole], stock, NodeSettings(), GOOD, node_annotations={}, policies=found)

    asked(enforced())
    with pytest.raises(RefusedError, match="exclude each other"):
        asked(policy())
    with pytest.raises(RefusedError, match="exclude each other"):
        asked()


# --- what travels ---------------------------------------------------------------------------------------------------


def test_policies_that_reset_older_connections_are_named():
    resetting = policy("a", existing_connections=ExistingConnections.RESET, ports=("web",))
    [port] = planned(resetting, policy("b", ports=("web",))).pods[POD].ports
    assert port.resets == {"policy shop/a"}
    both = planned(resetting, intercepts=[intercept(port="8080", reset_existing=True)])
    assert both.pods[POD].ports[0].resets == {"policy shop/a", "u1"}


def test_the_declared_requests_of_probes_from_the_node_are_exempt():
    probed = pod(probe_ports=frozenset({8443, 8080}), probes={8443: frozenset({("GET", "/healthz"), ("GET", "/b")})})
    result = planned(enforced(), stock=inventory(probed), node_addresses=("10.9.0.1",), intercepts=[intercept()])
    plain, https = (port.snapshot for port in result.pods[POD].ports)
    assert (https.probe_sources, https.probes) == (("10.9.0.1",), (("GET", "/b"), ("GET", "/healthz")))
    assert (plain.probe_sources, plain.probes) == ((), ())
    [without] = planned(intercepts=[intercept()], stock=inventory(probed), node_addresses=("10.9.0.1",)).pods[POD].ports
    assert (without.snapshot.probe_sources, without.snapshot.probes) == ((), ())


def test_ports_and_transport_of_a_survey_are_told_apart():
    both = pod(ports=(ContainerPort(53, Transport.UDP, name="dns"), ContainerPort(53, name="dns-tcp"), PLAIN))
    result = planned(policy(ports=(53,)), stock=inventory(both))
    [port] = result.pods[POD].ports
    assert port.transport is Transport.TCP
    assert applying(planned(policy(), stock=inventory(pod(ports=(DNS,))))) == {}


def test_the_same_input_gives_the_same_objects():
    plans, stock, mine = PortPlans(), inventory(pod(ports=(HTTPS,))), policy()
    first = planned(mine, stock=stock, port_plans=plans).pods[POD].ports[0]
    assert planned(mine, stock=stock, port_plans=plans).pods[POD].ports[0] is first
    assert planned(policy(mode=Mode.ENFORCE), stock=stock, port_plans=plans).pods[POD].ports[0] is not first


def test_selectors_are_asked_again_only_of_pods_whose_labels_are_others(monkeypatch):
    asked = []

    def selects(selector, labels):
        asked.append(labels["app"])
        return real(selector, labels)

    real = inspection.__dict__["selects"]
    monkeypatch.setattr(inspection, "selects", selects)
    placements, policies = Placements(), (policy("p"), policy("q"))
    carts = replace(pod("carts-1"), labels={"app": "carts"})

    def placed_in(*pods, policies=policies):
        asked.clear()
        found = placements.of(inventory(*pods), policies)
        return {key.name: [each.policy.name for each in applying] for key, applying in found.items()}

    assert placed_in(pod(), carts) == {"orders-1": ["p", "q"]}
    assert sorted(asked) == ["carts", "carts", "orders", "orders"]
    assert placed_in(replace(pod(), uid="other"), carts) == {"orders-1": ["p", "q"]}
    assert asked == []
    assert placed_in(pod(), replace(carts, labels={"app": "orders"})) == {"orders-1": ["p", "q"], "carts-1": ["p", "q"]}
    assert asked == ["orders", "orders"]
    edited = (policies[0], policy("q", pod_selector=LabelSelector({"app": "carts"})))
    assert placed_in(pod(), carts, policies=edited) == {"orders-1": ["p"], "carts-1": ["q"]}
    assert sorted(asked) == ["carts", "carts", "orders"]


def test_a_pod_with_more_ports_than_the_kernels_maps_hold_is_inspected_on_those_that_matter():
    many = tuple(ContainerPort(10_000 + number) for number in range(1000))
    crowded = pod(ports=(*many, PLAIN), annotations={})
    stock = inventory(crowded, services=(service(ServicePort(80, 8080)), service(ServicePort(9, 10_999), name="late")))
    result = planned(closing(), enforced("named", ports=(10_500,)), stock=stock)
    ports = applying(result)
    assert len(ports) == inspection.MAX_PORTS
    assert {8080, 10_000, 10_500, 10_999} <= ports.keys()
    assert sorted(ports[10_500]) == ["named", "p"]
    assert result.not_inspected == {("shop/p", POD): "more than 256 ports of the pod would be inspected"}
    assert 2 * inspection.MAX_PORTS * len(Family) <= STEERED_MAX


def test_ports_that_a_namespace_names_take_no_room_from_the_clusters_policies():
    many = tuple(ContainerPort(10_000 + number) for number in range(1000))
    stock = inventory(pod(ports=(*many, PLAIN), annotations={}))
    base = policy("base", namespace="")
    others = [policy(f"p{turn}", ports=tuple(range(10_500 + 64 * turn, 10_564 + 64 * turn))) for turn in range(5)]
    before, result = planned(base, stock=stock), planned(base, *others, stock=stock)
    assert {port for port, names in applying(result).items() if "base" in names} == set(applying(before))


def test_a_policy_without_room_for_all_ports_of_a_pod_applies_to_those_that_matter():
    """Whoever writes a pod decides how many ports it declares, and gets it out of no policy by that."""
    many = tuple(ContainerPort(7000 + number) for number in range(9))
    stock = inventory(pod(ports=(*many, PLAIN), annotations={}), services=(service(ServicePort(80, 8080)),))
    result = planned(policy(size=inspection.MAX_BYTES // 3), stock=stock)
    assert set(applying(result)) == {7000, 7001, 8080}
    assert result.not_inspected == {("shop/p", POD): "the policies of its ports have more than 4 MiB together"}
