"""Certificates live: rotated without dropping a connection, last good kept, sessions resumed for one name only."""

from __future__ import annotations

import base64
import contextlib
import os
import time

import pytest

from tests.harness import manifests, scene
from tests.harness.authority import Authority
from tests.harness.peers import Client, Server
from tests.harness.tls_peers import VERSIONS, ClientRecords, client_tls, serial_of
from tests.harness.waiting import until

PORT = scene.TLS_PORT
WITHIN = 5.0
"""Seconds until a new certificate is served (docs/design.md, "Keys")."""
OPEN = 50


@contextlib.contextmanager
def app(shop, *, clients=None, **options):
    records = ClientRecords()
    tls = shop.app_tls(clients=clients, **options)
    with Server(records.app, netns=shop.space.pod, address=shop.space.ip, port=PORT, tls=tls) as server:
        records.server = server
        yield records


def connect(shop, name=scene.HOST, *, ca=None, version=None):
    tls = client_tls(ca or shop.authority.pem, alpn=("http/1.1",), version=version)
    return Client(shop.space.ip, PORT, netns=shop.space.client, tls=tls, server_name=name, within=15)


def serial(shop):
    with connect(shop) as client:
        client.get("/", scene.DEV)
        return serial_of(client.sock)


class Folder:
    """A folder as the kubelet mounts a Secret: files are links through `..data`, which is swapped as a whole."""

    def __init__(self, root):
        self.folder = root / "etc/tls"
        self.folder.mkdir(parents=True)
        self.count = 0
        for name in ("tls.crt", "tls.key", "ca.crt"):
            (self.folder / name).symlink_to(f"..data/{name}")

    def swap(self, certificate):
        self.count += 1
        certificate.write(self.folder / f"..version-{self.count}")
        aside = self.folder / "..data_tmp"
        aside.symlink_to(f"..version-{self.count}")
        os.replace(aside, self.folder / "..data")


@contextlib.contextmanager
def by_secret(folder):
    with scene.shop(folder) as shop:

        def rotate(certificate):
            documents = scene.documents(shop.space, certificate)
            shop.node.write("orders.yaml", *documents)

        yield shop, rotate


@contextlib.contextmanager
def by_path(folder):
    mounted = Folder(folder / "root")
    notes = {
        f"telepresence.io/downstream-tls-path.{PORT}": "/etc/tls",
        "sidestep.dev/root": str(folder / "root"),
    }
    with scene.shop(folder / "shop", annotations=notes, start=False) as shop:
        mounted.swap(shop.own_certificate)
        documents = scene.documents(shop.space, shop.own_certificate, annotations=notes)
        del documents[2]["metadata"]["annotations"][f"telepresence.io/downstream-tls-secret.{PORT}"]
        shop.node.write("orders.yaml", *documents)
        shop.node.start()
        yield shop, mounted.swap


@pytest.mark.parametrize("way", [by_secret, by_path])
def test_fifty_open_connections_outlive_two_rotations(tmp_path, way):
    with way(tmp_path) as (shop, rotate), app(shop), shop.intercept(), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(shop)) for _ in range(OPEN)]
        for client in clients:
            assert client.get().status == 200
        old = shop.own_certificate
        for _ in range(2):
            new = shop.authority.issue(scene.HOST)
            rotate(new)
            began = time.monotonic()
            until(lambda old=old: serial(shop) != old.serial, within=WITHIN, what="the new certificate", every=0.1)
            assert time.monotonic() - began < WITHIN
            assert serial(shop) == new.serial
            for number, client in enumerate(clients):
                answer = client.get("/", *([scene.DEV] if number % 2 else []))
                assert answer.header("x-served-by") == ("handler" if number % 2 else "app")
                assert serial_of(client.sock) == shop.own_certificate.serial
            old = new
        stranger = Authority("Stranger").issue(scene.HOST)
        bad = {
            "does not belong": type(new)(chain=new.chain, key=stranger.key, ca=new.ca, serial=0),
            "expired": shop.authority.issue(scene.HOST, expired=True),
            "not valid PEM": type(new)(chain=b"nonsense", key=new.key, ca=new.ca, serial=0),
        }
        for reason, certificate in list(bad.items())[: None if way is by_secret else 1]:  # files are read less often
            rotate(certificate)
            until(lambda reason=reason: reason in shop.conditions(), within=WITHIN, what=shop.conditions, every=0.05)
            assert "CertificateInvalid" in shop.conditions()
            assert serial(shop) == new.serial  # the last good one stays
        last = shop.authority.issue(scene.HOST)
        rotate(last)
        until(lambda: serial(shop) == last.serial, within=WITHIN, what="the last certificate", every=0.1)
        assert "CertificateInvalid" not in shop.conditions()
        for client in clients:
            assert client.get().status == 200


def test_upstream_material_is_rotated_as_well(tmp_path):
    """The app's authority changes, and so does our certificate for it."""
    notes = {
        f"telepresence.io/upstream-tls-secret.{PORT}": "orders-client",
        f"sidestep.dev/downstream-client-auth.{PORT}": "request",
    }
    with scene.shop(tmp_path, annotations=notes) as shop:

        def give(certificate):
            shop.node.write("client.yaml", manifests.secret("orders-client", certificate.secret()))

        give(shop.authority.issue("first.test", client=True))
        with shop.intercept(pods=None) as running, app(shop, clients=shop.authority.pem) as records:
            running.wait_active()
            assert shop.get("/").served_by == "app"
            assert records.subjects[-1] == "first.test"
            give(shop.authority.issue("second.test", client=True))
            until(
                lambda: shop.get("/").served_by == "app" and records.subjects[-1] == "second.test",
                within=WITHIN,
                what="the second certificate",
            )


@pytest.mark.parametrize("version", list(VERSIONS))
def test_sessions_with_the_app_are_resumed_for_one_name_only(tmp_path, version):
    other = "other.shop.test"
    with scene.shop(tmp_path) as shop:
        certificate = shop.authority.issue(scene.HOST, other)
        shop.app_certificate = certificate
        secret = {
            name: base64.b64encode(pem).decode()
            for name, pem in {
                "tls.crt": certificate.chain,
                "tls.key": certificate.key,
                "ca.crt": certificate.ca,
            }.items()
        }
        documents = scene.documents(shop.space, certificate)[:-1]
        shop.node.write("orders.yaml", *documents, manifests.secret("orders-tls", secret))
        pinned = {"minimum": VERSIONS[version], "maximum": VERSIONS[version]}
        with app(shop, **pinned) as records, shop.intercept():

            def resumed(name):
                with connect(shop, name) as client:
                    assert client.get().header("x-served-by") == "app"
                return records.resumed[-1]

            assert not resumed(scene.HOST)
            until(lambda: resumed(scene.HOST), within=5, what="a resumed session")
            assert not resumed(other)  # its name is checked against the app's certificate, in a handshake of its own
            until(lambda: resumed(other), within=5, what="a resumed session")
            assert resumed(scene.HOST)


def test_a_session_never_vouches_for_a_name_that_the_app_does_not_have(tmp_path):
    """A resumed handshake would skip the check: the second name is carried end to end, where its client refuses it."""
    with scene.shop(tmp_path) as shop, app(shop) as records, shop.intercept():
        for _ in range(3):
            with connect(shop) as client:
                assert client.get().status == 200
        assert records.resumed[-1]
        with pytest.raises(OSError, match="mismatch"):
            connect(shop, "evil.test")
        until(lambda: "UpstreamUnverified" in shop.conditions(), within=5, what=shop.conditions)
        assert "evil.test" in shop.conditions()


def test_trust_of_the_app(tmp_path):
    """Wrong name, expired certificate, unknown authority: end to end; an intermediate alone as ca.crt: trusted."""
    with scene.shop(tmp_path) as shop:
        stranger = Authority("Stranger")
        cases = {
            "wrong name": shop.authority.issue("elsewhere.test"),
            "expired": shop.authority.issue(scene.HOST, expired=True),
            "unknown authority": stranger.issue(scene.HOST),
        }
        with shop.intercept(pods=None) as running:
            for name, certificate in cases.items():
                shop.app_certificate = certificate
                with app(shop) as records:
                    running.wait_active()
                    answer = shop.get("/", scene.DEV, options=["-k"])
                    assert answer.served_by == "app", (name, answer)
                    assert answer.info["num_connects"] == 1
                    assert "UpstreamUnverified" in shop.conditions(), name
                    assert records.heads, name
                until(lambda: running.active() == 0, within=10, what="no app")
            # The leaf itself is all that ca.crt holds: a partial chain, trusted as it is.
            leaf = stranger.issue(scene.HOST)
            shop.app_certificate = leaf
            own = type(leaf)(shop.own_certificate.chain, shop.own_certificate.key, leaf.chain, 0)
            shop.node.write("orders.yaml", *scene.documents(shop.space, own))
            with app(shop):
                running.wait_active()
                until(lambda: shop.get("/", scene.DEV).served_by == "handler", within=5, what=shop.conditions)
                assert shop.get("/").served_by == "app"
                until(lambda: "UpstreamUnverified" not in shop.conditions(), within=5, what=shop.conditions)
