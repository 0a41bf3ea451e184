"""Where a pod lives, when it lives nowhere."""

from __future__ import annotations

import pytest

from sidestep.model.errors import ConfigurationError
from sidestep.model.pod import Location, Pod, PodKey
from sidestep.node.pods.pod_netns import AbsentError, open_pod_netns

NOWHERE = "/run/netns/no-such-namespace"


def pod(**location):
    return Pod(key=PodKey("shop", "orders-1"), uid="1", location=Location(**location))


@pytest.mark.parametrize("location", [{}, {"netns": NOWHERE}, {"pids": {"web": 0}}])
def test_what_a_manifest_states_wrongly_is_an_error(location):
    with pytest.raises(ConfigurationError) as caught:
        open_pod_netns(pod(**location))
    assert not isinstance(caught.value, AbsentError)


@pytest.mark.parametrize("location", [{}, {"netns": NOWHERE}, {"pids": {"web": 0}}])
def test_what_is_looked_for_is_only_absent(location):
    with pytest.raises(AbsentError, match="none of its processes is found on this node"):
        open_pod_netns(pod(**location, searched=True))
