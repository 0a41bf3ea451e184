"""Clear HTTP that leaves a pod in TLS, to real servers: judged, recorded, verified, or left alone."""

from __future__ import annotations

import asyncio

import pytest

from sidestep.model.egress import EgressMode
from sidestep.model.filter import Filter, PathCondition, PathTest
from sidestep.model.inspection import Action, Builtin, Direction, Match, Mode, Pattern, Rule
from tests.harness.authority import Authority
from tests.harness.nginx import nginx
from tests.privileged.node.outward import PLAIN, outbound, policy, succeeded

pytestmark = pytest.mark.privileged

ADMIN = Rule("no-admin", Action.BLOCK, match=Match(Filter(paths=(PathCondition(PathTest.PREFIX, "/admin"),))))
CARDS = Rule("cards", Action.BLOCK, patterns=(Pattern(builtin=Builtin.CARD_NUMBER),))
CARD = "4111 1111 1111 1111"


def originating(*rules, **fields):
    return policy(*rules, opens=EgressMode.ORIGINATE, **{"trust": "authority", **fields})


async def clear(pod, name, *options, **fields):
    """What curl says that speaks clear HTTP."""
    return await pod.asked(name, *options, port=PLAIN, scheme="http", **fields)


def code(done):
    assert done.returncode == 0, done.stderr
    return int(done.stdout.rsplit("\n", 1)[1].split()[0][-3:])


def test_clear_http_leaves_in_tls_under_the_name_that_was_asked_for(program, tmp_path):
    async def go():
        async with outbound(program, tmp_path, originating()) as pod:
            for address in (pod.space.client_ip,):
                assert succeeded(await clear(pod, "api.test", address=address), address)
            [seen] = pod.web.requests()
            assert (seen["tls"], seen["sni"]) == ("TLSv1.3", "api.test")
            await pod.counted(outbound=1, outbound_opened=1, outbound_closed=None)
            assert pod.some.conditions.all() == ()

    asyncio.run(go())


def test_rules_look_at_requests_and_bodies_and_what_they_block_does_not_leave(program, tmp_path):
    async def go():
        async with outbound(program, tmp_path, originating(ADMIN, CARDS)) as pod:
            assert code(await clear(pod, "api.test", path="admin/users")) == 403
            assert code(await clear(pod, "api.test", "-d", f"card={CARD}")) == 403
            assert code(await clear(pod, "api.test", "-d", "card=none")) == 200
            assert [each["method"] for each in pod.web.requests()] == ["POST"]
            await pod.counted(inspection_blocked=2, outbound_opened=3)

    asyncio.run(go())


def test_answers_are_judged(program, tmp_path):
    async def go():
        rule = Rule("app", Action.BLOCK, Direction.RESPONSE, patterns=(Pattern(regex="app"),))
        async with outbound(program, tmp_path, originating(rule)) as pod:
            assert code(await clear(pod, "api.test")) == 403
            assert len(pod.web.requests()) == 1

    asyncio.run(go())


def test_detecting_lets_pass_and_counts(program, tmp_path):
    async def go():
        async with outbound(program, tmp_path, originating(ADMIN, mode=Mode.DETECT)) as pod:
            assert code(await clear(pod, "api.test", path="admin")) == 200
            await pod.counted(inspection_would_block=1, inspection_blocked=None)
            assert [each["tls"] for each in pod.web.requests()] == ["TLSv1.3"]

    asyncio.run(go())


def test_requests_of_one_connection_leave_on_one_connection(program, tmp_path):
    async def go():
        async with outbound(program, tmp_path, originating()) as pod:
            done = await clear(pod, "api.test", f"http://api.test:{PLAIN}/a", path="b")
            assert done.returncode == 0, done.stderr
            assert [each["uri"] for each in pod.web.requests()] == ["/a", "/b"]
            assert len({each["connection"] for each in pod.web.requests()}) == 1
            await pod.counted(outbound=1, outbound_opened=1)

    asyncio.run(go())


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize(
    ("name", "secret", "why"),
    [("api.test", "another", "certificate"), ("other.test", "authority", "name")],
)
def test_a_server_that_cannot_be_verified(program, tmp_path, name, secret, why, fail):
    async def go():
        secrets = {"another": Authority("Another CA").pem}
        async with outbound(program, tmp_path, originating(trust=secret, fail=fail), secrets=secrets) as pod:
            done = await clear(pod, name)
            if fail:
                assert code(done) == 502
                assert name in done.stdout
                assert "as a policy wants" in done.stdout
                assert pod.web.requests() == []
                await pod.counted(inspection_closed_server_unverified=1, outbound_closed=1, outbound_opened=None)
            else:
                assert code(done) == 200
                assert [each["tls"] for each in pod.web.requests()] == [""]
                await pod.counted(inspection_bypassed_server_unverified=1, outbound_closed=None)

    asyncio.run(go())


@pytest.mark.parametrize("fail", [False, True])
def test_a_server_that_does_not_speak_tls(program, tmp_path, fail):
    async def go():
        async with outbound(program, tmp_path, originating(fail=fail)) as pod:
            with nginx(pod.space.client, tmp_path / "clear", plain=[f"{pod.space.client_ip}:8080"]) as web:
                done = await pod.asked("api.test", port=8080, scheme="http")
                assert code(done) == (502 if fail else 200)
                assert len([each for each in web.requests() if each["status"] == 200]) == (0 if fail else 1)
                outcome = "closed" if fail else "bypassed"
                await pod.counted(**{f"inspection_{outcome}_server_tls_failed": 1})

    asyncio.run(go())


def test_a_server_that_is_asked_for_by_its_address_is_verified_under_that(program, tmp_path):
    async def go():
        async with outbound(program, tmp_path, originating(fail=True)) as pod:
            served, address = Authority("Servers"), pod.space.client_ip
            pod.some.secrets.texts["authority"] = served.pem
            await pod.program(originating(fail=True, name="next"))
            certificate = served.issue("other.test", ips=[address])
            with nginx(pod.space.client, tmp_path / "far", listen=[f"{address}:8081"], certificate=certificate) as web:
                assert code(await pod.asked(address, port=8081, scheme="http")) == 200
                assert [(each["tls"], each["sni"]) for each in web.requests()] == [("TLSv1.3", "")]

    asyncio.run(go())


@pytest.mark.parametrize("fail", [False, True])
def test_without_the_authorities_of_the_policy_nothing_is_opened(program, tmp_path, fail):
    async def go():
        async with outbound(program, tmp_path, originating(trust="none", fail=fail)) as pod:
            done = await clear(pod, "api.test")
            if fail:
                assert done.returncode == 56, done.stderr
                assert pod.web.requests() == []
                await pod.counted(inspection_closed_no_trust=1)
            else:
                assert code(done) == 200
                await pod.counted(inspection_bypassed_no_trust=1)

    asyncio.run(go())


def test_tls_of_the_pod_is_observed(program, tmp_path):
    async def go():
        async with outbound(program, tmp_path, originating(fail=True)) as pod:
            assert succeeded(await pod.asked("api.test"), pod.space.client_ip)
            await pod.counted(outbound=1, outbound_opened=None, outbound_closed=None)

    asyncio.run(go())
