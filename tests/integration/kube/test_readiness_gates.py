"""The readiness gate sidestep.dev/inspected: when a pod may get requests, what is written, who must allow it."""

from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from sidestep.kube.conversion import READINESS_GATE
from sidestep.model.condition import ConditionType
from sidestep.model.pod import Pod, PodKey
from sidestep.node.cluster.readiness_gates import PATIENCE, REFUSED_AGAIN, SETTLING, ReadinessGates, gate_state
from sidestep.node.conditions import Conditions
from sidestep.node.planning.plan import Plan
from sidestep.node.policies import CHECKING
from sidestep.policy.survey import PodSurvey
from sidestep.tunnel.views import PolicyView
from tests.harness.fake_api import run
from tests.integration.kube.test_cluster_cache import V1, pod, scene
from tests.integration.kube.test_watch import until

KEY = PodKey("shop", "orders-1")
SURVEYS = {KEY: PodSurvey(Pod(KEY, uid="uid-orders-1"), ())}


def view(name="p", *, programmed=True, mode="Enforce", failure_policy="Fail", **more):
    pods = (str(KEY),) if programmed else ()
    return PolicyView("shop", name, mode, failure_policy, accepted=True, in_force=True, programmed=pods, **more)


def plan(*names, refused=()):
    inspected = {KEY: {8443: tuple(f"shop/{name}" for name in names)}} if names else {}
    return Plan(surveys=SURVEYS, inspected=inspected, not_inspected={(f"shop/{name}", KEY): "why" for name in refused})


@pytest.mark.parametrize(
    ("made", "views", "expected"),
    [
        (plan(), [], (True, "NoPolicy")),
        (plan(), [view()], (True, "NoPolicy")),
        (plan("p"), [view()], (True, "Inspected")),
        (plan("p", "q"), [view(), view("q")], (True, "Inspected")),
        (plan("p", "q"), [view(), view("q", programmed=False)], (False, "NotProgrammed")),
        (plan("q"), [view("q", programmed=False, mode="Detect")], (False, "NotProgrammed")),
        (plan(refused=["p"]), [view(programmed=False)], (False, "NotInspected")),
        (plan(refused=["p"]), [view(programmed=False, failure_policy="Ignore")], (True, "NoPolicy")),
        (plan(refused=["p"]), [view(programmed=False, mode="Detect")], (True, "NoPolicy")),
        (plan("q", refused=["p"]), [view(programmed=False, mode="Detect"), view("q")], (True, "Inspected")),
    ],
)
def test_the_state_of_a_gate(made, views, expected):
    state = gate_state(KEY, made, views)
    assert (state.is_open, state.reason) == expected


def test_what_is_not_known_yet():
    assert gate_state(KEY, Plan(), [view()]) is None
    new = PolicyView("shop", "new", "", "", accepted=False, problem=CHECKING)
    assert gate_state(KEY, plan("p"), [view(), new]) is None
    assert gate_state(KEY, plan("p"), [view(), replace(new, namespace="")]) is None
    # Whoever writes policies in another namespace keeps no pod of this one waiting.
    assert gate_state(KEY, plan("p"), [view(), replace(new, namespace="other")]).is_open is True
    edited = PolicyView("shop", "p", "Enforce", "Fail", accepted=False, problem=CHECKING, in_force=True)
    assert gate_state(KEY, plan("p"), [edited]).is_open is False


def gated(*, ready=True, gate=True):
    found = pod()
    if gate:
        found["spec"]["readinessGates"] = [{"conditionType": "other"}, {"conditionType": READINESS_GATE}]
    found["status"]["conditions"] = [
        {"type": "Initialized", "status": "True"},
        {"type": "ContainersReady", "status": "True" if ready else "False"},
    ]
    return found


class Node:
    def __init__(self, found):
        self.plan, self.said, self.clock = plan("p"), (view(),), 100.0
        self.found = found
        self.conditions = Conditions()
        self.gates = ReadinessGates(
            found.client,
            found.source.pods,
            self,
            self,
            self.conditions,
            "sidestep:sidestep-node",
            lambda: self.clock,
        )

    def policies(self):
        return self.said

    async def after(self, seconds):
        self.clock += seconds
        await self.gates.once()


@asynccontextmanager
async def node(api, document):
    await api.put(V1, "pods", document)
    async with scene(api) as found:
        yield Node(found)


def condition(api):
    conditions = api.get(V1, "pods", "shop", "orders-1")["status"]["conditions"]
    return {each["type"]: each["status"] for each in conditions}.get(READINESS_GATE)


async def shown(made, status):
    await until(lambda: [each.gate.status for each in made.found.source.pods()] == [status])


def test_a_pod_is_ready_once_it_is_inspected_and_its_containers_are():
    async def test(api):
        async with node(api, gated(ready=False)) as made:
            made.said = (view(programmed=False),)
            await made.after(0)
            assert condition(api) == "False"
            await shown(made, "False")
            made.said = (view(),)
            await made.after(10)
            await made.after(10)
            assert condition(api) == "False", "the containers are not ready"
            ready = api.get(V1, "pods", "shop", "orders-1")
            ready["status"]["conditions"][1]["status"] = "True"
            await api.put(V1, "pods", ready)
            await until(lambda: [each.gate.containers_ready for each in made.found.source.pods()] == [True])
            await made.after(1)
            assert condition(api) == "False", "a port that has just begun to listen has to be noticed"
            await made.after(SETTLING)
            assert condition(api) == "True"
            written = {each["type"] for each in ready["status"]["conditions"]}
            assert written >= {"Initialized", "ContainersReady"}, "the conditions of others stay"

    run(test)


def test_it_stays_ready_over_a_short_time_without():
    async def test(api):
        async with node(api, gated()) as made:
            await made.after(0)
            await made.after(SETTLING)
            assert condition(api) == "True"
            await shown(made, "True")
            made.said = (view(programmed=False),)
            await made.after(1)
            await made.after(PATIENCE - 1)
            made.said = (view(),)
            await made.after(1)
            assert condition(api) == "True"
            made.said = (view(programmed=False),)
            await made.after(1)
            await made.after(PATIENCE)
            assert condition(api) == "False"

    run(test)


def test_a_pod_that_does_not_ask_is_left_alone():
    async def test(api):
        async with node(api, gated(gate=False)) as made:
            await made.after(0)
            await made.after(60)
            assert condition(api) is None
            assert not any("PATCH" in each for each in api.requests)

    run(test)


def test_who_must_allow_it_is_told():
    async def test(api):
        async with node(api, gated()) as made:
            api.forbid("patch", "pods/status")
            await made.after(0)
            await made.after(SETTLING)
            [told] = made.conditions.of(KEY)
            assert told.type is ConditionType.READINESS_FORBIDDEN
            assert "--clusterrole=sidestep-readiness --serviceaccount=sidestep:sidestep-node -n shop" in told.text
            asked = len(api.requests)
            await made.after(1)
            assert not any("PATCH" in each for each in api.requests[asked:])
            api.forbidden.clear()
            await made.after(REFUSED_AGAIN)
            assert condition(api) == "True"
            assert made.conditions.of(KEY) == ()

    run(test)


def test_a_pod_that_leaves_takes_its_condition_with_it():
    async def test(api):
        async with node(api, gated()) as made:
            api.forbid("patch", "pods/status")
            await made.after(0)
            await made.after(SETTLING)
            assert made.conditions.of(KEY)
            await api.remove(V1, "pods", "shop", "orders-1")
            await until(lambda: not made.found.source.pods())
            await made.after(1)
            assert made.conditions.of(KEY) == ()

    run(test)


def test_a_pod_whose_condition_is_not_taken_holds_up_no_other():
    async def test(api):
        refused = gated()
        refused["metadata"] |= {"name": "carts-1", "uid": "uid-carts-1"}
        await api.put(V1, "pods", refused)
        async with node(api, gated()) as made:
            api.failing["/api/v1/namespaces/shop/pods/carts-1/status"] = 500
            key = PodKey("shop", "carts-1")
            surveys = {**SURVEYS, key: PodSurvey(Pod(key, uid="uid-carts-1"), ())}
            made.plan = Plan(surveys=surveys, inspected=plan("p").inspected)
            await made.gates.once()
            await made.after(SETTLING)
            assert condition(api) == "True"

    run(test)
