"""Promise 4, strictly: a private key is in the memory of its pod's proxy and of no other process, nor on any disk.

Every process of the daemon is searched (proc_pid_mem(5)) for the key in every form in which it could lie there: while
nothing is intercepted, while keys are read over and over, while the port is served, and afterwards.
"""

from __future__ import annotations

import contextlib

import pytest

from tests.harness import memory, scene
from tests.harness.cli import sidestep
from tests.harness.peers import Server, http_app
from tests.harness.processes import alive, children, descendants, kill
from tests.harness.waiting import until

pytestmark = pytest.mark.long

PORT = scene.TLS_PORT
ROUNDS = 3


def by_secret(folder, kind):
    return scene.shop(folder, kind=kind)


@contextlib.contextmanager
def by_path(folder, kind):
    notes = {
        f"telepresence.io/downstream-tls-path.{PORT}": "/etc/tls",
        "sidestep.dev/root": str(folder / "root"),
    }
    with scene.shop(folder / "shop", kind=kind, annotations=notes, start=False) as shop:
        shop.own_certificate.write(folder / "root/etc/tls")
        documents = scene.documents(shop.space, shop.own_certificate, annotations=notes)
        del documents[2]["metadata"]["annotations"][f"telepresence.io/downstream-tls-secret.{PORT}"]
        shop.node.write("orders.yaml", *documents[:-1])
        shop.node.start()
        yield shop


def holders(pids, needles):
    """Those of these processes that hold the key, with the forms in which they do."""
    found = {}
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            forms = memory.search(pid, needles)
            if forms:
                found[pid] = forms
    return found


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
@pytest.mark.parametrize("way", [by_secret, by_path])
def test_a_key_is_in_the_proxy_of_its_pod_and_nowhere_else(tmp_path, way, kind):
    with (
        way(tmp_path, kind) as shop,
        Server(http_app, netns=shop.space.pod, address=shop.space.ip, port=PORT, tls=shop.app_tls()),
    ):
        needles = memory.forms(shop.own_certificate.key)
        daemon = shop.node.pid
        assert "not read yet" in sidestep("list", socket=shop.node.socket).stdout
        assert holders([daemon, *descendants(daemon)], needles) == {}
        with shop.intercept():
            assert shop.get("/", scene.DEV).served_by == "handler"
            proxy = shop.proxy()
            assert memory.search(proxy, needles), "the search finds what is there"
            assert holders({daemon, *descendants(daemon)} - {proxy}, needles) == {}
            for _ in range(ROUNDS):  # the key is read anew for every proxy; zygote and reader are the daemon's children
                kill(proxy)
                assert holders([daemon, *children(daemon)], needles) == {}
                proxy = shop.node.proxy(shop.space.pod, but=proxy)
                assert holders([daemon, *children(daemon)], needles) == {}
            assert memory.search(proxy, needles)
        until(lambda: not alive(proxy), within=20, what="the proxy to end")
        assert holders([daemon, *descendants(daemon)], needles) == {}
