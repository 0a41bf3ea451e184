import itertools

import pytest
from msgspec.structs import replace

from sidestep.config import annotation_names as names
from sidestep.config.node_settings import NodeSettings
from sidestep.config.proxy_workers import Workers
from sidestep.model.condition import ConditionType
from sidestep.model.filter import Filter
from sidestep.model.intercept import Kind, Live, Snap
from sidestep.model.pod import Location, PodKey, ServicePort, Transport
from sidestep.node.planning.plan import CertificateFacts
from sidestep.node.planning.planner import plan
from sidestep.policy.survey import CertificateKey, Side
from tests.unit.node.scenes import CERTIFIED, HTTPS, PLAIN, header, intercept, inventory, pod, service

POD = PodKey("shop", "orders-1")
GOOD = {CertificateKey(POD, 8443, Side.DOWNSTREAM): CertificateFacts("identity:a", "trust:a", "orders.shop")}
GLOBAL = Filter()


def planned(stock=None, intercepts=(), *, settings=None, certificates=GOOD, node=None, **fields):
    return plan(
        stock or inventory(),
        intercepts,
        settings or NodeSettings(),
        certificates,
        node_annotations=node or {},
        **fields,
    )


def reasons(result, pod=POD):
    return [(condition.type, condition.subject) for condition in result.conditions.get(pod, ())]


def test_nothing_is_steered_without_a_reason():
    result = planned()
    assert result.pods == {}
    assert list(result.surveys) == [POD]


def test_a_filtered_intercept_steers_its_port_with_the_ports_certificate():
    result = planned(intercepts=[intercept()])
    (port,) = result.pods[POD].ports
    snapshot = port.snapshot
    assert port.needs_app
    assert port.uids == {"u1"}
    assert (snapshot.number, snapshot.transport, snapshot.tls, snapshot.http2) == (8443, "tcp", "always", "probe")
    assert (snapshot.identity, snapshot.client_trust) == ("identity:a", "trust:a")
    assert (snapshot.upstream_trust, snapshot.upstream_name) == ("trust:a", "orders.shop")
    (rule,) = snapshot.rules
    assert (rule.uid, rule.display, rule.kind) == ("u1", "shop/n-u1", "intercept")
    assert [(c.part, c.test, c.name, c.value) for c in rule.conditions] == [("header", "exact", "x-user", "dev")]
    assert result.coverage == {"u1": (POD,)}
    assert result.conditions == {}


def test_the_proxy_has_as_many_processes_as_the_pod_says_or_else_the_node():
    settings = NodeSettings(proxy_workers=Workers(3))
    assert planned(intercepts=[intercept()]).pods[POD].workers == Workers(1)
    assert planned(intercepts=[intercept()], settings=settings).pods[POD].workers == Workers(3)
    stock = inventory(replace(pod(), annotations={**CERTIFIED, names.PROXY_WORKERS: "2"}))
    assert planned(stock, [intercept()], settings=settings).pods[POD].workers == Workers(2)
    stock = inventory(replace(pod(), annotations={**CERTIFIED, names.PROXY_WORKERS: "two"}))
    result = planned(stock, [intercept()], settings=settings)
    assert result.pods[POD].workers == Workers(3)
    assert (ConditionType.ANNOTATION_INVALID, f"pod {POD}") in reasons(result)


def test_a_global_intercept_needs_no_app_and_no_key():
    result = planned(intercepts=[intercept(filter=GLOBAL)])
    (port,) = result.pods[POD].ports
    assert not port.needs_app
    assert port.snapshot.global_uid == "u1"
    assert port.snapshot.global_display == "shop/n-u1"
    assert port.snapshot.rules == ()
    assert port.snapshot.identity == port.snapshot.upstream_trust == ""


def test_a_port_is_resolved_through_the_service():
    stock = inventory(services=(service(ServicePort(443, "https", name="tls", app_protocol="https")),))
    for written in ("443", "tls", "https", "8443"):
        (port,) = planned(stock, [intercept(port=written)]).pods[POD].ports
        assert port.number == 8443


def test_the_upstream_sides_own_ca_verifies_the_app():
    annotations = {**CERTIFIED, f"{names.UPSTREAM_SECRET}.8443": "client"}
    certificates = {**GOOD, CertificateKey(POD, 8443, Side.UPSTREAM): CertificateFacts("identity:c", "trust:c")}
    result = planned(inventory(pod(annotations=annotations)), [intercept()], certificates=certificates)
    snapshot = result.pods[POD].ports[0].snapshot
    assert (snapshot.upstream_identity, snapshot.upstream_trust, snapshot.client_trust) == (
        "identity:c",
        "trust:c",
        "trust:a",
    )


def test_the_settings_of_the_port_travel():
    annotations = {
        **CERTIFIED,
        f"{names.SKIP_VERIFY}.8443": "enabled",
        f"{names.CLIENT_AUTH}.8443": "require",
        f"{names.FORWARD_CLIENT_CERT}.8443": "enabled",
        f"{names.PROBE_TIMEOUT}.8443": "500ms",
    }
    snapshot = planned(inventory(pod(annotations=annotations)), [intercept()]).pods[POD].ports[0].snapshot
    assert (snapshot.skip_verify, snapshot.client_auth) == (True, "require")
    assert (snapshot.forward_client_cert, snapshot.probe_timeout) == (True, 0.5)


def test_the_plan_does_not_depend_on_the_order_of_its_input():
    pods = [pod(f"orders-{number}") for number in range(3)]
    certificates = {CertificateKey(each.key, 8443, Side.DOWNSTREAM): CertificateFacts("identity:a") for each in pods}
    wanting = [intercept(f"u{number}", filter=header(str(number)), created=9 - number) for number in range(3)]
    results = [
        planned(inventory(*some), others, certificates=certificates)
        for some in itertools.permutations(pods)
        for others in itertools.permutations(wanting)
    ]
    assert all(result == results[0] for result in results)
    assert list(results[0].pods) == sorted(each.key for each in pods)
    assert [rule.uid for rule in results[0].pods[POD].ports[0].snapshot.rules] == ["u2", "u1", "u0"]


def test_an_unknown_certificate_makes_the_pod_wait_and_no_other():
    other = pod("orders-2", annotations={})
    result = planned(inventory(pod(), other), [intercept(), intercept("u2", port="8080")], certificates={})
    assert result.waiting == {POD}
    assert list(result.pods) == [other.key]
    assert [wanted.key for wanted in result.certificates] == [CertificateKey(POD, 8443, Side.DOWNSTREAM)]


def test_only_the_certificates_of_ports_that_somebody_wants_opened_are_wanted():
    stock = inventory(pod())
    assert planned(stock, []).certificates == ()
    assert planned(stock, [intercept(port="8080")], certificates={}).certificates == ()
    whole = planned(stock, [intercept(filter=GLOBAL)], certificates={})
    assert (whole.certificates, whole.waiting) == ((), frozenset())
    assert planned(stock, [intercept()], certificates={}).waiting == {POD}


def test_a_tls_port_without_usable_certificate_is_left_alone_and_says_so():
    certificates = {CertificateKey(POD, 8443, Side.DOWNSTREAM): CertificateFacts()}
    result = planned(intercepts=[intercept(), intercept("u2", port="8080")], certificates=certificates)
    assert [port.number for port in result.pods[POD].ports] == [8080]
    assert reasons(result) == [(ConditionType.NO_CERTIFICATE, "pod shop/orders-1 port 8443")]
    assert "orders-tls" in result.refusals["u1", POD]


def test_a_tls_port_without_any_certificate_names_both_annotations():
    result = planned(inventory(pod(annotations={})), [intercept()])
    assert result.pods == {}
    text = result.refusals["u1", POD]
    assert f"{names.DOWNSTREAM_PATH}.8443" in text
    assert f"{names.DOWNSTREAM_SECRET}.8443" in text


def test_app_protocol_tcp_leaves_a_filter_out_and_a_global_intercept_in():
    stock = inventory(services=(service(ServicePort(80, "web", app_protocol="tcp")),))
    assert planned(stock, [intercept(port="80")]).pods == {}
    assert reasons(planned(stock, [intercept(port="80")])) == [
        (ConditionType.PROTOCOL_CONTRADICTION, "pod shop/orders-1 port 8080")
    ]
    assert POD in planned(stock, [intercept(port="80", filter=GLOBAL)]).pods


def test_udp_is_global_only():
    assert planned(intercepts=[intercept(port="dns", transport=Transport.UDP)]).pods == {}
    (port,) = planned(intercepts=[intercept(port="dns", transport=Transport.UDP, filter=GLOBAL)]).pods[POD].ports
    assert (port.number, port.transport) == (53, Transport.UDP)


@pytest.mark.parametrize(
    ("some", "settings", "text"),
    [
        (pod(host_network=True), NodeSettings(), "host's network"),
        (pod(), NodeSettings(enabled=False), "sidestep.dev/enabled"),
        (pod(), NodeSettings(namespaces=("prod-*", "test")), "prod-*, test"),
    ],
)
def test_a_pod_that_may_not_be_steered_is_refused_with_the_reason(some, settings, text):
    result = planned(inventory(some), [intercept()], settings=settings)
    assert result.pods == {}
    assert reasons(result) == [(ConditionType.POD_REFUSED, "pod shop/orders-1")]
    assert text in result.refusals["u1", POD]
    assert planned(inventory(some), settings=settings).conditions == {}


def test_kube_system_is_not_steered_by_default():
    some = pod(namespace="kube-system", annotations={})
    result = planned(inventory(some), [intercept(namespace="kube-system", port="8080")])
    assert result.pods == {}


def test_an_ended_pod_is_neither_covered_nor_surveyed():
    result = planned(inventory(pod(ended=True), pod("orders-2", annotations={})), [intercept(port="8080")])
    assert list(result.surveys) == list(result.pods) == [PodKey("shop", "orders-2")]


def test_max_pods_prefers_the_pods_of_older_intercepts():
    pods = [pod(f"orders-{number}", annotations={}) for number in range(4)]
    young = intercept("young", port="8080", created=5.0, filter=header("a"))
    old = intercept("old", port="8080", created=1.0, pod="orders-3")
    result = planned(inventory(*pods), [young, old], settings=NodeSettings(max_pods=2))
    assert sorted(key.name for key in result.pods) == ["orders-0", "orders-3"]
    refused = [key.name for uid, key in result.refusals if uid == "young"]
    assert refused == ["orders-1", "orders-2"]
    assert planned(inventory(*pods), [young], settings=NodeSettings(max_pods=0)).pods == {}


def test_the_older_of_two_that_exclude_each_other_stands():
    young = intercept("young", created=2.0, filter=GLOBAL)
    old = intercept("old", created=1.0)
    result = planned(intercepts=[young, old])
    assert result.pods[POD].ports[0].uids == {"old"}
    assert "claimed owner ann" in result.refusals["young", POD]
    assert [condition.subject for condition in result.conditions[None]] == ["intercept shop/n-young"]


def test_who_wants_heads_only_has_the_port_read_without_any_filter():
    flows = intercept("flows", kind=Kind.WIRETAP, filter=GLOBAL, heads_only=True)
    (port,) = planned(intercepts=[flows]).pods[POD].ports
    (rule,) = port.snapshot.rules
    assert (rule.uid, rule.heads_only, rule.conditions) == ("flows", True, ())
    assert port.snapshot.global_taps == ()
    assert port.snapshot.identity == "identity:a"
    assert planned(intercepts=[flows], certificates={next(iter(GOOD)): CertificateFacts(problem="none")}).pods == {}


def test_wiretaps_stand_beside_a_global_intercept():
    tap = intercept("tap", kind=Kind.WIRETAP, filter=GLOBAL)
    filtered = intercept("filtered", kind=Kind.WIRETAP)
    whole = intercept("whole", filter=GLOBAL)
    (port,) = planned(intercepts=[tap, whole, filtered]).pods[POD].ports
    assert port.uids == {"tap", "whole", "filtered"}
    assert (port.snapshot.global_uid, port.snapshot.global_taps) == ("whole", ("tap",))
    assert [rule.kind for rule in port.snapshot.rules] == ["wiretap"]


def test_kubelet_probes_pass_a_global_intercept_of_a_probed_port_only():
    stock = inventory(pod(probe_ports=frozenset({8443})))
    for fields, passing in [
        ({}, ("10.0.0.254",)),
        ({"divert_probes": True}, ()),
        ({"port": "8080"}, ()),
    ]:
        wanting = intercept(filter=GLOBAL, **fields)
        (port,) = planned(stock, [wanting], node_addresses=("10.0.0.254",)).pods[POD].ports
        assert port.snapshot.pass_sources == passing
    (port,) = planned(stock, [intercept()], node_addresses=("10.0.0.254",)).pods[POD].ports
    assert port.snapshot.pass_sources == ()


def test_what_is_unknown_is_a_condition_and_disables_nothing_else():
    gone = intercept("gone", workload="nothing")
    portless = intercept("portless", port="metrics", created=2.0, filter=header("b"))
    result = planned(intercepts=[gone, portless, intercept()])
    assert result.pods[POD].ports[0].uids == {"u1"}
    texts = [condition.text for condition in result.conditions[None]]
    assert any("no workload deployment/nothing" in text for text in texts)
    assert any("'metrics'" in text for text in texts)
    assert result.coverage["gone"] == ()


def test_an_undeclared_port_is_surveyed_with_its_annotations():
    some = pod(ports=(HTTPS,), annotations={f"{names.DOWNSTREAM_SECRET}.9443": "other"})
    key = CertificateKey(POD, 9443, Side.DOWNSTREAM)
    result = planned(inventory(some), [intercept(port="9443")], certificates={key: CertificateFacts("identity:z")})
    (port,) = result.pods[POD].ports
    assert (port.number, port.snapshot.identity) == (9443, "identity:z")
    assert result.conditions == {}


def test_bad_annotations_are_conditions_and_the_good_port_stays():
    some = pod(annotations={**CERTIFIED, f"{names.PROBE_TIMEOUT}.8080": "soon", names.SKIP_VERIFY: "enabled"})
    result = planned(inventory(some), [intercept()])
    assert POD in result.pods
    assert [kind for kind, _ in reasons(result)] == [ConditionType.ANNOTATION_INVALID] * 2


def test_node_annotations_are_defaults():
    node = {names.DOWNSTREAM_SECRET: "node-tls", names.SKIP_VERIFY: "enabled"}
    certificates = {
        CertificateKey(POD, number, Side.DOWNSTREAM): CertificateFacts(f"identity:{number}") for number in (8080, 8443)
    }
    result = planned(inventory(pod(annotations={})), [intercept(port="8080")], certificates=certificates, node=node)
    (port,) = result.pods[POD].ports
    assert (port.snapshot.tls, port.snapshot.identity, port.snapshot.skip_verify) == ("probe", "identity:8080", True)


def test_the_survey_lists_the_certificates_that_ports_use():
    result = planned(inventory(pod(), services=(service(ServicePort(80, "web", app_protocol="http")),)))
    assert [wanted.key for wanted in result.surveys[POD].certificates()] == [CertificateKey(POD, 8443, Side.DOWNSTREAM)]


def test_a_pods_own_intercept_covers_it_alone():
    stock = inventory(pod(annotations={}), pod("orders-2", annotations={}))
    alone = intercept(port="8080", pod="orders-2")
    assert list(planned(stock, [alone]).pods) == [PodKey("shop", "orders-2")]


@pytest.mark.parametrize("mode", ["require", "request"])
def test_clients_cannot_be_verified_without_an_authority(mode):
    some = inventory(pod(annotations={**CERTIFIED, f"{names.CLIENT_AUTH}.8443": mode}))
    assert planned(some, [intercept()]).pods[POD].ports[0].snapshot.client_auth == mode
    without = {CertificateKey(POD, 8443, Side.DOWNSTREAM): CertificateFacts("identity:a", "", "orders.shop")}
    result = planned(some, [intercept()], certificates=without)
    assert POD not in result.pods
    (condition,) = result.conditions[POD]
    reason = condition.text
    assert condition.type is ConditionType.NO_CERTIFICATE
    assert f"{names.CLIENT_AUTH}.8443 '{mode}'" in reason
    assert "no ca.crt" in reason
    assert planned(some, [intercept(filter=GLOBAL)], certificates=without).pods[POD].ports  # nothing is opened


def test_a_container_that_starts_anew_is_another_app():
    plans = [
        planned(inventory(replace(pod(), location=Location(pids=pids))), [intercept()]).pods[POD].ports[0].snapshot.app
        for pids in ({"app": 1, "side": 2}, {"side": 2, "app": 1}, {"app": 3, "side": 2})
    ]
    assert plans[0] == plans[1] != plans[2]


FORWARDING = {**CERTIFIED, f"{names.FORWARD_CLIENT_CERT}.8443": "enabled"}
WHOLE = intercept(filter=GLOBAL)


@pytest.mark.parametrize("wanting", [WHOLE, replace(WHOLE, kind=Kind.WIRETAP)], ids=lambda each: each.kind)
def test_a_port_whose_app_is_told_who_its_clients_are_is_opened_for_everybody(wanting):
    stock = inventory(pod(annotations=FORWARDING))
    assert planned(stock, [wanting], certificates={}).waiting == {POD}
    (port,) = planned(stock, [wanting]).pods[POD].ports
    assert (port.snapshot.identity, port.snapshot.client_trust) == ("identity:a", "trust:a")
    assert port.snapshot.forward_client_cert
    assert port.snapshot.global_taps == ()
    assert [rule.uid for rule in port.snapshot.rules] == ([] if wanting is WHOLE else [wanting.uid])
    assert port.snapshot.global_uid == (wanting.uid if wanting is WHOLE else "")


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize(
    ("annotations", "protocol", "certificates", "text"),
    [
        (FORWARDING, "https", {}, "it is broken"),
        ({f"{names.FORWARD_CLIENT_CERT}.8443": "enabled"}, "https", {}, "no certificate is configured"),
        ({f"{names.FORWARD_CLIENT_CERT}.8443": "enabled"}, "", {}, "no certificate is configured"),
        (FORWARDING, "tcp", GOOD, "rules out HTTP"),
    ],
)
def test_where_it_cannot_be_opened_nobody_steers_it(kind, annotations, protocol, certificates, text):
    declared = replace(HTTPS, name="x") if not protocol else HTTPS
    services = (service(ServicePort(8443, 8443, app_protocol=protocol)),)
    stock = inventory(pod(annotations=annotations, ports=(declared,)), services=services)
    broken = {CertificateKey(POD, 8443, Side.DOWNSTREAM): CertificateFacts(problem="it is broken")}
    result = planned(stock, [intercept(filter=GLOBAL, kind=kind, port="8443")], certificates=certificates or broken)
    assert result.pods == {}
    assert text in result.refusals["u1", POD]
    unread = planned(stock, [intercept(port="8443")], certificates=certificates or broken)
    assert unread.pods == {}


def test_datagrams_of_the_same_number_are_not_concerned():
    annotations = {f"{names.FORWARD_CLIENT_CERT}.8443": "enabled"}
    udp = replace(HTTPS, transport=Transport.UDP, name="quic")
    stock = inventory(pod(annotations=annotations, ports=(HTTPS, udp)))
    result = planned(stock, [intercept(filter=GLOBAL, port="8443", transport=Transport.UDP)])
    assert [port.snapshot.transport for port in result.pods[POD].ports] == ["udp"]


def test_a_pod_that_lacks_the_port_refuses_it_and_the_other_serves():
    other = PodKey("shop", "orders-2")
    stock = inventory(pod(), pod("orders-2", ports=(PLAIN,), annotations={}))
    result = planned(stock, [intercept(port="https")])
    assert list(result.pods) == [POD]
    assert reasons(result, other) == [(ConditionType.PORT_UNKNOWN, f"pod {other}")]
    assert "https" in result.refusals["u1", other]


BY_PATH = {f"{names.DOWNSTREAM_PATH}.8443": "/tls"}
NO_PROCESS = CertificateFacts(pending="container app has no process yet")


def test_a_certificate_that_is_not_there_yet_holds_up_its_port_only_and_is_no_condition():
    stock = inventory(pod(annotations=BY_PATH))
    wanting = [intercept(), intercept("u2", port="8080"), intercept("u3", filter=GLOBAL, kind=Kind.WIRETAP)]
    result = planned(stock, wanting, certificates={CertificateKey(POD, 8443, Side.DOWNSTREAM): NO_PROCESS})
    assert [(port.number, port.uids) for port in result.pods[POD].ports] == [(8080, {"u2"}), (8443, {"u3"})]
    assert (result.waiting, result.refusals, result.conditions) == (frozenset(), {}, {})
    assert list(result.pending) == [("u1", POD)]
    assert "container app has no process yet" in result.pending["u1", POD]
    assert "/tls" in result.pending["u1", POD]
    assert [wanted.key for wanted in result.certificates] == [CertificateKey(POD, 8443, Side.DOWNSTREAM)]


def test_a_client_certificate_that_is_not_there_yet_holds_up_its_port_too():
    stock = inventory(pod(annotations={**CERTIFIED, f"{names.UPSTREAM_PATH}.8443": "/client"}))
    certificates = {**GOOD, CertificateKey(POD, 8443, Side.UPSTREAM): NO_PROCESS}
    result = planned(stock, [intercept()], certificates=certificates)
    assert (result.pods, result.conditions) == ({}, {})
    assert "/client" in result.pending["u1", POD]


def test_a_port_that_must_be_opened_waits_for_its_certificate_whoever_wants_it():
    stock = inventory(pod(annotations={**BY_PATH, f"{names.FORWARD_CLIENT_CERT}.8443": "enabled"}))
    wanting = [intercept(filter=GLOBAL)]
    result = planned(stock, wanting, certificates={CertificateKey(POD, 8443, Side.DOWNSTREAM): NO_PROCESS})
    assert (result.pods, result.conditions) == ({}, {})
    assert list(result.pending) == [("u1", POD)]


def test_a_pod_that_has_not_been_started_is_waited_for_and_its_certificates_are_wanted():
    unborn = replace(pod(), ips=(), location=Location(searched=True))
    result = planned(inventory(unborn), [intercept()], certificates={})
    assert (result.pods, result.waiting, result.conditions) == ({}, {POD}, {})
    assert result.pending == {("u1", POD): "the pod has not been started yet"}
    assert len(result.certificates) == 1
    born = replace(unborn, location=Location(netns="/proc/1/ns/net", searched=True))
    assert list(planned(inventory(born), [intercept()]).pods) == [POD]


# --- sessions that listen to connections that pods make ---------------------------------------------------------------


def listening(uid="u1", **wants):
    fields = {"kind": Kind.WIRETAP, "port": "", "egress": True, "filter": GLOBAL, **wants}
    return intercept(uid, **fields)


def test_who_listens_makes_a_target_of_the_pod_and_takes_no_port():
    result = planned(intercepts=[listening(records=Live.ALL), listening("u2", capture=Snap.ALL, created=2.0)])
    found = result.pods[POD]
    assert (found.ports, found.egress) == ((), ())
    assert [rule.uid for rule in found.outbound.rules] == ["u1"]
    assert found.outbound.captures == ("u2",)
    assert found.uids == {"u1", "u2"}
    assert result.coverage["u1"] == (POD,)
    assert result.conditions == {}
    assert result.certificates == ()


def test_who_listens_does_not_conflict_with_who_takes_a_port():
    result = planned(intercepts=[intercept("u1", filter=GLOBAL), listening("u2", heads_only=True, created=2.0)])
    found = result.pods[POD]
    assert [port.uids for port in found.ports] == [{"u1"}]
    assert found.outbound.uids == {"u2"}
    assert result.refusals == {}


def test_why_nobody_can_listen_to_a_pod_is_said():
    stock = inventory(replace(pod(), host_network=True))
    result = planned(stock, [listening(records=Live.ALL)])
    assert result.pods == {}
    assert "u1" in {uid for uid, _ in result.refusals}


def test_an_unknown_workload_has_nobody_to_listen_to():
    result = planned(intercepts=[listening(records=Live.ALL, workload="nobody")])
    assert result.pods == {}
    assert ConditionType.PORT_UNKNOWN in [each.type for each in result.conditions[None]]


def test_a_pod_that_is_listened_to_counts_as_a_target():
    result = planned(intercepts=[listening(records=Live.ALL)], settings=NodeSettings(max_pods=0))
    assert result.pods == {}
    assert "max-pods" in result.refusals["u1", POD]
