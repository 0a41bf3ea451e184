"""Sessions about connections that a pod makes: inspect, flows and capture with a whole daemon, without any policy.

The server has an address of a documentation network (RFC 5737), which counts as external, in the client's namespace.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import subprocess

import pytest

from tests.harness import cgroups, kernel, tshark
from tests.harness.cli import sidestep
from tests.harness.nginx import nginx
from tests.harness.processes import Process
from tests.harness.scene import shop, shop_nginx
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP

pytestmark = pytest.mark.privileged

SERVER = "203.0.113.10"
TLS, PLAIN = 443, 80
WITHIN = 60.0
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def outbound(tmp_path_factory):
    """The shop, and a server that its pod reaches by an external address."""
    folder = tmp_path_factory.mktemp("outbound")
    with (
        cgroups.cgroup() as group,
        shop(folder / "scene", annotations={"sidestep.dev/cgroup": str(group)}) as scene,
        shop_nginx(scene, cgroup=group),
    ):
        space = scene.space
        space.client.run("ip", "addr", "add", f"{SERVER}/32", "dev", "lo")
        space.pod.run("ip", "route", "add", f"{SERVER}/32", "via", space.client_ip)
        with nginx(
            space.client,
            folder / "web",
            listen=[f"{SERVER}:{TLS}"],
            plain=[f"{SERVER}:{PLAIN}"],
            certificate=scene.authority.issue("api.test"),
        ) as web:
            scene.group, scene.web = group, web
            yield scene


def ask(scene, scheme, path="/", *options):
    """What curl in the pod says of the server."""
    port = TLS if scheme == "https" else PLAIN
    command = [
        "curl", "-sS", "--noproxy", "*", "--max-time", "20", "--cacert", scene.ca, *options,
        "--resolve", f"api.test:{port}:{SERVER}", f"{scheme}://api.test{path}",
    ]  # fmt: skip
    words = cgroups.inside(scene.group, scene.space.pod.enter(command))
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "app\n"), done.stderr


@contextlib.contextmanager
def session(scene, command, *options, begun):
    """A command that runs until Ctrl-C, once it has said `begun`; its process."""
    path = scene.folder / f"{command}-{next(_numbers)}.jsonl"
    line = [SIDESTEP, command, "orders", "-n", "shop", "--socket", scene.node.socket, "--egress", *options]
    with Process(line, log=path.with_suffix(".log"), stdout=path) as process:
        said = lambda: process.text() + (process.output() if path.exists() else "")  # noqa: E731
        until(lambda: begun in said() or not process.running, within=WITHIN, what=lambda: f"{begun}: {said()}")
        assert process.running, said()
        yield process
        process.signal(signal.SIGINT)
        assert process.wait(30) == 0, said()


def lines(process):
    """What it has printed so far, without a last line that is being written."""
    return [json.loads(line) for line in process.output().splitlines(keepends=True) if line.endswith("}\n")]


def pod_view(scene):
    pods = (scene.node.status() or {}).get("pods") or [{}]
    return pods[0]


def nothing_left(scene):
    """No target, and no program on the pod's namespace."""
    until(lambda: not (scene.node.status() or {}).get("pods"), within=WITHIN, what=lambda: str(scene.node.status()))
    netns = scene.space.pod.inode
    until(lambda: not kernel.programs(netns).links, within=WITHIN, what=lambda: str(kernel.programs(netns)))
    ask(scene, "https")


def test_inspect_tells_of_names_and_first_requests(outbound):
    with session(outbound, "inspect", "-o", "json", begun="outbound connections. Ctrl-C ends it") as process:
        ask(outbound, "https")
        ask(outbound, "http", "/?q=S3CRET", "-H", "Authorization: Bearer S3CRET")

        def told():
            found = [each for each in lines(process) if "event_type" in each]
            return found if len(found) >= 4 else None

        records = until(told, within=WITHIN, what=process.output)
        by_type = {each["event_type"]: each for each in records}
        assert set(by_type) == {"tls", "http", "flow"}
        for each in records:
            assert (each["dest_ip"], each["src_ip"]) == (SERVER, outbound.space.ip)
            assert each["kubernetes"]["pod"] == "orders-1"
            assert (each["sidestep"]["direction"], each["sidestep"]["host"]) == ("egress", "api.test")
        assert by_type["tls"]["tls"]["sni"] == "api.test"
        assert by_type["http"]["http"]["url"] == "/?q=[redacted]"
        assert "S3CRET" not in process.output()
        view = pod_view(outbound)
        assert view["outbound"]["state"] == "steered"
        until(lambda: pod_view(outbound)["outbound"]["verdicts"]["steered"] >= 2, within=WITHIN, what="verdicts")
        until(lambda: pod_view(outbound)["outbound"]["counters"].get("outbound") == 2, within=WITHIN, what="counters")
        shown = sidestep("status", socket=outbound.node.socket).stdout
        assert "shop/orders-1 outbound: steered" in shown
        listed = sidestep("list", socket=outbound.node.socket).stdout
        assert any("outbound" in line and "/orders-inspect" in line for line in listed.splitlines()), listed
    nothing_left(outbound)
    assert not [each for each in outbound.node.records() if each.get("sidestep", {}).get("direction")]


def test_flows_shows_one_line_for_each_request_in_clear_and_each_other_connection(outbound):
    with session(outbound, "flows", begun="outbound connections. Ctrl-C ends it") as process:
        ask(outbound, "https")
        ask(outbound, "http", "/a")
        until(lambda: process.output().count(f"to {SERVER}") >= 2, within=WITHIN, what=process.output)
        shown = process.output()
        assert f"  TLS api.test  to {SERVER}:{TLS}  from {outbound.space.ip}:" in shown
        [line] = [each for each in shown.splitlines() if "  GET api.test/a  200 by app" in each]
        assert f"  to {SERVER}:{PLAIN}  from {outbound.space.ip}:" in line
    nothing_left(outbound)


def test_a_capture_has_the_bytes_as_they_pass(outbound):
    path = outbound.folder / "outbound.pcapng"
    with session(outbound, "capture", "--snap", "all", "-w", str(path), begun="Capturing all") as process:
        ask(outbound, "https")
        ask(outbound, "http", "/?q=1")

        def rows(field, only):
            return tshark.rows(tshark.so_far(path.read_bytes()), [field], only=only)

        until(lambda: rows("http.response.code", "http.response"), within=WITHIN, what=process.text)
        until(lambda: rows("tls.handshake.type", "tls.handshake.type==2"), within=WITHIN, what=process.text)
    whole = path.read_bytes()
    [request] = tshark.rows(whole, ["http.request.uri", "ip.src", "ip.dst"], only="http.request")
    assert [*request.values()] == ["/?q=1", outbound.space.ip, SERVER]
    [hello] = tshark.rows(whole, ["tls.handshake.extensions_server_name"], only="tls.handshake.type==1")
    assert [*hello.values()] == ["api.test"]
    assert tshark.complaints(whole) == []
    nothing_left(outbound)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["capture", "orders", "-n", "shop", "--egress", "-w", "-"], "--snap all"),
        (["inspect", "orders", "-n", "shop", "--egress", "-p", "443"], "goes without --port"),
        (["inspect", "orders", "-n", "shop", "--egress", "--reset-existing"], "cannot be reset"),
        (["flows", "nobody", "-n", "shop", "--egress"], "no workload"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(outbound, words, reason):
    done = sidestep(*words, socket=outbound.node.socket)
    assert done.code != 0
    assert reason in done.stderr
