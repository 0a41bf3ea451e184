"""The node's own addresses."""

from __future__ import annotations

import json
import sys
from ipaddress import ip_address

import pytest

from sidestep.netns import Netns, addresses
from sidestep.node.own_addresses import SERVICE_INTERFACES, own_addresses
from tests.harness.namespaces import pod_namespace, run


@pytest.mark.privileged
def test_they_are_addresses_of_this_machine_and_no_loopback():
    listed = json.loads(run("ip", "-json", "address", "show"))
    here = {ip_address(each["local"]) for link in listed for each in link.get("addr_info", ()) if "local" in each}
    expected = {address for address in here if not address.is_loopback}
    assert expected < here
    assert own_addresses(in_pod=False) == expected


def own_addresses_in(netns):
    """What a daemon finds whose namespace this is."""
    script = "from sidestep.node.own_addresses import own_addresses; print(*own_addresses(in_pod=False))"
    return set(map(ip_address, netns.run(sys.executable, "-c", script).split()))


@pytest.mark.privileged
@pytest.mark.parametrize("name", SERVICE_INTERFACES)
def test_addresses_of_services_on_an_interface_of_the_node_are_none_of_its_own(name):
    with pod_namespace() as space:
        mine = set(map(ip_address, space.ips))
        space.pod.run("ip", "link", "add", name, "type", "bridge")
        services = {ip_address("10.96.0.1"), ip_address("fd00:96::1")}
        for each in services:
            space.pod.run("ip", "address", "add", f"{each}/{each.max_prefixlen}", "dev", name)
        with Netns.open(str(space.pod.path)) as netns:
            assert mine | services <= addresses(netns)
        found = own_addresses_in(space.pod)
        assert mine <= found
        assert not services & found
        space.pod.run("ip", "address", "add", "10.96.0.1/32", "dev", "eth0")
        assert ip_address("10.96.0.1") in own_addresses_in(space.pod)
