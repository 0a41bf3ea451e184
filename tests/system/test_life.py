"""Intercepts that outlive their pods, and leaving without a trace for those who are connected."""

from __future__ import annotations

import threading

import pytest

from tests.harness import scene
from tests.harness.cli import sidestep
from tests.harness.namespaces import pod_namespace
from tests.harness.peers import Server, http_app
from tests.harness.waiting import until

PORT = scene.PLAIN_PORT


@pytest.fixture
def shop(tmp_path):
    with scene.shop(tmp_path) as shop:
        yield shop


def serving(space):
    return Server(http_app, netns=space.pod, address="::", port=PORT, dual_stack=True)


def test_a_pod_is_replaced_under_the_same_name(shop):
    """As a StatefulSet does: the same name, another uid, namespace and address."""
    with shop.intercept(port=PORT, plaintext=True, pods=None) as running, pod_namespace() as fresh:
        with serving(shop.space):
            running.wait_active()
            assert shop.get("/", scene.DEV, port=PORT).served_by == "handler"
        first = shop.node.proxies(shop.space.pod)
        documents = scene.documents(fresh, shop.own_certificate)
        for document in documents:
            if document["kind"] == "Pod":
                document["metadata"]["uid"] = "uid-another"
        shop.node.write("orders.yaml", *documents)
        old, shop.space = shop.space, fresh
        with serving(fresh):
            until(
                lambda: shop.get("/", scene.DEV, port=PORT).served_by == "handler",
                within=10,
                what="the new pod to be a target",
            )
            assert shop.get("/", port=PORT).served_by == "app"
        until(lambda: not shop.node.proxies(old.pod), within=40, what=f"the old proxy {first} to go")
        shop.space = old
        assert running.process.running


def test_leave_resets_nobody(shop):
    outcomes: list[str] = []
    end = threading.Event()

    def calling():
        while not end.is_set():
            try:
                with shop.client(port=PORT, record=False) as client:
                    outcomes.extend(client.get("/", scene.DEV).header("x-served-by") for _ in range(3))
            except Exception as error:  # noqa: BLE001 - whatever a client sees is an outcome
                outcomes.append(repr(error))

    with serving(shop.space):
        with shop.intercept("--name", "mine", "--http-header", "x-dev=ada", port=PORT, plaintext=True) as running:
            threads = [threading.Thread(target=calling) for _ in range(4)]
            for thread in threads:
                thread.start()
            until(lambda: outcomes.count("handler") > 50, within=20, what="some calls")
            assert sidestep("leave", "mine", "-n", "shop", socket=shop.node.socket).code == 0
            assert running.process.wait(10) == 0
        seen = len(outcomes)
        until(lambda: len(outcomes) > seen + 50, within=20, what="calls after it")
        end.set()
        for thread in threads:
            thread.join(20)
        late = outcomes[seen + 12 :]
        assert set(late) == {"app"}
        # A request whose body had gone to the handler may be answered with 502, which names the intercept.
        assert set(outcomes) <= {"app", "handler", ""}, set(outcomes)
