"""What a plan, an admission and a verdict cost as intercepts, pods, ports and services become many."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
from msgspec.structs import replace

from sidestep.config.node_settings import NodeSettings
from sidestep.model.inspection import Action, InspectionPolicy, Rule
from sidestep.model.intercept import Intercept, Kind, WorkloadRef
from sidestep.model.inventory import Inventory
from sidestep.model.pod import ContainerPort, Owner, Pod, PodKey, Service, ServicePort, Transport
from sidestep.model.workload import LabelSelector
from sidestep.node.conditions import Conditions, Source
from sidestep.node.planning.admission import admit
from sidestep.node.planning.inspection import Placements, PlannedPolicy
from sidestep.node.planning.pace import Pace
from sidestep.node.planning.planner import plan
from sidestep.node.planning.port_plan import PortPlans
from sidestep.node.planning.surveys import Surveys
from sidestep.policy.conflicts import admit as admit_all
from sidestep.policy.conflicts import claim_of
from sidestep.policy.inspection_rows import to_snapshot
from sidestep.policy.survey import survey
from tests.harness.growth import grows_at_most, is_linear, operations
from tests.unit.node.scenes import header

pytestmark = pytest.mark.alone

WEB = (ContainerPort(8080),)


def pods(count, *, owner=None, ports=WEB, **fields):
    found = {}
    for number in range(count):
        key = PodKey("shop", f"web-{number}")
        owners = (Owner("deployment", owner),) if owner else ()
        found[key] = Pod(key, f"uid-{number}", ports=ports, owners=owners, labels={"app": key.name}, **fields)
    return found


def intercepts(count, workload, *, port="8080"):
    """Intercepts of as many headers; `workload` says whose the nth is."""
    return [
        Intercept(
            f"uid-{number}",
            "shop",
            f"n-{number}",
            Kind.INTERCEPT,
            workload(number),
            port,
            filter=header(f"dev-{number}"),
            created=float(number),
        )
        for number in range(count)
    ]


def planned(inventory, wanted):
    """Plan; `afresh`: from an inventory that nobody has looked at yet."""
    return lambda *, afresh=False: plan(
        dataclasses.replace(inventory) if afresh else inventory, wanted, NodeSettings(), {}, node_annotations={}
    )


SHAPES = {
    "a pod each": lambda count: planned(
        Inventory(pods=pods(count)), intercepts(count, lambda number: WorkloadRef(f"web-{number}", "pod"))
    ),
    "all on one pod": lambda count: planned(
        Inventory(pods=pods(1)), intercepts(count, lambda _: WorkloadRef("web-0", "pod"))
    ),
    "all on one deployment": lambda count: planned(
        Inventory(pods=pods(20, owner="web")), intercepts(count, lambda _: WorkloadRef("web", "deployment"))
    ),
    "all refused": lambda count: planned(
        Inventory(pods=pods(count)), intercepts(count, lambda number: WorkloadRef(f"none-{number}", "pod"))
    ),
    "a pod and a service each": lambda count: planned(
        Inventory(
            pods=pods(count),
            services=tuple(
                Service("shop", f"web-{number}", {"app": f"web-{number}"}, (ServicePort(80, 8080),))
                for number in range(count)
            ),
        ),
        intercepts(count, lambda number: WorkloadRef(f"web-{number}", "pod"), port="80"),
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_plan_is_linear_in_intercepts(shape):
    is_linear(SHAPES[shape])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_new_inventory_is_planned_in_linear_time(shape):
    is_linear(lambda count: partial(SHAPES[shape](count), afresh=True))


@pytest.mark.parametrize("workload", [lambda number: f"web-{number}", lambda _number: "web-0"])
def test_conflicts_are_decided_in_linear_time(workload):
    def make(count):
        inventory = Inventory(pods=pods(count))
        wanted = intercepts(count, lambda number: WorkloadRef(workload(number), "pod"))
        claims = [claim_of(each, inventory) for each in wanted]
        return lambda: admit_all(claims)

    is_linear(make)


EACH_CLAIM = 40
"""Lines of Python that an admission may execute for each claim that stands already; it executes some 24."""


def test_the_two_hundredth_session_is_admitted_at_little_more_than_the_tenth():
    """Admission looks at every standing claim, so what one costs must be next to nothing."""
    inventory = Inventory(pods=pods(200))
    wanted = intercepts(200, lambda number: WorkloadRef(f"web-{number}", "pod"))

    def admitted(number):
        return operations(
            lambda: admit(wanted[number], wanted[:number], inventory, NodeSettings(), {}, node_annotations={})
        )

    admitted(199)  # the first look builds the index
    assert admitted(199) - admitted(9) <= EACH_CLAIM * 190


def service_ports(count):
    return tuple(ServicePort(number + 1, number + 1, name=f"p-{number}") for number in range(count))


def test_a_survey_is_linear_in_ports_and_service_ports():
    def make(count):
        ports = tuple(ContainerPort(number + 1, name=f"p-{number}", container="app") for number in range(count))
        service = Service("shop", "all", {"app": "web-0"}, service_ports(count))
        inventory = Inventory(pods=pods(1, ports=ports, containers=("app",)), services=(service,))
        return lambda: survey(*one(dataclasses.replace(inventory)), node_annotations={})

    is_linear(make)


def one(inventory):
    return next(iter(inventory.pods.values())), inventory


def test_misspelt_annotations_cost_no_more_than_those_that_are_told():
    """5,000 of them took 1.7 s at every plan."""

    def make(count):
        annotations = {f"telepresence.io/downstream-tls-pth-{number}.8080": "/tls" for number in range(count)}
        inventory = Inventory(pods=pods(1, annotations=annotations))
        return lambda: survey(*one(dataclasses.replace(inventory)), node_annotations={})

    grows_at_most(20, make, small=100, large=5000)


def test_ports_that_annotations_speak_of_are_read_in_linear_time():
    def make(count):
        ports = tuple(ContainerPort(number + 1) for number in range(count))
        annotations = {f"telepresence.io/upstream-insecure-skip-verify.{each.number}": "enabled" for each in ports}
        inventory = Inventory(pods=pods(1, ports=ports, annotations=annotations))
        return lambda: survey(*one(dataclasses.replace(inventory)), node_annotations={})

    is_linear(make)


def test_many_services_on_one_port_are_looked_at_once():
    def make(count):
        services = tuple(
            Service("shop", f"s-{number}", {"app": "web-0"}, (ServicePort(80, 8080, name="http"),))
            for number in range(count)
        )
        inventory = Inventory(pods=pods(1), services=services)
        return lambda: survey(*one(dataclasses.replace(inventory)), node_annotations={})

    is_linear(make)


def test_a_plan_takes_the_surveys_that_still_hold():
    """A pod's author decides what its survey costs; a change of something else must not make it again."""
    ports = tuple(ContainerPort(number + 1) for number in range(1500))
    before = Inventory(pods=pods(3, ports=ports))
    wanted = intercepts(1, lambda _: WorkloadRef("web-0", "pod"), port="7")
    surveys = Surveys()

    def surveyed(inventory):
        return plan(inventory, wanted, NodeSettings(), {}, node_annotations={}, surveys=surveys).surveys

    first = surveyed(before)
    (zero, one, two) = first
    changed = replace(before.pods[one], labels={"app": "other"})
    service = Service("shop", "two", {"app": two.name}, (ServicePort(80, 7),))
    second = surveyed(
        Inventory(pods={zero: before.pods[zero], one: changed, two: before.pods[two]}, services=(service,))
    )
    assert second[zero] is first[zero]
    assert second[one] is not first[one]
    assert second[two].port(7, Transport.TCP).resolved.services == ("two:80",)
    third = surveyed(Inventory(pods={zero: before.pods[zero]}))
    assert list(third) == [zero]
    assert third[zero] is first[zero]


def test_a_plan_makes_only_the_ports_anew_of_which_something_is_different():
    inventory = Inventory(pods=pods(3))
    wanted = intercepts(3, lambda number: WorkloadRef(f"web-{number}", "pod"))
    surveys, port_plans = Surveys(), PortPlans()

    def planned_pods(some):
        made = plan(inventory, some, NodeSettings(), {}, node_annotations={}, surveys=surveys, port_plans=port_plans)
        assert made == plan(inventory, some, NodeSettings(), {}, node_annotations={})
        return {key.name: each.ports for key, each in made.pods.items()}

    first = planned_pods(wanted)
    second = planned_pods([wanted[0], replace(wanted[1], filter=header("other")), wanted[2]])
    assert second["web-0"][0] is first["web-0"][0]
    assert second["web-1"] != first["web-1"]
    assert planned_pods(wanted[:1]).keys() == {"web-0"}
    assert planned_pods(wanted) == first


def test_what_is_surveyed_does_not_depend_on_what_is_kept():
    surveys = Surveys()
    inventory = Inventory(pods=pods(2))
    pod = inventory.pods[PodKey("shop", "web-1")]
    for extra in ((), (ContainerPort(9),), (ContainerPort(8080),), (ContainerPort(9), ContainerPort(10))):
        for keep in (True, False):
            found = surveys.of(pod, inventory, node_annotations={}, extra_ports=extra, keep=keep)
            assert found == survey(pod, inventory, node_annotations={}, extra_ports=extra)


def test_conditions_of_one_pod_are_found_without_those_of_others():
    def make(count):
        store = Conditions()
        for key in pods(count):
            found = survey(Pod(key, "uid", ports=(ContainerPort(1),), annotations={"sidestep.dev/downstream-x": "1"}),
                           Inventory(), node_annotations={})  # fmt: skip
            store.state(Source("plan", key), found.conditions)
        key = PodKey("shop", "web-7")
        assert [each.subject for each in store.of(key)] == [f"pod {key}"]
        assert store.about(f"pod {key}") == store.of(key)
        return lambda: (store.of(key), store.about(f"pod {key}"))

    grows_at_most(1, make, small=20, large=500)


def test_a_pace_takes_a_set_share_of_the_loop():
    pace = Pace(least=0.01, most=1.0)
    assert pace.pause == 0.01
    pace.took(0.001)
    assert pace.pause == 0.01
    pace.took(0.1)
    assert pace.pause == pytest.approx(0.4)
    pace.took(10.0)
    assert pace.pause == 1.0


def test_a_plan_is_linear_in_pods_that_policies_select():
    rules = (Rule("all", Action.BLOCK),)
    written = [
        InspectionPolicy(f"p{number}", "", LabelSelector(), namespace_selector=LabelSelector(), rules=rules)
        for number in range(8)
    ]
    policies = tuple(PlannedPolicy(each, to_snapshot(each), 100) for each in written)

    def make(count):
        stock = pods(count)
        placements, surveys, plans = Placements(), Surveys(), PortPlans()

        def run():
            fields = {"placements": placements, "surveys": surveys, "port_plans": plans}
            return plan(Inventory(pods=stock), (), NodeSettings(), {}, node_annotations={}, policies=policies, **fields)

        assert len(run().pods) == count
        return run

    is_linear(make)


QUADRATIC = {
    "in Python": lambda items: [min(items, key=lambda each: -each) for _ in items],
    "in C": lambda items: [-1 in items for _ in items],
}


@pytest.mark.parametrize("kind", QUADRATIC)
def test_quadratic_work_is_found(kind):
    with pytest.raises(AssertionError):
        is_linear(lambda count: partial(QUADRATIC[kind], list(range(count))))


def test_sorting_is_not_called_quadratic():
    is_linear(lambda count: partial(sorted, [*range(0, count, 2), *range(1, count, 2)], key=lambda each: -each))
