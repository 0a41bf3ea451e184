"""Connections that a pod makes, with a whole daemon: what an operator sees, both directions at once, and a SIGKILL."""

from __future__ import annotations

import contextlib
import subprocess

import pytest

from tests.harness import cgroups
from tests.harness.inspection import is_refusal, policies, policy, rule, view
from tests.harness.nginx import nginx
from tests.harness.scene import shop, shop_nginx
from tests.harness.waiting import until

pytestmark = pytest.mark.privileged

PORT = 443
BLOCK = {"name": "no-paste", "action": "Block", "match": {"serverNames": ["paste.test"]}}
WITHIN = 60.0


@contextlib.contextmanager
def outbound(folder, **egress):
    """The shop, whose pod connects to servers in its client's namespace; its policy is about both directions."""
    with (
        cgroups.cgroup() as group,
        shop(folder / "scene", annotations={"sidestep.dev/cgroup": str(group)}) as scene,
        shop_nginx(scene, cgroup=group),
        nginx(
            scene.space.client,
            folder / "web",
            listen=[f"{scene.space.client_ip}:{PORT}"],
            certificate=scene.authority.issue("api.test", "paste.test"),
        ) as web,
    ):
        network = {"name": "net", "networks": [f"{scene.space.client_ip}/32"]}
        block = {"destinations": [network], "rules": [BLOCK], **egress}
        with policies(scene, policy(rule(), egress=block)):
            yield scene, group, web


def ask(scene, group, name):
    """What curl in the pod says of a server."""
    command = [
        "curl", "-sS", "--noproxy", "*", "--max-time", "20", "--cacert", scene.ca,
        "--resolve", f"{name}:{PORT}:{scene.space.client_ip}", f"https://{name}/",
    ]  # fmt: skip
    words = cgroups.inside(group, scene.space.pod.enter(command))
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def test_both_directions_and_what_is_told_of_them(tmp_path):
    with outbound(tmp_path) as (scene, group, web):
        assert is_refusal(scene.get("/admin"))
        assert scene.get("/").served_by == "app"
        assert ask(scene, group, "api.test").stdout == "app\n"
        assert ask(scene, group, "paste.test").returncode in (7, 35, 56)
        assert len(web.requests()) == 1
        until(lambda: view(scene)["hits"].get("blocked") == 2, within=WITHIN, what=lambda: str(view(scene)))

        def told():
            return [each for each in scene.node.records() if each.get("sidestep", {}).get("direction") == "egress"]

        until(lambda: len(told()) >= 5, within=WITHIN, what=lambda: str(told()))
        alerts = [each for each in told() if each["event_type"] == "alert"]
        [alert] = alerts
        assert (alert["src_ip"], alert["dest_ip"], alert["dest_port"]) == (scene.space.ip, scene.space.client_ip, PORT)
        assert alert["alert"]["signature"] == "shop/orders: no-paste"
        assert alert["sidestep"]["host"] == "paste.test"
        assert alert["kubernetes"]["pod"] == "orders-1"
        assert {each["event_type"] for each in told()} == {"tls", "alert", "flow"}


def test_when_the_daemon_is_killed_connections_go_out_directly(tmp_path):
    with outbound(tmp_path, failurePolicy="Fail") as (scene, group, _):
        assert ask(scene, group, "paste.test").returncode in (7, 35, 56)
        scene.node.kill()
        until(lambda: ask(scene, group, "paste.test").stdout == "app\n", within=WITHIN, what="a direct connection")
        scene.node.start()
        until(
            lambda: ask(scene, group, "paste.test").returncode in (7, 35, 56),
            within=WITHIN,
            what="the next daemon to block",
        )
