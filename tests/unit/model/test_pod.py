"""What a pod's location says about how far it has started."""

from ipaddress import ip_address

import pytest
from msgspec.structs import replace

from sidestep.model.pod import Location, Pod, PodKey

POD = Pod(PodKey("shop", "orders-1"), "uid", containers=("app", "side"))
STATED = Location(pids={"app": 7})
SEARCHED = Location(netns="/proc/1/ns/net", pids={"side": 8}, searched=True)


@pytest.mark.parametrize(
    ("pod", "started", "idle"),
    [
        (replace(POD, location=STATED), True, ()),
        (replace(POD, location=Location(searched=True)), False, ("app", "side")),
        (replace(POD, location=Location(searched=True), ips=(ip_address("10.0.0.1"),)), True, ("app", "side")),
        (replace(POD, location=SEARCHED), True, ("app",)),
        (replace(POD, location=replace(SEARCHED, pids={"app": 7, "side": 8})), True, ()),
    ],
    ids=["stated", "no sandbox", "an address", "one container", "all"],
)
def test_how_far_a_pod_has_started(pod, started, idle):
    assert pod.started is started
    assert pod.idle_containers == idle
