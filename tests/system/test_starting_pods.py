"""A pod whose parts come one after the other: each is used once it is there, and its absence is no problem."""

from __future__ import annotations

import contextlib
import time

import pytest

from tests.harness import cgroups, scene
from tests.harness.cli import sidestep
from tests.harness.waiting import until

pytestmark = pytest.mark.privileged

PATH = f"telepresence.io/downstream-tls-path.{scene.TLS_PORT}"
SECRET = f"telepresence.io/downstream-tls-secret.{scene.TLS_PORT}"
WITHIN = 30.0


def write(shop, **annotations):
    """The manifests of the shop with these annotations on its pod, and without a Secret for its port."""
    documents = scene.documents(shop.space, shop.own_certificate, annotations=annotations)
    documents[2]["metadata"]["annotations"].pop(SECRET, None)
    shop.node.write("orders.yaml", *documents)


@contextlib.contextmanager
def by_path(folder):
    """A shop whose certificate lies below a container's root that does not exist yet."""
    with scene.shop(folder / "shop", start=False) as shop, scene.shop_nginx(shop):
        write(shop, **{PATH: "/tls", "sidestep.dev/root": str(folder / "root")})
        shop.node.start()
        yield shop


def test_an_intercept_waits_for_a_root_that_appears_later(tmp_path):
    with by_path(tmp_path) as shop, shop.intercept(pods=None) as running:
        words = ["status"], ["list"]

        def pending():
            shown = [sidestep(*each, socket=shop.node.socket).stdout for each in words]
            return shown if "waits for its certificate" in shown[0] else None

        status, listed = until(pending, within=WITHIN, what="the pod to be pending")
        assert str(tmp_path / "root") in status
        assert "pending: " in listed
        assert shop.node.status()["conditions"] == []
        assert shop.get("/", scene.DEV).served_by == "app"
        shop.own_certificate.write(tmp_path / "aside" / "tls")
        (tmp_path / "aside").rename(tmp_path / "root")
        running.wait_active(within=WITHIN)
        until(lambda: shop.get("/", scene.DEV).served_by == "handler", within=WITHIN, what="the handler")
        assert shop.node.status()["conditions"] == []


def test_another_root_is_read_as_soon_as_it_is_stated(tmp_path):
    with by_path(tmp_path) as shop, shop.intercept(pods=None) as running:
        shop.own_certificate.write(tmp_path / "other" / "tls")
        write(shop, **{PATH: "/tls", "sidestep.dev/root": str(tmp_path / "other")})
        running.wait_active(within=WITHIN)
        # The first process is gone for good: the last certificate stays in use.
        (tmp_path / "other").rename(tmp_path / "gone")
        write(shop, **{PATH: "/tls", "sidestep.dev/root": str(tmp_path / "none")})
        until_then = time.monotonic() + 2.0
        while time.monotonic() < until_then:
            assert shop.get("/", scene.DEV).served_by == "handler"
        assert "CertificateInvalid" not in shop.conditions()


def test_client_addresses_work_once_the_cgroup_is_known(tmp_path):
    with (
        cgroups.cgroup() as group,
        scene.shop(tmp_path / "shop") as shop,
        scene.shop_nginx(shop, cgroup=group) as app,
        shop.intercept(),
    ):

        def client_addresses():
            return shop.node.status()["pods"][0]["client_addresses"]

        assert client_addresses().startswith("off")
        documents = scene.documents(shop.space, shop.own_certificate, annotations={"sidestep.dev/cgroup": str(group)})
        shop.node.write("orders.yaml", *documents)
        until(lambda: client_addresses() == "on", within=WITHIN, what=client_addresses)

        def named():
            shop.get()
            return app.requests() and app.requests()[-1]["client"] == shop.space.client_ip

        until(named, within=WITHIN, every=0.1, what="the client's own address in the app's log")
