"""A pod proxy of two processes: both serve, one dies and the other goes on; pods that need one have one."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import pytest

from sidestep.node.proxies.backoff import Backoff
from sidestep.proxy.connection.acceptor import GRACE
from tests.harness import scene
from tests.harness.http1 import ClosedError
from tests.harness.inspection import policy, rule
from tests.harness.processes import alive, kill
from tests.harness.waiting import until

CLIENTS = 12
WORKERS = "sidestep.dev/proxy-workers"


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    with scene.shop(tmp_path_factory.mktemp("workers"), annotations={WORKERS: "2"}) as shop, scene.shop_nginx(shop):
        yield shop


def pod(shop):
    """The pod as `status` shows it."""
    return shop.node.status()["pods"][0]


def two_workers(shop, *, but: tuple[int, ...] = ()):
    """The pids of both workers, once there are two and none of `but` is among them."""

    def look():
        pids = pod(shop)["proxy_pids"]
        return pids if len(pids) == 2 and not set(pids) & set(but) else None

    return until(look, within=10, what="two workers")


def sockets(pid: int) -> set[str]:
    """The sockets that a process has open: a listener that processes share is in the sets of all."""
    found = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found.add(str(fd.readlink()))
    return {each for each in found if each.startswith("socket:")}


class Busy:
    """A client that sends one request after the other over its one connection, until it breaks or `stop` is set."""

    def __init__(self, shop, stop: threading.Event, *lines: str) -> None:
        self.answers: list[tuple[int, str]] = []
        self.broke = False
        self._client = shop.client(record=False)
        self._stop = stop
        self._lines = lines
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._client as client:
            try:
                while not self._stop.is_set():
                    answer = client.get("/", *self._lines)
                    self.answers.append((answer.status, answer.header("x-served-by")))
            except (OSError, ClosedError):
                self.broke = True

    def join(self) -> None:
        self._thread.join()


def test_one_that_is_killed_costs_its_own_connections(shop):
    """Under load, with requests that go to the app and others that go to the handler, over both workers."""
    with shop.intercept():
        first, second = two_workers(shop)
        stop = threading.Event()
        kinds = {"app": (), "handler": (scene.DEV,)}
        clients = {side: [Busy(shop, stop, *lines) for _ in range(CLIENTS)] for side, lines in kinds.items()}
        every = [client for side in clients.values() for client in side]
        try:
            until(lambda: all(client.answers for client in every), within=15, what="an answer to each client")
            before = pod(shop)["counters"]
            kill(second)
            until(lambda: any(client.broke for client in every), within=10, what="connections to break")
            assert two_workers(shop, but=(second,))[0] == first
            lasting = [client for client in every if not client.broke]
            counts = [len(client.answers) for client in lasting]
            until(
                lambda: all(len(client.answers) > count for client, count in zip(lasting, counts, strict=True)),
                within=15,
                what="further answers to the others",
            )
            assert lasting
            more = [Busy(shop, stop, *lines) for lines in kinds.values() for _ in range(CLIENTS // 2)]
            every += more
            until(lambda: all(client.answers for client in more), within=15, what="an answer to each new client")
        finally:
            stop.set()
            for client in every:
                client.join()
        for side, ours in clients.items():
            assert {answer for client in ours for answer in client.answers} == {(200, side)}
            assert {client.broke for client in ours} == {True, False}, side
        assert not any(client.broke for client in [*lasting, *more])
        assert pod(shop)["proxy"] == "running"
        until(
            lambda: (
                pod(shop)["counters"]["accepted"] >= before["accepted"] + len(more)
                and pod(shop)["counters"]["connections"] == 0
            ),
            within=10,
            what="the counters of all processes together",
        )
        assert [each for each in shop.node.status()["conditions"] if "Proxy" in each["type"]] == []


def test_a_pod_that_needs_one_process_has_one(shop):
    """The other leaves without breaking its connections, which are older than the policy; another comes afterwards."""
    with shop.intercept(), contextlib.ExitStack() as stack:
        first, second = two_workers(shop)
        assert sockets(first) & sockets(second)
        clients = [stack.enter_context(shop.client()) for _ in range(CLIENTS)]
        assert {client.get("/").header("x-served-by") for client in clients} == {"app"}
        written = shop.node.write("policies.yaml", policy(rule("/admin")))
        why = until(lambda: pod(shop)["why_fewer_workers"], within=10, what="a reason")
        assert why.startswith("inspection policies")
        until(lambda: shop.get("/admin").status == 403, within=10, what="the rule to hold")
        assert not sockets(first) & sockets(second)  # it leaves: the queue is the first one's
        for client in clients:
            assert client.get("/", scene.DEV).header("x-served-by") == "handler"
            assert client.get("/").header("x-served-by") == "app"
        for client in clients:
            client.close()
        until(lambda: not alive(second), within=20, what="the second worker to leave")
        assert pod(shop)["proxy_pids"] == [first]
        written.unlink()
        assert two_workers(shop)[0] == first
        assert shop.get("/admin").served_by == "app"


def test_while_the_first_cannot_be_started_the_other_stays_and_judges(shop):
    """A policy wants one process, and the one that is to stay ends again and again: the other does not leave."""
    with shop.intercept():
        first, second = two_workers(shop)
        for _ in range(Backoff().crashes - 1):
            kill(first)
            first = next(pid for pid in two_workers(shop, but=(first,)) if pid != second)
        kill(first)
        until(lambda: pod(shop)["proxy_pids"] == [second], within=10, what="the first one's crash loop")
        written = shop.node.write("policies.yaml", policy(rule("/admin")))
        until(lambda: shop.get("/admin").status == 403, within=10, what="the rule to hold")
        over = time.monotonic() + 1.5 * GRACE  # for who retires a listener, and takes connections a little longer
        while time.monotonic() < over:
            assert shop.get("/admin").status == 403
        assert pod(shop)["proxy"] == "running"
        written.unlink()
