"""Ports that a policy closes: whatever fails, no client reaches the app past the proxy, and none waits for long."""

import asyncio
import contextlib
import os
import signal
import threading
import time

import pytest
from msgspec.structs import replace

from sidestep.config.annotation_names import DOWNSTREAM_SECRET
from sidestep.model.condition import ConditionType
from sidestep.model.filter import Filter, PathCondition, PathTest
from sidestep.model.inspection import Action, FailurePolicy, InspectionPolicy, Match, Mode, Rule
from sidestep.model.pod import ContainerPort, Family, Transport
from sidestep.model.workload import LabelSelector
from sidestep.node.planning.inspection import PlannedPolicy
from sidestep.node.planning.inspection_times import NOT_PROGRAMMED, Outcome, Uninspected
from sidestep.node.proxies.supervisor import ProxyLimits, ProxyState, SupervisorSettings
from sidestep.policy.inspection_rows import to_snapshot
from tests.harness import kernel
from tests.harness.http1 import ClosedError
from tests.harness.namespaces import pod_namespace
from tests.harness.peers import Client, Server, http_app
from tests.harness.waiting import until
from tests.privileged.node.rig import PORT, QUICK, intercept, pod_of, rig
from tests.privileged.node.test_serving import HANG, WALL, idle_clients, kill_listener, listener_of, shut_listener

pytestmark = pytest.mark.privileged

REFUSED, RESET = "refused", "reset"


def policy(failure=FailurePolicy.FAIL, mode=Mode.ENFORCE):
    """Blocks /admin."""
    match = Match(filter=Filter(paths=(PathCondition(PathTest.PREFIX, "/admin"),)))
    rule = Rule("no-admin", Action.BLOCK, match=match)
    made = InspectionPolicy(
        "orders", "shop", pod_selector=LabelSelector(), mode=mode, failure_policy=failure, rules=(rule,)
    )
    return PlannedPolicy(made, to_snapshot(made), 0)


def app_in(space):
    return Server(http_app, netns=space.pod, address="::", dual_stack=True, port=PORT)


@contextlib.asynccontextmanager
async def inspected(program, *, failure=FailurePolicy.FAIL, **settings):
    """A pod whose one port has a policy and is steered; yields (namespace, rig, target, app)."""
    with pod_namespace() as space, app_in(space) as app:
        async with rig(program, **settings) as some:
            key = some.add(pod_of(space, stated=False))
            some.policies = (policy(failure),)
            some.plan()
            await some.until(lambda: len(some.steered_families(key)) == len(Family))
            yield space, some, some.target(key), app


def outcome(space, path="/", ip=None):
    """What one new client meets: who answers with which status, REFUSED or RESET. It never waits for long."""
    began = time.monotonic()
    try:
        with Client(ip or space.ip, PORT, netns=space.client, within=HANG) as client:
            answer = client.get(path, "Connection: close")
            found = answer.header("x-served-by") if answer.status == 200 else str(answer.status)
    except ConnectionRefusedError:
        found = REFUSED
    except TimeoutError as error:
        raise AssertionError(f"hung for {time.monotonic() - began:.1f} s") from error
    except (OSError, ClosedError):
        found = RESET
    return found


async def met(space, **fields):
    return await asyncio.to_thread(outcome, space, **fields)


async def refused(space):
    """Both families refuse."""
    return {await met(space), await met(space, ip=space.ip6)} == {REFUSED}


def direct(space, app):
    """Connections of clients that the app got without the proxy."""
    clients = {space.client_ip, space.client_ip6, f"::ffff:{space.client_ip}"}
    return [each.peer for each in app.connections if each.peer[0] in clients]


def types(some):
    return {each.type for each in some.conditions.all()}


async def comes_back(some, space, target, app, *, within=15.0):
    """The port is served again, nothing is said about it any more, and no client has met the app directly."""
    await some.until(lambda: target.steered().get(PORT) and types(some) == set(), within=within)
    assert some.reconciler.closed(target.pod.key) == ()
    assert await met(space) == "app"
    assert await met(space, path="/admin") == "403"
    assert direct(space, app) == []
    some.audit.once()
    assert types(some) == set()


def seconds(some, target, outcome, reason):
    """For how long the pod's port was not inspected for this reason."""
    return some.reconciler.uninspected(target.pod.key).get(Uninspected(outcome, reason), 0.0)


@contextlib.contextmanager
def knocking(space, path="/admin"):
    """Clients that ask all the time for what the policy blocks; yields the outcomes so far."""
    outcomes, end = [], threading.Event()

    def knock(ip):
        while not end.is_set():
            try:
                outcomes.append(outcome(space, path, ip))
            except AssertionError as error:
                outcomes.append(str(error))

    threads = [threading.Thread(target=knock, args=(ip,)) for ip in (space.ip, space.ip6, space.ip)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(outcomes) > 6, within=10, what="the clients to get going")
        yield outcomes
    finally:
        end.set()
        for thread in threads:
            thread.join(2 * HANG)


# --- a proxy that dies ------------------------------------------------------------------------------------------------


def test_killed_proxies_are_replaced_and_not_a_byte_of_a_blocked_request_reaches_the_app(program):
    async def story():
        async with inspected(program) as (space, some, target, app):
            with knocking(space) as outcomes:
                for _ in range(4):
                    proxy = target.proxy_pid
                    os.kill(proxy, signal.SIGKILL)
                    await some.until(lambda proxy=proxy: target.proxy_pid not in (None, proxy))
                    count = len(outcomes)
                    await some.until(lambda count=count: len(outcomes) > count + 6, within=10.0)
            assert set(outcomes) <= {"403", RESET, REFUSED}, set(outcomes)
            assert outcomes.count("403") > len(outcomes) / 2, outcomes
            assert not any(b"/admin" in bytes(each.reader.received) for each in app.connections)
            await comes_back(some, space, target, app)

    asyncio.run(story())


def test_who_waits_in_the_queue_of_a_killed_proxy_is_served_by_the_next(program):
    async def story():
        async with inspected(program) as (space, some, target, app):
            os.kill(target.proxy_pid, signal.SIGSTOP)
            with idle_clients(space, 8) as clients:
                for client in clients:
                    client.sock.settimeout(HANG)
                    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                os.kill(target.proxy_pid, signal.SIGKILL)
                answers = await asyncio.to_thread(lambda: [each.reader.message(answers="GET") for each in clients])
            assert {each.header("x-served-by") for each in answers} == {"app"}
            await comes_back(some, space, target, app)

    asyncio.run(story())


@pytest.mark.parametrize("failure", FailurePolicy)
def test_a_proxy_that_cannot_be_replaced_closes_the_port_or_leaves_it_to_the_app(program, failure):
    """The zygote is stopped and the proxy killed: no proxy comes until the zygote was replaced."""

    async def story():
        async with inspected(program, failure=failure) as (space, some, target, app):
            zygote = some.supervisor.zygote.pid
            os.kill(zygote, signal.SIGSTOP)
            try:
                with idle_clients(space, 4) as waiting:
                    os.kill(target.proxy_pid, signal.SIGKILL)
                    await some.until(lambda: not target.steered()[PORT])
                    for client in waiting:
                        client.sock.settimeout(HANG)
                        with pytest.raises((ConnectionError, ClosedError)):
                            client.get("/admin")
                if failure is FailurePolicy.FAIL:
                    assert await refused(space)
                    assert ConditionType.PORT_CLOSED in types(some)
                    assert some.reconciler.closed(target.pod.key) == (PORT,)
                    assert direct(space, app) == []
                else:
                    assert await met(space, path="/admin") == "app"
                    assert ConditionType.PORT_CLOSED not in types(some)
                    app.connections.clear()
                await some.until(lambda: some.supervisor.zygote.pid not in {None, zygote}, within=15.0)
                await some.until(lambda: target.steered()[PORT], within=15.0)
                app.connections.clear()
                await comes_back(some, space, target, app)
                outcome = Outcome.CLOSED if failure is FailurePolicy.FAIL else Outcome.OPEN
                assert seconds(some, target, outcome, "no-proxy") > 0.5
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(zygote, signal.SIGCONT)

    asyncio.run(story())


def test_a_crash_loop_closes_the_port_until_a_proxy_lives(program):
    async def story():
        async with inspected(program, settings=QUICK) as (space, some, target, app):
            while target.proxy_state is not ProxyState.FAILED:
                if (pid := target.proxy_pid) is not None:
                    os.kill(pid, signal.SIGKILL)
                    await some.until(lambda pid=pid: target.proxy_pid != pid)
                await asyncio.sleep(0)
            assert await refused(space)
            assert {ConditionType.PORT_CLOSED, ConditionType.PROXY_CRASH_LOOP} <= types(some)
            await comes_back(some, space, target, app)
            assert seconds(some, target, Outcome.CLOSED, "no-proxy") > 0

    asyncio.run(story())


def test_a_proxy_that_hangs_closes_the_port_until_it_is_replaced(program):
    async def story():
        async with inspected(program) as (space, some, target, app):
            os.kill(target.proxy_pid, signal.SIGSTOP)
            await some.until(lambda: not target.steered()[PORT])
            assert await refused(space)
            await comes_back(some, space, target, app)

    asyncio.run(story())


# --- a proxy that lives and cannot serve ------------------------------------------------------------------------------


def test_a_proxy_without_room_closes_the_port_until_it_has_some(program):
    settings = SupervisorSettings(limits=ProxyLimits(descriptors=160))

    async def story():
        async with inspected(program, settings=settings) as (space, some, target, app):
            with idle_clients(space, 80):
                await some.until(lambda: not target.steered()[PORT])
                assert await refused(space)
                assert "no room for more connections" in some.texts()
                assert "clients are refused meanwhile" in some.texts()
                assert target.proxy_state is ProxyState.RUNNING
            await comes_back(some, space, target, app)
            assert seconds(some, target, Outcome.CLOSED, "hindered") > 0

    asyncio.run(story())


def test_an_app_that_cannot_be_reached_from_inside_closes_the_port(program):
    async def story():
        async with inspected(program) as (space, some, target, app):
            space.pod.run("nft", WALL.format("iif lo drop"))
            with knocking(space, "/") as outcomes:
                await some.until(lambda: not target.steered()[PORT])
            assert await refused(space)
            assert set(outcomes) <= {RESET, REFUSED}, set(outcomes)
            assert direct(space, app) == []
            space.pod.run("nft", "delete table inet wall")
            await comes_back(some, space, target, app, within=30.0)

    asyncio.run(story())


@pytest.mark.parametrize("end", [kill_listener, shut_listener])
def test_a_listener_that_somebody_in_the_pod_ends_opens_nothing(program, end):
    async def story():
        async with inspected(program) as (space, some, target, app):
            with knocking(space) as outcomes:
                for _ in range(3):
                    first = listener_of(target)
                    end(space, target)
                    await some.until(
                        lambda first=first: listener_of(target) is not first and target.steered()[PORT], within=10.0
                    )
            assert set(outcomes) <= {"403", RESET, REFUSED}, set(outcomes)
            assert not any(b"/admin" in bytes(each.reader.received) for each in app.connections)
            await comes_back(some, space, target, app)

    asyncio.run(story())


# --- the app ----------------------------------------------------------------------------------------------------------


def test_an_app_that_starts_is_never_met_directly(program):
    async def story():
        with pod_namespace() as space:
            async with rig(program) as some:
                key = some.add(pod_of(space, stated=False))
                some.policies = (policy(),)
                some.plan()
                await some.until(lambda: ConditionType.NO_APP in types(some))
                assert await refused(space)
                with knocking(space) as outcomes:
                    for _ in range(3):
                        with app_in(space) as app:
                            await some.until(lambda: some.steered(key))
                            count = outcomes.count("403")
                            await some.until(lambda count=count: outcomes.count("403") > count + 3)
                            assert direct(space, app) == []
                        await some.until(lambda: not some.steered(key))
                assert set(outcomes) <= {"403", RESET, REFUSED}, set(outcomes)
                assert some.reconciler.closed(key) == ()
                assert not [each for each in some.reconciler.uninspected(key) if each != NOT_PROGRAMMED]

    asyncio.run(story())


# --- policies come and go ---------------------------------------------------------------------------------------------


def test_a_new_pod_is_open_until_the_policy_is_programmed_and_the_time_is_counted(program):
    async def story():
        async with inspected(program) as (space, some, target, app):
            counted = some.reconciler.uninspected(target.pod.key)
            assert list(counted) == [NOT_PROGRAMMED]
            assert 0 < counted[NOT_PROGRAMMED] < 30
            await comes_back(some, space, target, app)
            assert some.reconciler.uninspected(target.pod.key) == counted

    asyncio.run(story())


@contextlib.asynccontextmanager
async def closed(program):
    """A pod whose port is closed because its proxy was killed and cannot be replaced."""
    async with inspected(program) as (space, some, target, app):
        zygote = some.supervisor.zygote.pid
        os.kill(zygote, signal.SIGSTOP)
        try:
            os.kill(target.proxy_pid, signal.SIGKILL)
            await some.until(lambda: not target.steered()[PORT])
            assert await refused(space)
            yield space, some, target, app
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(zygote, signal.SIGCONT)


EDITS = {
    "deleted": ([], ()),
    "deleted on a port that is intercepted": ([intercept()], ()),
    "edited to ignore failures": ([], (policy(FailurePolicy.IGNORE),)),
    "edited to detect": ([], (policy(mode=Mode.DETECT),)),
}
"""The intercepts and policies that there are then."""


@pytest.mark.parametrize("edit", EDITS)
def test_a_policy_that_goes_opens_its_port_at_once_although_no_proxy_answers(program, edit):
    async def story():
        async with closed(program) as (space, some, target, _):
            some.intercepts, some.policies = EDITS[edit]
            some.plan()
            assert target._steering is None or target._steering.closed_ports() == frozenset()
            assert await met(space, path="/admin") == "app"

    asyncio.run(story())


def test_a_policy_that_goes_opens_its_port_while_the_pod_waits_for_a_certificate(program):
    """The plan of the pod is not applied before: the certificate may be in a Secret of an API server that is away."""

    async def story():
        async with closed(program) as (space, some, target, app):
            key = target.pod.key
            pod, certified = some.pods[key], {f"{DOWNSTREAM_SECRET}.8443": "orders-tls"}
            some.pods[key] = replace(pod, ports=(*pod.ports, ContainerPort(8443)), annotations=certified)
            assert some.plan().waiting == {key}
            assert await refused(space)
            some.policies = (policy(FailurePolicy.IGNORE),)
            assert some.plan().waiting == {key}
            assert target._steering.closed_ports() == frozenset()
            assert await met(space, path="/admin") == "app"
            target.look()
            assert target._steering.closed_ports() == frozenset()
            assert some.reconciler.closed(key) == ()
            assert ConditionType.PORT_CLOSED not in types(some)
            some.policies = (policy(),)
            assert some.plan().waiting == {key}
            assert await refused(space)
            app.connections.clear()

    asyncio.run(story())


def test_a_policy_that_comes_while_no_proxy_is_there_closes_the_port_at_once(program):
    async def story():
        async with inspected(program, failure=FailurePolicy.IGNORE) as (space, some, target, app):
            zygote = some.supervisor.zygote.pid
            os.kill(zygote, signal.SIGSTOP)
            try:
                os.kill(target.proxy_pid, signal.SIGKILL)
                await some.until(lambda: not target.steered()[PORT])
                assert await met(space) == "app"
                some.policies = (policy(),)
                some.plan()
                assert await refused(space)
                app.connections.clear()
                await some.until(lambda: target.steered()[PORT], within=20.0)
                await comes_back(some, space, target, app)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(zygote, signal.SIGCONT)

    asyncio.run(story())


def test_the_end_of_the_reconciler_opens_everything(program):
    async def story():
        async with closed(program) as (space, some, _, _):
            some.reconciler.abandon()
            assert await met(space, path="/admin") == "app"

    asyncio.run(story())


def test_the_audit_puts_the_kernels_map_right(program):
    async def story():
        async with inspected(program) as (space, some, target, app):
            steering = target._steering
            expected = steering.closed_ports()
            assert expected == {(PORT, Transport.TCP, family) for family in Family}
            steering.open_port(PORT, Transport.TCP, Family.IPV6)
            steering.close_port(PORT + 1, Transport.TCP, Family.IPV4)
            some.audit.once()
            assert steering.closed_ports() == expected
            assert some.audit.repaired == 2
            assert "was not closed any more" in some.texts()
            assert "was closed without a reason" in some.texts()
            some.audit.once()
            await comes_back(some, space, target, app)

    asyncio.run(story())


# --- two daemons ------------------------------------------------------------------------------------------------------


def test_a_successor_begins_with_the_ports_closed_and_the_predecessor_hands_over(program):
    """The first daemon has closed the port, and the second takes long to start a proxy: no client meets the app."""

    async def story():
        async with closed(program) as (space, old, target, app), rig(program) as new:
            zygote = new.supervisor.zygote.pid
            os.kill(zygote, signal.SIGSTOP)
            try:
                with knocking(space) as outcomes:
                    old.reconciler.freeze()
                    new.policies = (policy(),)
                    key = new.add(target.pod)
                    new.plan()
                    await old.until(lambda: target._steering.closed_ports() == frozenset(), within=10.0)
                    assert await refused(space)
                    old.reconciler.abandon()
                    assert await refused(space)
                    os.kill(zygote, signal.SIGCONT)
                    await new.until(lambda: new.steered(key), within=20.0)
                    count = outcomes.count("403")
                    await new.until(lambda: outcomes.count("403") > count + 6, within=10.0)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(zygote, signal.SIGCONT)
            assert set(outcomes) <= {"403", RESET, REFUSED}, set(outcomes)
            assert direct(space, app) == []

    asyncio.run(story())


def test_a_successor_whose_policies_do_not_close_the_port_opens_it(program):
    async def story():
        async with closed(program) as (space, old, target, _), rig(program) as new:
            new.policies = (policy(FailurePolicy.IGNORE),)
            old.reconciler.freeze()
            key = new.add(target.pod)
            new.plan()
            await new.until(lambda: new.steered(key), within=20.0)
            await old.until(lambda: target._steering.closed_ports() == frozenset(), within=10.0)
            new.target(key)._steering.close()
            assert await met(space) == "app"

    asyncio.run(story())


def test_a_pod_without_a_predecessor_is_open_until_its_proxy_is_programmed(program):
    """The zygote is stopped while the proxy is to be started: the program is attached, and nothing is closed yet."""

    async def story():
        with pod_namespace() as space, app_in(space) as app:
            async with rig(program) as some:
                zygote = some.supervisor.zygote.pid
                os.kill(zygote, signal.SIGSTOP)
                try:
                    key = some.add(pod_of(space, stated=False))
                    some.policies = (policy(),)
                    some.plan()
                    await some.until(lambda: kernel.steering(space.pod).links)
                    assert await met(space, path="/admin") == "app"
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(zygote, signal.SIGCONT)
                await some.until(lambda: some.steered(key), within=15.0)
                assert some.reconciler.uninspected(key)[NOT_PROGRAMMED] > 0
                app.connections.clear()
                await comes_back(some, space, some.target(key), app)

    asyncio.run(story())
