import pytest

from sidestep.model.errors import RefusedError
from sidestep.model.intercept import Intercept, Kind, WorkloadRef
from sidestep.model.inventory import Inventory
from sidestep.model.pod import Owner, Pod, PodKey, Service
from sidestep.model.workload import LabelSelector, Workload, WorkloadKey
from sidestep.policy.workloads import find_workload, parse_workload, pods_of


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


def test_services_of_a_pod():
    orders = pod("orders-1", labels={"app": "orders"})
    front = Service("shop", "front", {"app": "orders"})
    second = Service("shop", "second", {"app": "orders"})
    other = Service("shop", "other", {"app": "web"})
    headless = Service("shop", "none", {})
    elsewhere = Service("prod", "front", {"app": "orders"})
    whole = inventory(orders, services=[second, front, other, headless, elsewhere])
    assert [each.name for each in whole.services_of(orders)] == ["front", "second"]
