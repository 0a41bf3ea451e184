import pytest

from sidestep.config.filters import parse_filter
from sidestep.model.errors import RefusedError
from sidestep.model.filter import Filter
from sidestep.model.intercept import Intercept, Kind
from sidestep.model.inventory import Inventory
from sidestep.model.pod import ContainerPort, Owner, Pod, PodKey, Transport
from sidestep.model.workload import Workload, WorkloadKey
from sidestep.policy.conflicts import MAX_INTERCEPTS, Target, admit, check, claim_of
from sidestep.policy.workloads import parse_workload

PORTS = (ContainerPort(8443, name="https"), ContainerPort(8080, name="web"))
EMPTY = WorkloadKey("deployment", "shop", "empty")
INVENTORY = Inventory(
    pods={
        PodKey("shop", name): Pod(PodKey("shop", name), name, ports=ports, owners=(Owner("deployment", owner),))
        for name, owner, ports in [
            ("orders-1", "orders", PORTS),
            ("orders-2", "orders", (*PORTS, ContainerPort(9999, name="admin"))),
            ("web-1", "web", PORTS),
        ]
    },
    workloads={EMPTY: Workload(EMPTY)},
)


def claim(name, workload="orders", port="8443", *, header="", created=0.0, kind=Kind.INTERCEPT, **more):
    wanted = parse_filter(headers=[header]) if header else Filter()
    made = Intercept(
        f"uid-{name}", "shop", name, kind, parse_workload(workload), port, filter=wanted, created=created, **more
    )
    return claim_of(made, INVENTORY)


def test_targets_are_the_workload_and_its_pods():
    assert claim("a").targets == {
        Target("shop", "deployment", "orders", "8443"),
        Target("shop", "pod", "orders-1", "8443"),
        Target("shop", "pod", "orders-2", "8443"),
    }
    assert claim("a", pod="orders-2").targets == {Target("shop", "pod", "orders-2", "8443")}
    assert claim("a", port="admin").targets == {
        Target("shop", "deployment", "orders", "9999"),
        Target("shop", "pod", "orders-2", "9999"),
    }
    assert claim("a", "empty").targets == {Target("shop", "deployment", "empty", "8443")}


CONFLICTS = [
    (claim("new"), claim("old")),
    (claim("new", header="x=1"), claim("old")),
    (claim("new"), claim("old", header="x=1")),
    (claim("new", header="x=1"), claim("old", header="X=1")),
    (claim("new", port="https"), claim("old", port="8443")),
    (claim("new", "pod/orders-1"), claim("old", "deployment/orders")),
    (claim("new", pod="orders-1"), claim("old", "deployment/orders")),
    (claim("new", "empty"), claim("old", "empty")),
    (claim("new", transport=Transport.UDP), claim("old", transport=Transport.UDP)),
]


@pytest.mark.parametrize(("new", "old"), CONFLICTS)
def test_conflict_names_intercept_owner_and_port(new, old):
    with pytest.raises(RefusedError) as caught:
        check(new, [old])
    assert "intercept shop/old (claimed owner unknown)" in str(caught.value)
    assert "port 8443" in str(caught.value)


PEACE = [
    (claim("new", header="x=2"), claim("old", header="x=1")),
    (claim("new", header="x=1"), claim("old", header="y=1")),
    (claim("new", port="8080"), claim("old")),
    (claim("new", "web"), claim("old")),
    (claim("new", pod="orders-1"), claim("old", pod="orders-2")),
    (claim("new", kind=Kind.WIRETAP), claim("old")),
    (claim("new"), claim("old", kind=Kind.WIRETAP)),
    (claim("new", header="x=1", kind=Kind.WIRETAP), claim("old", header="x=1", kind=Kind.WIRETAP)),
    (claim("same"), claim("same")),
    (claim("new", transport=Transport.UDP), claim("old")),
]


@pytest.mark.parametrize(("new", "old"), PEACE)
def test_no_conflict(new, old):
    check(new, [old])


def test_the_error_tells_the_rule():
    with pytest.raises(RefusedError, match=r"owner ana@laptop\) takes all of port 8443 of deployment/orders .*exclude"):
        check(claim("new", header="x=1"), [claim("old", owner="ana@laptop")])
    with pytest.raises(RefusedError, match=r"is on port 8443 of deployment/orders .*exclude each other, add a filter"):
        check(claim("new"), [claim("old", header="x=1")])
    with pytest.raises(RefusedError, match="has the same filter on port 8443 of pod/orders-1"):
        check(claim("new", "pod/orders-1", header="x=1"), [claim("old", header="x=1")])


def test_a_hostile_owner_cannot_write_lines():
    with pytest.raises(RefusedError) as caught:
        check(claim("new"), [claim("old", owner="eve\nERROR {target} all is lost\x1b[2J")])
    assert caught.value.args[0].isprintable()


def test_the_oldest_is_named_first():
    olds = [claim("b", header="x=1", created=2.0), claim("a", header="x=1", created=1.0)]
    with pytest.raises(RefusedError, match="shop/a"):
        check(claim("new", header="x=1"), olds)


def test_at_most_64_intercepts():
    full = [claim(f"i{number}", header=f"x={number}") for number in range(MAX_INTERCEPTS)]
    check(claim("new", header="x=new"), full[:-1])
    with pytest.raises(RefusedError, match="has 64 intercepts already"):
        check(claim("new", header="x=new"), full)
    check(claim("new", port="8080", header="x=new"), full)
    check(full[3], full)


def test_admission_depends_on_age_not_on_order_of_arrival():
    first, second = claim("z", created=1.0), claim("a", header="x=1", created=2.0)
    third = claim("m", "web", created=0.5)
    for claims in ([first, second, third], [second, third, first]):
        standing, refused = admit(claims)
        assert standing == (third, first)
        assert [each for each, _ in refused] == [second]
        assert "shop/z" in str(refused[0][1])


@pytest.mark.parametrize(
    "wanted", [("nothing", "80", None), ("orders", "nothing", None), ("orders", "8443", "web-1"), ("web", "0", None)]
)
def test_a_claim_on_something_unknown_is_refused(wanted):
    workload, port, pod = wanted
    with pytest.raises(RefusedError):
        claim("new", workload, port, pod=pod)
