"""Nothing is left, nothing lies about: kernel objects, sockets, rules, files, keys; and what a pod proxy may see."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from tests.harness import kernel, scene
from tests.harness.peers import Server, http_app
from tests.harness.processes import alive, children
from tests.harness.waiting import until

FOLDERS = tuple(Path(name) for name in ("/run", "/tmp", "/var/tmp", "/dev/shm", "/var/lib", "/var/log"))


@pytest.fixture
def shop(tmp_path):
    with scene.shop(tmp_path) as shop:
        yield shop


def world(shop):
    """What must be the same before and after: rules, pins, devices, listeners of the pod."""
    return {
        "rules": (kernel.rules(), kernel.rules(shop.space.pod)),
        "pins": kernel.pins(),
        "devices": kernel.devices(shop.space.pod),
        "listeners": kernel.listeners(shop.space.pod),
        "routes": shop.space.pod.run("ip", "-4", "route", "show", "table", "all") + shop.space.pod.run("ip", "rule"),
        "steering": kernel.steering(shop.space.pod),
    }


@pytest.mark.parametrize("ending", ["intercept ends", "SIGTERM", "SIGKILL"])
def test_nothing_is_left(shop, ending):
    with scene.shop_nginx(shop):
        before = world(shop)
        with shop.intercept():
            assert shop.get("/", scene.DEV).served_by == "handler"
            during = kernel.steering(shop.space.pod)
            assert during.links
            assert during.programs
            assert during.maps
            assert kernel.pins() == before["pins"]
            assert world(shop)["rules"] == before["rules"]
            assert world(shop)["devices"] == before["devices"]
            family = shop.node.family()
            if ending == "SIGTERM":
                assert shop.node.stop() == 0
            elif ending == "SIGKILL":
                shop.node.kill()
        until(lambda: not during.left(), within=5, what=lambda: f"these to go: {during.left()}")
        until(lambda: world(shop) == before, within=5, what=lambda: f"{world(shop)} to be {before}")
        if ending == "intercept ends":
            until(lambda: not shop.node.proxies(shop.space.pod), within=35, what="the proxy to leave the pod")
        else:
            until(lambda: not any(alive(pid) for pid in family), within=5, what="every process to be gone")
        assert shop.get("/", scene.DEV).served_by == "app"


@pytest.mark.parametrize("ending", ["SIGTERM", "SIGKILL", "still running"])
def test_the_pod_can_go_at_once(shop, ending):
    """Namespace and veth pair are gone as soon as the pod is: nothing of ours holds them."""
    with (
        Server(http_app, netns=shop.space.pod, address=shop.space.ip, port=scene.TLS_PORT, tls=shop.app_tls()),
        shop.intercept(),
    ):
        assert shop.get("/", scene.DEV).served_by == "handler"
        family = shop.node.family()
        if ending == "SIGTERM":
            assert shop.node.stop() == 0
        elif ending == "SIGKILL":
            shop.node.kill()
            until(lambda: not any(alive(pid) for pid in family), within=5, what="every process to be gone")
    shop.space.delete_pod()
    until(lambda: not shop.space.peer_exists(), within=2, what="the veth pair to go")


def test_no_key_outside_the_proxy(shop, tmp_path):
    """In no file, not in the zygote, not in the command line; in the proxy only in anonymous memory."""
    pem = shop.own_certificate.key
    line = pem.splitlines()[1]
    number = serialization.load_pem_private_key(pem, None).private_numbers().private_value
    secrets = (line, number.to_bytes(32, "big"), number.to_bytes(32, "little"))
    with scene.shop_nginx(shop), shop.intercept() as running:
        assert shop.get("/", scene.DEV).served_by == "handler"
        proxy = shop.proxy()
        zygotes = [pid for pid in shop.node.family() if proxy in children(pid)]
        assert kernel.memory_contains(proxy, secrets)  # the search finds what is there
        for pid in [running.pid, *zygotes]:
            assert not kernel.memory_contains(pid, secrets), Path(f"/proc/{pid}/cmdline").read_bytes()
        files = {one for one in kernel.descriptors(proxy) if one.startswith("/") and not one.startswith("/memfd:")}
        assert files <= {"/dev/null"}
        began = tmp_path.stat().st_ctime - 60
        assert kernel.files_with(line, FOLDERS, since=began, but=(tmp_path, shop.node.manifests)) == []
        encoded = base64.b64encode(pem)
        assert kernel.files_with(encoded, (shop.node.manifests,), since=began)  # this search, too, finds what is there
        assert kernel.files_with(encoded, FOLDERS, since=began, but=(shop.node.manifests,)) == []
        assert line.decode() not in shop.node.log()


def test_the_proxy_is_locked_in(shop):
    """What the kernel says about the proxy: no rights, no root, no files, no way to other namespaces."""
    with scene.shop_nginx(shop), shop.intercept():
        assert shop.get("/", scene.DEV).served_by == "handler"
        proxy = shop.proxy()
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{proxy}/status").read_text().splitlines() if ":\t" in line
        )
        assert {status[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        uids = {int(word) for word in status["Uid"].split()}
        assert len(uids) == 1
        assert uids.pop() > 65536
        assert status.get("Groups", "").strip() == ""
        root = Path(f"/proc/{proxy}/root")
        assert {path.name for path in root.iterdir()} <= {"proc"}
        options = Path(f"/proc/{proxy}/mounts").read_text().splitlines()
        assert all(line.split()[1] == "/" or line.split()[1].startswith("/proc") for line in options), options
        assert next(line for line in options if line.split()[1] == "/").split()[3].startswith("ro")
        limits = Path(f"/proc/{proxy}/limits").read_text()
        assert "Max core file size        0" in limits
        assert Path(f"/proc/{proxy}/ns/mnt").stat().st_ino != Path("/proc/self/ns/mnt").stat().st_ino
        assert Path(f"/proc/{proxy}/ns/net").stat().st_ino == shop.space.pod.inode
        assert not any("net:[" in one or "bpf" in one for one in kernel.descriptors(proxy))
