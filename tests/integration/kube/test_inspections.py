"""Inspections as resources: records go to who may have them, and no other kind can ask for them."""

import json

import pytest

from sidestep.kube.session_specs import DEFINITIONS
from sidestep.laptop.records import RecordHandler
from sidestep.model.errors import RefusedError
from sidestep.model.intercept import Live, SessionKind, Snap
from sidestep.model.pod import PodKey
from sidestep.protocols import eve
from sidestep.proxy.control.messages import LostCopies
from sidestep.tunnel.messages import HeaderSpec, Lost
from tests.integration.kube import cluster
from tests.integration.kube.cluster import GROUP, Laptop, a_session, daemon, is_not_served_elsewhere, run, until
from tests.unit.node.records.made import alert

PLURAL = DEFINITIONS[SessionKind.INSPECTION].plural
POD = PodKey("shop", "orders-1")


def inspecting(api, got=None, **spec):
    async def take(_record, line):
        if got is not None:
            got.append(json.loads(line))

    values = {"kind": "wiretap", "records": "all", "headers": (), **spec}
    return Laptop(api, handler=RecordHandler(take), **values)


def resource(api, name="orders-1-inspect"):
    return cluster.resource(api, name, PLURAL)


def status(api, name="orders-1-inspect"):
    return cluster.status(api, name, PLURAL)


def test_from_create_to_records_to_delete():
    async def test(api):
        async with daemon(api) as node:
            got = []
            laptop = inspecting(api, got)
            await until(lambda: laptop.ear.active == 1, what="active")
            found = resource(api)
            assert found["spec"].items() >= {"owner": "ada", "workload": "pod/orders-1"}.items()
            assert found["spec"].get("records", "All") == "All"
            assert cluster.resource(api) is None
            [intercept] = node.cluster.intercepts()
            assert (intercept.records, intercept.capture) == (Live.ALL, Snap.NOTHING)
            await until(lambda: status(api).get("state") == "Active", what="state Active")
            feed = node.sessions.record_feed(intercept.uid)
            for number in range(20):
                feed.put(eve.encode(alert(b"/%d" % number)), str(POD))
            await until(lambda: len(got) == 20, what="the records")
            assert [each["http"]["url"] for each in got] == [f"/{number}" for number in range(20)]
            node.sessions.record_losses([LostCopies(intercept.uid, 8443, "budget", 7)], pod=POD)
            told = lambda: [each.count for each in laptop.ear.events if isinstance(each, Lost)]  # noqa: E731
            await until(lambda: told() == [7], what="the losses")
            await laptop.end()
            assert resource(api) is None
            assert node.cluster.intercepts() == ()
            assert node.sessions.waiting_records.held == 0
            assert api.objects.get(("/api/v1", "events"), {}) == {}

    run(test)


def test_what_pods_send_is_asked_for_without_a_port():
    async def test(api):
        async with daemon(api) as node:
            laptop = inspecting(api, port="", egress=True)
            await until(lambda: laptop.ear.active == 1, what="active")
            found = resource(api)["spec"]
            assert (found["egress"], "port" in found) == (True, False)
            [intercept] = node.cluster.intercepts()
            assert (intercept.egress, intercept.port, intercept.records) == (True, "", Live.ALL)
            await laptop.end()
            assert node.cluster.intercepts() == ()

    run(test)


def test_alerts_alone():
    async def test(api):
        async with daemon(api) as node:
            laptop = inspecting(api, records="alerts")
            await until(lambda: laptop.ear.active == 1, what="active")
            assert resource(api)["spec"]["records"] == "Alerts"
            [intercept] = node.cluster.intercepts()
            assert intercept.records is Live.ALERTS
            await laptop.end()

    run(test)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"records": "all"}, "records"),
        ({"records": "Bodies"}, "records"),
        ({"records": ["All"]}, "records"),
        ({"port": "../8443"}, "spec.port"),
        ({"pod": "orders-1/../x"}, "spec.pod"),
        ({"workload": "other-namespace/pod/orders-1"}, "is no workload"),
        ({"filter": {"methods": ["G T"]}}, "not a method"),
        *(
            ({"filter": {"headers": [{"name": name, "match": match, "value": "Bearer a"}]}}, "not for its value")
            for name in ("authorization", "cookie", "proxy-authorization")
            for match in ("Exact", "Regex")
        ),
        ({"session": {"publicKey": "A" * 44}}, "key"),
    ],
)
def test_what_cannot_be_served_is_refused_in_the_status(spec, told):
    async def test(api):
        async with daemon(api) as node:
            await api.put(GROUP, PLURAL, a_session("hostile", **spec))
            await until(lambda: told in status(api, "hostile").get("message", ""), what=lambda: told)
            assert node.cluster.intercepts() == ()

    run(test)


def test_it_may_ask_whether_there_is_a_credential():
    async def test(api):
        async with daemon(api):
            laptop = inspecting(api, headers=(HeaderSpec("cookie", "present", ""),))
            await until(lambda: laptop.ear.active == 1, what="active")
            await laptop.end()

    run(test)


def test_no_other_kind_can_ask_for_records_and_an_inspection_for_nothing_else():
    async def test(api):
        async with daemon(api) as node:
            asked = {"records": "All", "capture": "all", "snap": "All", "kind": "wiretap"}
            laptops = [Laptop(api), Laptop(api, kind="wiretap", user="bob"), inspecting(api, user="eve")]
            for laptop in laptops:
                create = laptop.session._api.create

                async def with_more(path, body, create=create):
                    value = json.loads(body)
                    value["spec"] |= asked
                    return await create(path, json.dumps(value).encode())

                laptop.session._api.create = with_more
            for laptop in laptops:
                await until(lambda laptop=laptop: laptop.ear.active == 1, what="active")
            found = sorted((each.session_kind.value, each.records.value) for each in node.cluster.intercepts())
            assert found == [("inspection", "all"), ("intercept", ""), ("wiretap", "")]
            for laptop in laptops:
                await laptop.end()

    run(test)


def test_it_cannot_reach_into_another_namespace():
    run(lambda api: is_not_served_elsewhere(api, PLURAL))


def test_without_its_definition_nothing_else_suffers():
    async def test(api):
        api.unknown.add(PLURAL)
        async with daemon(api):
            with pytest.raises(
                RefusedError, match=r"inspections.sidestep.dev is not installed .* deploy/inspection.yaml"
            ):
                await inspecting(api).task
            laptop = Laptop(api)
            await until(lambda: laptop.ear.active == 1, what="an intercept")
            await laptop.end()

    run(test)


def test_who_lacks_the_right_is_told_the_verb_and_the_role():
    async def test(api):
        api.forbid("create", PLURAL)
        async with daemon(api):
            with pytest.raises(RefusedError) as refused:
                await inspecting(api).task
            assert "you may not create inspections.sidestep.dev in namespace shop" in str(refused.value)
            assert "--clusterrole=sidestep-auditor --user=eve -n shop" in str(refused.value)

    run(test)
