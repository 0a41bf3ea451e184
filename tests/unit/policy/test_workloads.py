import pytest

from sidestep.model.errors import RefusedError
from sidestep.model.intercept import Intercept, Kind, WorkloadRef
from sidestep.model.inventory import Inventory
from sidestep.model.pod import ContainerPort, Owner, Pod, PodKey, Service, ServicePort, Transport
from sidestep.model.workload import LabelSelector, Workload, WorkloadKey
from sidestep.policy.workloads import describe_port, find_workload, parse_workload, pods_of, resolve_port


def pod(name, *owners, ports=(), namespace="shop", labels=None, ended=False):
    return Pod(
        PodKey(namespace, name),
        uid=name,
        ports=tuple(ports),
        owners=tuple(Owner(kind, owner) for kind, owner in owners),
        labels=labels or {},
        ended=ended,
    )


def inventory(*pods, services=(), workloads=()):
    keys = [WorkloadKey(kind, "shop", name) for kind, name in workloads]
    return Inventory(
        pods={each.key: each for each in pods},
        services=tuple(services),
        workloads={key: Workload(key, selector=LabelSelector({"app": key.name})) for key in keys},
    )


def intercept(workload, *, pod=None, namespace="shop", port="80"):
    return Intercept("u", namespace, "i", Kind.INTERCEPT, parse_workload(workload), port, pod=pod)


SHOP = inventory(
    pod("orders-1", ("replicaset", "orders-7d9"), ("deployment", "orders")),
    pod("orders-2", ("replicaset", "orders-7d9"), ("deployment", "orders")),
    pod("orders-0", ("replicaset", "orders-7d9"), ("deployment", "orders"), ended=True),
    pod("db-0", ("statefulset", "db")),
    pod("agent-x", ("daemonset", "agent")),
    pod("import-x", ("job", "import")),
    pod("bare"),
    pod("canary-1", ("rollout", "canary")),
    pod("web", ("deployment", "web")),
    pod("mixed", ("replicaset", "mixed"), ("deployment", "mixed")),
    pod("twice-1", ("deployment", "twice")),
    pod("twice-2", ("statefulset", "twice")),
    pod("orders-1", namespace="other"),
    workloads=[("deployment", "orders"), ("deployment", "empty"), ("job", "twice")],
)


@pytest.mark.parametrize(
    ("workload", "pods"),
    [
        ("orders", ["orders-1", "orders-2"]),
        ("deployment/orders", ["orders-1", "orders-2"]),
        ("deploy/orders", ["orders-1", "orders-2"]),
        ("deployments.apps/orders", ["orders-1", "orders-2"]),
        ("rs/orders-7d9", ["orders-1", "orders-2"]),
        ("sts/db", ["db-0"]),
        ("db", ["db-0"]),
        ("daemonset/agent", ["agent-x"]),
        ("job/import", ["import-x"]),
        ("bare", ["bare"]),
        ("pod/orders-1", ["orders-1"]),
        ("rollout/canary", ["canary-1"]),
        ("empty", []),
        ("web", ["web"]),
        ("pod/web", ["web"]),
        ("mixed", ["mixed"]),
        ("statefulset/twice", ["twice-2"]),
        ("job/twice", []),
    ],
)
def test_pods_of(workload, pods):
    assert [each.key.name for each in pods_of(intercept(workload), SHOP)] == pods


def test_the_owner_wins_over_what_it_owns_of_the_same_name():
    assert find_workload("shop", WorkloadRef("web"), SHOP) == WorkloadRef("web", "deployment")
    assert find_workload("shop", WorkloadRef("mixed"), SHOP) == WorkloadRef("mixed", "deployment")


def test_an_ambiguous_name_lists_the_kinds():
    with pytest.raises(RefusedError, match="ambiguous: write deployment/twice or job/twice or statefulset/twice"):
        pods_of(intercept("twice"), SHOP)


@pytest.mark.parametrize("workload", ["nothing", "deployment/db", "pod/orders-0", "deployment/bare"])
def test_an_unknown_workload_lists_what_there_is(workload):
    with pytest.raises(RefusedError, match=rf"no workload {workload} in namespace shop \(there are: daemonset/agent, "):
        pods_of(intercept(workload), SHOP)


def test_an_empty_namespace_has_nothing():
    with pytest.raises(RefusedError, match=r"there are: none"):
        pods_of(intercept("orders", namespace="void"), SHOP)


def test_a_pod_narrows():
    assert [each.key.name for each in pods_of(intercept("orders", pod="orders-2"), SHOP)] == ["orders-2"]
    with pytest.raises(RefusedError, match=r"has no pod db-0 \(it has: orders-1, orders-2\)"):
        pods_of(intercept("orders", pod="db-0"), SHOP)


@pytest.mark.parametrize("text", ["", "/", "a/", "/a", "a/b/c", "deploy//x"])
def test_what_is_no_workload_is_refused(text):
    with pytest.raises(RefusedError, match="is no workload"):
        parse_workload(text)


# --- ports ----------------------------------------------------------------------------------------------------------

UDP = Transport.UDP
PORTS = (
    ContainerPort(8443, name="https", container="app"),
    ContainerPort(8080, name="web", container="app"),
    ContainerPort(9090, container="metrics"),
    ContainerPort(5353, UDP, name="dns", container="app"),
    ContainerPort(8080, UDP, name="quic", container="app"),
)
POD = pod("orders-1", ports=PORTS, labels={"app": "orders"})
FRONT = Service(
    "shop",
    "front",
    {"app": "orders"},
    (
        ServicePort(443, "https", "secure", "https"),
        ServicePort(80, 8080, "plain"),
        ServicePort(9090, 8080, "clash"),
        ServicePort(7000, 7001, "undeclared"),
        ServicePort(53, "dns", "dns", transport=UDP),
        ServicePort(1, "missing", "broken"),
    ),
)
SECOND = Service("shop", "second", {"app": "orders"}, (ServicePort(443, 8080, "tls", "http"), ServicePort(81, 8080)))


@pytest.mark.parametrize(
    ("text", "transport", "numbers"),
    [
        ("443", Transport.TCP, [8443]),
        ("secure", Transport.TCP, [8443]),
        ("plain", Transport.TCP, [8080]),
        ("80", Transport.TCP, [8080]),
        ("8443", Transport.TCP, [8443]),
        ("https", Transport.TCP, [8443]),
        ("web", Transport.TCP, [8080]),
        ("9090", Transport.TCP, [8080]),
        ("7000", Transport.TCP, [7001]),
        ("7001", Transport.TCP, [7001]),
        ("6000", Transport.TCP, [6000]),
        ("53", UDP, [5353]),
        ("dns", UDP, [5353]),
        ("8080", UDP, [8080]),
        ("quic", UDP, [8080]),
    ],
)
def test_resolve_port(text, transport, numbers):
    found = resolve_port(text, POD, [FRONT], transport=transport)
    assert [each.port.number for each in found] == numbers
    assert all(each.port.transport is transport for each in found)


@pytest.mark.parametrize(
    ("text", "transport"),
    [
        ("dns", Transport.TCP),
        ("web", UDP),
        ("nothing", Transport.TCP),
        ("0", Transport.TCP),
        ("65536", Transport.TCP),
        ("080x", Transport.TCP),
        ("", Transport.TCP),
        ("missing", Transport.TCP),
        ("broken", Transport.TCP),
        ("\u0668\u0660", Transport.TCP),
        ("-1", Transport.TCP),
        ("1" * 5000, Transport.TCP),
    ],
)
def test_an_unknown_port_lists_the_ports_there_are(text, transport):
    with pytest.raises(RefusedError) as caught:
        resolve_port(text, POD, [FRONT], transport=transport)
    assert "443 (secure) of service front" in str(caught.value)
    assert "8443 (https)" in str(caught.value)
    assert "5353/UDP (dns)" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_one_name_in_two_services_may_mean_two_ports():
    assert [each.port.number for each in resolve_port("443", POD, [SECOND, FRONT])] == [8443, 8080]


def test_a_port_is_described_by_all_service_ports_that_lead_to_it():
    (found,) = resolve_port("web", POD, [SECOND, FRONT])
    assert [each.number for each in found.service_ports] == [80, 9090, 443, 81]
    assert found.app_protocol == "http"
    facts = found.facts()
    assert facts.names == {"web", "plain", "clash", "tls"}
    assert facts.numbers == {8080, 80, 9090, 443, 81}
    assert found == describe_port(PORTS[1], POD, [FRONT, SECOND])


def test_undeclared_ports_say_so():
    (found,) = resolve_port("6000", POD, [FRONT])
    assert not found.declared
    assert found.port == ContainerPort(6000)
    assert resolve_port("8443", POD, [FRONT])[0].declared


def test_services_of_a_pod():
    other = Service("shop", "other", {"app": "web"})
    headless = Service("shop", "none", {})
    elsewhere = Service("prod", "front", {"app": "orders"})
    whole = inventory(POD, services=[SECOND, FRONT, other, headless, elsewhere])
    assert [each.name for each in whole.services_of(POD)] == ["front", "second"]
