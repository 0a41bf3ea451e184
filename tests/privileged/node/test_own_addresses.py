"""The node's own addresses."""

from __future__ import annotations

import json
from ipaddress import ip_address

import pytest

from sidestep.node.own_addresses import own_addresses
from tests.harness.namespaces import run


@pytest.mark.privileged
def test_they_are_addresses_of_this_machine_and_no_loopback():
    listed = json.loads(run("ip", "-json", "address", "show"))
    here = {ip_address(each["local"]) for link in listed for each in link.get("addr_info", ()) if "local" in each}
    expected = {address for address in here if not address.is_loopback}
    assert expected < here
    assert own_addresses(in_pod=False) == expected
