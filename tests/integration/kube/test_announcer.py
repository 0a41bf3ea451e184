"""Conditions as Events: once, after a moment, on the right object, and not without bound."""

import asyncio

from sidestep.kube.api import Api
from sidestep.kube.session_specs import DEFINITIONS
from sidestep.model.condition import Condition, ConditionType
from sidestep.model.intercept import SessionKind
from sidestep.model.pod import PodKey
from sidestep.node.cluster.announcer import BURST, PERIOD, STABLE_FOR, Announcer
from sidestep.node.conditions import Conditions, Source
from sidestep.node.records.alert_notes import AGAIN, AlertNotes
from sidestep.node.sessions.resources import SessionResources
from sidestep.protocols.eve_records import RecordedAction
from tests.harness.fake_api import FakeApi
from tests.unit.node.scenes import inventory, pod
from tests.unit.node.sessions.test_resources import value

BAD = Condition(ConditionType.CERTIFICATE_INVALID, "pod shop/orders-1 port 8443", "tls.key does not match")


class Scene:
    def __init__(self, api):
        self.now = 100.0
        self.api = api
        self.client = Api(api.access())
        self.conditions = Conditions()
        self.resources = SessionResources(now=lambda: self.now)
        self.alerts = AlertNotes()
        self.announcer = Announcer(
            self.client,
            node="n1",
            conditions=self.conditions,
            inventory=lambda: inventory(pod(), pod(namespace="aaa")),
            resources=self.resources,
            now=lambda: self.now,
            alerts=self.alerts,
        )

    async def after(self, seconds):
        self.now += seconds
        await self.announcer.once()
        return [event for _, event in self.api.objects.get(("/api/v1", "events"), {}).items()]


def run(test):
    async def body():
        async with FakeApi() as api:
            made = Scene(api)
            try:
                await asyncio.wait_for(test(made), 30)
            finally:
                await made.client.aclose()
                await asyncio.sleep(0.01)

    asyncio.run(body())


def test_one_event_on_the_pod_when_it_has_stood_and_one_when_it_is_over():
    async def test(scene):
        source = Source("certificate", PodKey("shop", "orders-1"))
        scene.conditions.state(source, [BAD])
        assert await scene.after(0) == []
        assert await scene.after(1) == []
        (event,) = await scene.after(1.5)
        assert event["involvedObject"] == {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": "shop",
            "name": "orders-1",
            "uid": "uid-orders-1",
        }
        assert event["metadata"]["namespace"] == "shop"
        assert (event["type"], event["reason"]) == ("Warning", "CertificateInvalid")
        assert event["message"] == "port 8443: tls.key does not match"
        assert event["source"] == {"component": "sidestep", "host": "n1"}
        assert len(await scene.after(5)) == 1
        scene.conditions.state(source, [])
        events = await scene.after(1)
        assert {each["reason"] for each in events} == {"CertificateInvalid", "CertificateInvalidResolved"}
        assert {each["type"] for each in events} == {"Warning", "Normal"}

    run(test)


def test_what_comes_and_goes_is_not_told():
    async def test(scene):
        source = Source("plan", PodKey("shop", "orders-1"))
        for _ in range(3):
            scene.conditions.state(source, [BAD])
            assert await scene.after(1) == []
            scene.conditions.state(source, [])
            assert await scene.after(1) == []

    run(test)


def test_what_flaps_is_told_once():
    async def test(scene):
        source = Source("target", PodKey("shop", "orders-1"))
        for _ in range(4):
            scene.conditions.state(source, [BAD])
            await scene.after(0)
            await scene.after(3)
            scene.conditions.state(source, [])
            events = await scene.after(1)
        assert sorted(each["reason"] for each in events) == ["CertificateInvalid", "CertificateInvalidResolved"]

    run(test)


def test_nodes_and_resources_have_events_too():
    async def test(scene):
        scene.resources.apply(SessionKind.INTERCEPT, value("a"))
        scene.conditions.state(Source("node"), [Condition(ConditionType.ANNOTATION_INVALID, "node n1", "bad glob")])
        found = Condition(ConditionType.PORT_UNKNOWN, "intercept shop/a", "no such port")
        scene.conditions.state(Source("plan"), [found])
        await scene.after(0)
        events = {each["involvedObject"]["kind"]: each for each in await scene.after(3)}
        assert set(events) == {"Node", DEFINITIONS[SessionKind.INTERCEPT].kind}
        assert events["Node"]["metadata"]["namespace"] == "default"
        assert events["Node"]["involvedObject"]["uid"] == "n1"
        assert events["Intercept"]["involvedObject"]["uid"] == "uid-a"

    run(test)


def test_a_thousand_conditions_are_no_thousand_requests():
    async def test(scene):
        many = [Condition(ConditionType.ANNOTATION_INVALID, "node n1", f"number {each}") for each in range(120)]
        scene.conditions.state(Source("node"), many)
        await scene.after(0)
        assert len(await scene.after(3)) == BURST
        assert len(await scene.after(10)) == BURST + 2

    run(test)


def test_an_event_that_is_refused_is_given_up():
    async def test(scene):
        scene.api.forbid("create", "events")
        scene.conditions.state(Source("node"), [Condition(ConditionType.ANNOTATION_INVALID, "node n1", "bad")])
        await scene.after(0)
        assert await scene.after(3) == []
        requests = len(scene.api.requests)
        await scene.after(3)
        assert len(scene.api.requests) == requests

    run(test)


def test_what_the_status_of_a_policy_says_is_no_event():
    async def test(scene):
        bad = Condition(ConditionType.POLICY_INVALID, "InspectionPolicy shop/orders", "spec.mode: no")
        scene.conditions.state(Source("policy", detail="shop/orders"), [bad])
        assert await scene.after(1) == []
        assert await scene.after(5) == []
        scene.conditions.state(Source("policy", detail="shop/orders"), [])
        assert await scene.after(5) == []

    run(test)


def test_alerts_of_inspection_are_told_on_their_pod_seldom():
    async def test(scene):
        orders = PodKey("shop", "orders-1")
        for _ in range(3):
            scene.alerts.note(orders, "shop/p", "no-admin", RecordedAction.BLOCK)
        scene.alerts.note(PodKey("shop", "gone"), "shop/p", "no-admin", RecordedAction.BLOCK)
        (event,) = await scene.after(1)
        assert (event["type"], event["reason"]) == ("Warning", "InspectionAlert")
        assert event["involvedObject"]["uid"] == "uid-orders-1"
        assert event["message"] == "policy shop/p, rule no-admin blocked 3 requests"
        scene.alerts.note(orders, "shop/p", "no-admin", RecordedAction.BLOCK)
        assert len(await scene.after(AGAIN / 2)) == 1
        assert len(await scene.after(AGAIN / 2)) == 2

    run(test)


def test_alerts_of_many_rules_share_what_all_events_may_be():
    async def test(scene):
        for number in range(BURST * 2):
            scene.alerts.note(PodKey("shop", "orders-1"), "shop/p", f"r{number}", RecordedAction.ALERT)
        assert len(await scene.after(1)) == BURST
        assert BURST < len(await scene.after(60)) < 2 * BURST

    run(test)


def test_no_namespace_keeps_anothers_events_back():
    async def test(scene):
        many = [
            Condition(ConditionType.ANNOTATION_INVALID, "pod aaa/orders-1", f"no number: {number}")
            for number in range(BURST * 3)
        ]
        scene.conditions.state(Source("annotations", PodKey("aaa", "orders-1")), many)
        scene.conditions.state(Source("certificate", PodKey("shop", "orders-1")), [BAD])
        await scene.after(0)
        for number in range(BURST):
            scene.alerts.note(PodKey("aaa", "orders-1"), "aaa/p", f"r{number}", RecordedAction.ALERT)
        scene.alerts.note(PodKey("shop", "orders-1"), "shop/p", "no-admin", RecordedAction.BLOCK)
        events = await scene.after(STABLE_FOR)
        assert len(events) == BURST
        mine = {each["reason"] for each in events if each["metadata"]["namespace"] == "shop"}
        assert mine == {"CertificateInvalid", "InspectionAlert"}
        scene.conditions.state(Source("certificate", PodKey("shop", "orders-1")), [])
        events = await scene.after(PERIOD * 1.5)
        assert "CertificateInvalidResolved" in {each["reason"] for each in events}, "one Event, and whose turn it is"

    run(test)
