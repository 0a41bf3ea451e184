"""Which addresses a pod's kernel delivers within the pod, in a real network namespace with second addresses."""

from __future__ import annotations

from ipaddress import ip_address

from sidestep.netns import Netns
from sidestep.proxy.access import connecting
from tests.harness.namespaces import pod_namespace, run

COMMANDS = """\
addr add 10.99.0.5/24 dev lo
addr add 10.99.0.6/24 dev lo
route add local 10.98.0.0/24 dev lo src 10.99.0.5
route add local 10.97.0.0/24 dev lo
-6 addr add fd99::5/64 dev lo
-6 addr add fd99::6/64 dev lo
"""
OWN = ["127.0.0.1", "10.99.0.5", "10.99.0.6", "::ffff:10.99.0.6", "10.98.0.9", "10.97.0.9", "::1", "fd99::5", "fd99::6"]


def test_every_address_of_the_pod_is_known_as_its_own():
    with pod_namespace() as pod, Netns.open(str(pod.pod.path)) as netns:
        for command in COMMANDS.splitlines():
            run("ip", "-n", pod.pod.name, *command.split())
        own = [*OWN, *pod.ips]
        others = [pod.client_ip, f"::ffff:{pod.client_ip}"]
        found = netns.run(lambda: [each for each in own + others if connecting._is_local(ip_address(each))])
        assert found == own


def test_where_a_socket_may_have_any_address_others_stay_others():
    with pod_namespace() as pod, Netns.open(str(pod.pod.path)) as netns:
        run("ip", "netns", "exec", pod.pod.name, "sysctl", "-qw", "net.ipv4.ip_nonlocal_bind=1")
        assert not netns.run(lambda: connecting._is_local(ip_address(pod.client_ip)))
        assert netns.run(lambda: connecting._is_local(ip_address(pod.ip)))
