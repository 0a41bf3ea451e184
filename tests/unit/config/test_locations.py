"""Where the pod of a manifest lives on this machine."""

import pytest

from sidestep.config.field_error import FieldError
from sidestep.config.locations import MAX_PID, parse_location
from sidestep.model.pod import Location

NETNS, PID, ROOT, CGROUP = (f"sidestep.dev/{name}" for name in ("netns", "pid", "root", "cgroup"))


def test_a_network_namespace_by_its_path():
    assert parse_location({NETNS: "/run/netns/shop"}) == Location(netns="/run/netns/shop")


def test_a_process_names_its_namespace_unless_another_is_stated():
    assert parse_location({PID: "42"}) == Location(netns="/proc/42/ns/net", pids={"": 42})
    assert parse_location({PID: "42", NETNS: "/run/netns/x"}).netns == "/run/netns/x"


def test_root_and_cgroup():
    found = parse_location({PID: str(MAX_PID), ROOT: "/srv", CGROUP: "/sys/fs/cgroup/x"})
    assert (found.root, found.cgroup) == ("/srv", "/sys/fs/cgroup/x")


def test_only_a_pod_that_has_ended_may_be_nowhere():
    assert parse_location({}, ended=True) == Location()
    with pytest.raises(FieldError, match="say where this pod lives"):
        parse_location({})


@pytest.mark.parametrize("annotation", [NETNS, ROOT, CGROUP])
@pytest.mark.parametrize("value", ["", "relative", "/x\n", "/" + "x" * 4095])
def test_a_path_is_absolute_printable_and_bounded(annotation, value):
    with pytest.raises(FieldError, match="absolute path") as caught:
        parse_location({PID: "1", annotation: value})
    assert caught.value.path == f"metadata.annotations.{annotation}"


@pytest.mark.parametrize("value", ["", "0", "-1", "+1", "01", "1.0", "1_0", "٣", str(MAX_PID + 1), "9" * 20])
def test_a_process_id_is_a_plain_number(value):
    with pytest.raises(FieldError, match="process id"):
        parse_location({PID: value})
