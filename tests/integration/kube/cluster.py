"""A cluster in one process: the fake API server, the daemons' cluster side, real sessions; pods are only told about."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from msgspec.structs import replace

from sidestep.aio.time_limit import time_limit
from sidestep.config.node_options import NodeOptions, PodIdentity
from sidestep.laptop.cluster_session import ClusterSession
from sidestep.laptop.handler import Handler, HandlerSettings
from sidestep.model.inventory import Inventory
from sidestep.model.pod import ContainerPort, Pod, PodKey
from sidestep.node.cluster.service import ClusterService
from sidestep.node.conditions import Conditions
from sidestep.node.planning.plan import Plan
from sidestep.node.records.alert_notes import AlertNotes
from sidestep.node.sessions.registry import SessionRegistry
from sidestep.policy.workloads import pods_of
from sidestep.tunnel.limits import DEFAULT_LIMITS
from sidestep.tunnel.messages import HeaderSpec, PodState, SessionSpec, State
from sidestep.tunnel.proof import generate, public_text
from tests.harness.fake_api import FakeApi
from tests.harness.waiting import SLACK

GROUP = "/apis/sidestep.dev/v1alpha1"


def run(test: Callable[[FakeApi], Awaitable[None]], *, within: float = 40.0) -> None:
    """Run a test with an API server that stamps what it makes with the time, for at most `within` seconds."""

    async def body() -> None:
        async with FakeApi() as api:
            api.stamp = Stamps()
            await asyncio.wait_for(test(api), within)

    asyncio.run(body())


class Stamps:
    """Creation times of whole seconds, as an API server writes them, each later than the one before.

    Of two resources of one second it would be their names that tell which one is older.
    """

    def __init__(self) -> None:
        self._next = dt.datetime.min.replace(tzinfo=dt.UTC)

    def __call__(self) -> str:
        stamp = max(self._next, dt.datetime.now(dt.UTC))
        self._next = stamp + dt.timedelta(seconds=1)
        return f"{stamp:%Y-%m-%dT%H:%M:%SZ}"


async def until(condition, *, within=15.0, what=""):
    within *= SLACK
    try:
        async with time_limit(within):
            while not condition():  # noqa: ASYNC110 - a condition of any kind, with a deadline
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited {within} s for {what or condition}") from None


class FakeController:
    """What the cluster side asks of the controller and of the view."""

    def __init__(self, pods):
        self.inventory = Inventory(pods={pod.key: pod for pod in pods})
        self.plan = Plan()
        self.reason = ""
        self.changes = 0
        self.cluster: Any = None
        self.sessions: Any = None

    def basis(self):
        return (self.reason, id(self.inventory))

    def refusal(self, _intercept):
        return self.reason

    def changed(self):
        self.changes += 1
        if self.cluster is not None:
            self.sessions.refresh()
            self.cluster.changed()

    async def prepare(self, _intercept):
        pass

    def check(self, _intercept):
        raise AssertionError("no session begins at the socket")

    def policies(self):
        return ()

    def state(self, uid):
        for intercept in self.cluster.intercepts():
            if intercept.uid == uid:
                pods = pods_of(intercept, self.inventory)
                state = "failed" if self.reason else "active"
                return State(tuple(PodState(str(pod.key), state, self.reason) for pod in pods))
        return State(())


class Daemon:
    """The cluster side of one node's daemon."""

    def __init__(self, api, *, node="n1", name=None, pods=("orders-1",)):
        self.node = node
        self.controller = FakeController([a_pod(name) for name in pods])
        self.crashes = []
        self.cluster = ClusterService(
            api.access(),
            NodeOptions(
                manifests=None,
                node_name=node,
                pod=PodIdentity("sidestep", name or f"sidestep-{node}"),
                tunnel_port=0,
                health_port=0,
            ),
            on_crash=lambda task, error: self.crashes.append((task, error)),
            now=asyncio.get_running_loop().time,
        )
        self.sessions = SessionRegistry(view=self.controller, node=node, local_refusal="not here")
        self.controller.cluster, self.controller.sessions = self.cluster, self.sessions
        self.conditions = Conditions()

    async def start(self):
        await self.cluster.start()
        self.cluster.connect(
            controller=self.controller,
            sessions=self.sessions,
            view=self.controller,
            conditions=self.conditions,
            alerts=AlertNotes(),
        )
        self.sessions.on_change = self.controller.changed
        self.task = asyncio.create_task(self.cluster.run())

    async def stop(self, *, graceful=True):
        if graceful:
            await self.cluster.withdraw()
            await self.sessions.close("the node daemon stops")
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.cluster.aclose()
        await asyncio.sleep(0.01)


class Ear:
    """A `SessionObserver` that records."""

    def __init__(self):
        self.hello = None
        self.events = []
        self.refusals = []
        self.notes = []

    def registered(self, hello):
        self.hello = hello

    def event(self, event):
        self.events.append(event)

    def interrupted(self, reason):
        self.events.append(("interrupted", reason))

    def handler_refused(self, opening, reason):
        self.refusals.append((opening, reason))

    def note(self, text):
        self.notes.append(text)

    @property
    def active(self):
        found = 0
        for event in self.events:
            if isinstance(event, State):
                found = event.active
            elif isinstance(event, tuple):
                found = 0
        return found


class Laptop:
    """A developer's session."""

    def __init__(self, api, *, user="ada", handler_port=1, handler=None, limits=DEFAULT_LIMITS, **spec):
        self.ear = Ear()
        values: dict[str, Any] = {"namespace": "shop", "workload": "pod/orders-1", "port": "8443"}
        values["headers"] = (HeaderSpec("x-dev", "exact", user),)
        self.session = ClusterSession(
            access=api.access(user=user),
            spec=SessionSpec(**{**values, **spec}),
            handler=handler or Handler(HandlerSettings(port=handler_port, plaintext=True)),
            observer=self.ear,
            limits=limits,
        )
        self.task = asyncio.create_task(self.session.run())

    async def end(self):
        self.session.stop()
        return await self.task

    async def kill(self):
        """The process dies: nothing is deleted, every connection breaks."""
        self.session._delete = _nothing
        self.session.stop()
        await self.task


async def _nothing(_created):
    pass


def a_pod(name, **changes):
    pod = Pod(
        key=PodKey("shop", name),
        uid=f"uid-{name}",
        ports=(ContainerPort(8443, name="https", container="app"),),
        containers=("app",),
    )
    return replace(pod, **changes)


def a_session(name, *, namespace="shop", **spec):
    """A Capture or an Inspection as an API server may hold it, whoever wrote it; nobody renews it."""
    wanted = {"workload": "pod/orders-1", "port": 8443, "session": {"publicKey": public_text(generate())}}
    renewed = {"renewTime": "1999-01-01T00:00:00.000000Z"}
    return {"metadata": {"name": name, "namespace": namespace}, "spec": wanted | renewed | spec}


async def is_not_served_elsewhere(api, plural):
    """That a session in another namespace gets a status, and no node serves it."""
    async with daemon(api) as node:
        await api.put(GROUP, plural, a_session("foreign", namespace="attic"))
        foreign = lambda: api.get(GROUP, plural, "attic", "foreign").get("status", {})  # noqa: E731
        await until(lambda: foreign().get("state"), what="a status")
        assert "nodes" not in foreign()
        assert node.cluster.intercepts() == ()


def resource(api, name="orders-1", plural="intercepts"):
    return api.get(GROUP, plural, "shop", name)


def status(api, name="orders-1", plural="intercepts"):
    found = resource(api, name, plural)
    return (found or {}).get("status", {})


@asynccontextmanager
async def daemon(api, **options):
    running = Daemon(api, **options)
    await running.start()
    try:
        yield running
    finally:
        await running.stop()
    assert running.crashes == []
