"""`sidestep capture` in a cluster, with the processes of test_cluster: what tshark reads, what the API server has."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import signal

import pytest

from tests.harness import cluster, tshark
from tests.harness.nginx import client_context
from tests.harness.peers import Client
from tests.harness.processes import Process
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP
from tests.system.test_cluster import HOST, TLS_PORT, WITHIN, scene

pytestmark = pytest.mark.timeout(600)  # others may have a daemon of a cluster first

__all__ = ["scene"]

SECRET = "S3CRETtoken"
H1 = ("-d", f"tcp.port=={TLS_PORT},http")
GROUP = "/apis/sidestep.dev/v1alpha1"


def account(scene):
    """What the API server has of captures, and what the daemon has written."""
    captures = scene.server.api.objects.get((GROUP, "captures"), {})
    return f"{captures}\n{(scene.folder / 'node' / 'node.log').read_text()[-4000:]}"


@contextlib.contextmanager
def capturing(scene, *options, file):
    """`sidestep capture` of the pod's TLS port by a kubeconfig, once it has begun or ended."""
    config = scene.server.kubeconfig(scene.folder / "config")
    command = [SIDESTEP, "capture", "pod/orders-1", "-p", "https", "-w", file, "--kubeconfig", config, *options]
    variables = {name: "" for name in os.environ if name.lower().endswith("_proxy")}
    with Process(command, log=file.with_suffix(".log"), environment=variables, patience=20) as process:
        told = lambda: "Capturing" in process.text() or not process.running  # noqa: E731
        until(told, within=WITHIN, what=lambda: f"the capture to begin: {process.text()}\n{account(scene)}")
        yield process


def real_times(scene):
    """Objects are as old as they are: a capture ends by its age."""
    scene.server.api.stamp = lambda: f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%SZ}"


def visit(scene):
    tls = client_context(scene.authority.pem)
    with Client(scene.space.ip, TLS_PORT, netns=scene.space.client, tls=tls, server_name=HOST) as client:
        return client.get(f"/find?token={SECRET}", f"authorization: Bearer {SECRET}").header("x-served-by")


def events(scene, reason):
    found = scene.server.api.objects.get(("/api/v1", "events"), {}).values()
    return [each["message"] for each in found if each["reason"] == reason]


def test_a_capture_in_a_cluster_is_read_by_tshark(scene):
    real_times(scene)
    file = scene.folder / "heads.pcapng"
    with cluster.cluster_node(scene.folder / "node", scene.server), capturing(scene, file=file) as process:
        assert process.running, process.text()
        [found] = scene.server.api.objects[GROUP, "captures"].values()
        assert "snap" not in found["spec"], "heads are the default"
        assert found["status"]["specDigest"]
        [started] = events(scene, "CaptureStarted")
        assert started.startswith(
            "ada captures, for at most 1h and 1073741824 bytes from each node, heads, with secrets"
        )
        assert visit(scene) == "app"

        def read():
            return tshark.rows(tshark.so_far(file.read_bytes()), ["http.request.uri"], only="http.request", options=H1)

        until(read, within=WITHIN, every=0.5, what=lambda: f"the request: {process.text()}")
        process.signal(signal.SIGINT)
        assert process.wait(20) == 0, process.text()
        until(lambda: events(scene, "CaptureEnded"), within=WITHIN, what="the Event of the end")
    data = file.read_bytes()
    assert [row["http.request.uri"] for row in read()] == ["/find?token=[redacted]"]
    assert SECRET.encode() not in data
    assert tshark.complaints(data, *H1) == []
    assert scene.server.api.objects[GROUP, "captures"] == {}


def test_it_ends_when_its_time_is_over_and_without_the_right_there_is_no_file(scene):
    real_times(scene)
    with cluster.cluster_node(scene.folder / "node", scene.server):
        timed = scene.folder / "timed.pcapng"
        with capturing(scene, "--for", "2s", file=timed) as process:
            assert process.wait(30) == 0, process.text()
            assert "0 packets of 0 connections" in process.text()
        until(lambda: not scene.server.api.objects[GROUP, "captures"], within=WITHIN, what="no capture")
        scene.server.api.forbid("create", "captures")
        refused = scene.folder / "refused.pcapng"
        with capturing(scene, file=refused) as process:
            assert process.wait(20) == 1
            assert "you may not create captures.sidestep.dev in namespace shop" in process.text()
            assert "--clusterrole=sidestep-capturer" in process.text()
            assert "packets" not in process.text()
        assert not refused.exists()
