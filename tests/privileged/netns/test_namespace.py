"""Identity, entering, and letting go of network namespaces."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from ipaddress import ip_address
from pathlib import Path

import pytest

from sidestep.model.errors import BugError, ConfigurationError, KernelError
from sidestep.netns import Netns, addresses, host_netns_id, listening, netns_id
from tests.harness.namespaces import pod_namespace, run
from tests.harness.processes import Process
from tests.harness.waiting import until

pytestmark = pytest.mark.privileged


def test_identity_is_device_and_inode(pod, netns):
    status = pod.pod.path.stat()
    assert (netns.id.device, netns.id.inode) == (status.st_dev, status.st_ino)
    assert netns.id == netns_id(str(pod.pod.path))
    assert netns.id != host_netns_id()


def test_a_process_leads_to_the_same_namespace(pod, netns, tmp_path):
    with Process(pod.pod.enter(["sleep", "600"]), log=tmp_path / "log") as process:
        path = f"/proc/{process.pid}/ns/net"
        until(lambda: netns_id(path) != host_netns_id(), within=5, what="the process to enter")
        with Netns.open(path) as same:
            assert same.id == netns.id
            assert same.same_as_path()
            process.kill()
            assert not same.same_as_path()


def test_our_own_namespace_is_the_hosts(pod):
    with Netns.open("/proc/self/ns/net") as own:
        assert own.id == host_netns_id()


@pytest.mark.parametrize(
    "what", ["nothing", "folder", "file", "fifo", "device", "other namespace", "below a file", "NUL"]
)
def test_what_is_no_network_namespace_is_refused(tmp_path, what):
    path = tmp_path / "netns"
    match what:
        case "folder":
            path.mkdir()
        case "file":
            path.touch()
        case "fifo":
            os.mkfifo(path)
        case "device":
            path = Path("/dev/tty")
        case "other namespace":
            path = Path("/proc/self/ns/mnt")
        case "below a file":
            path.touch()
            path /= "more"
        case "NUL":
            path = Path("/run/netns/a\0b")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigurationError) as caught:
        Netns.open(str(path))
    assert len(os.listdir("/proc/self/fd")) == before
    assert caught.value.value == str(path)


def test_a_deleted_namespace_is_noticed_and_its_veth_goes_when_we_let_go(pod):
    netns = Netns.open(str(pod.pod.path))
    addresses(netns)
    listening(netns)
    assert netns.same_as_path()
    pod.delete_pod()
    assert not netns.same_as_path()
    assert pod.peer_exists()
    assert ip_address(pod.ip) in addresses(netns)
    netns.close()
    until(lambda: not pod.peer_exists(), within=5, what="the veth pair to go")


def test_a_veth_can_be_deleted_while_the_namespace_is_held(pod, netns):
    listening(netns)
    run("ip", "-n", pod.client.name, "link", "del", pod.client_device)
    assert ip_address(pod.ip) not in addresses(netns)


def test_a_namespace_that_took_the_same_name_is_another(pod, netns):
    pod.delete_pod()
    run("ip", "netns", "add", pod.pod.name)
    assert not netns.same_as_path()
    with Netns.open(str(pod.pod.path)) as other:
        assert other.id != netns.id


def test_a_function_runs_inside_and_the_caller_stays_outside(pod, netns):
    outside = os.stat("/proc/thread-self/ns/net").st_ino
    assert netns.run(lambda: os.stat("/proc/thread-self/ns/net").st_ino) == netns.id.inode
    assert os.stat("/proc/thread-self/ns/net").st_ino == outside
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("netns")]


def test_what_a_function_raises_is_raised(netns):
    with pytest.raises(ZeroDivisionError):
        netns.run(lambda: 1 // 0)


def test_a_socket_made_inside_stays_inside(pod, netns):
    with netns.run(lambda: socket.create_server(("0.0.0.0", 7000))) as server, socket.socket() as client:
        assert server.getsockname()[1] == 7000
        client.settimeout(1)
        with pytest.raises(OSError, match=r"refused|timed out|unreachable"):
            client.connect(("127.0.0.1", 7000))


def test_a_closed_namespace_says_so(netns):
    netns.close()
    netns.close()
    with pytest.raises(BugError):
        netns.run(lambda: None)


def test_what_cannot_be_entered_is_the_kernels_error(pod, netns):
    with Netns.open(str(pod.pod.path)) as broken:
        os.dup2(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), broken.fd)
        with pytest.raises(KernelError, match="setns"):
            broken.run(lambda: None)


def test_descriptors_are_close_on_exec(netns):
    listening(netns)
    for path in Path("/proc/self/fd").iterdir():
        if os.path.lexists(path) and os.readlink(path).startswith(("net:", "socket:")):
            assert fcntl.fcntl(int(path.name), fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_addresses_of_all_interfaces(pod, netns):
    found = addresses(netns)
    assert {ip_address(ip) for ip in (*pod.ips, "127.0.0.1", "::1")} <= found
    assert ip_address(pod.client_ip) not in found


def test_addresses_of_a_pod_without_ipv6():
    with pod_namespace(ipv6=False) as pod, Netns.open(str(pod.pod.path)) as netns:
        assert addresses(netns) == {ip_address(pod.ip), ip_address("127.0.0.1")}


def test_many_addresses_are_all_listed(pod, netns):
    batch = "".join(f"addr add 10.{high}.{low}.1/32 dev lo\n" for high in range(1, 9) for low in range(250))
    run("ip", "-n", pod.pod.name, "-batch", "-", stdin=batch)
    assert len(addresses(netns)) >= 2000
