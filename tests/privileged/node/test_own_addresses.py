"""The node's own addresses."""

from __future__ import annotations

import pytest

from sidestep.node.own_addresses import own_addresses


@pytest.mark.privileged
def test_they_are_addresses_of_this_machine_and_no_loopback():
    found = own_addresses(in_pod=False)
    assert not any(address.is_loopback for address in found)
    assert all(address.version in (4, 6) for address in found)
