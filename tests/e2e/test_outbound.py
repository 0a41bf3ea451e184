"""Policies about what pods send, on the real cluster: what leaves, what does not, what is told of it, no trace.

The server is on the laptop: outside of the cluster, with an address that counts as external (RFC 2544).
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import signal
from pathlib import Path

import pytest

from tests.e2e import cgroups, machine
from tests.e2e import test_inspection as written
from tests.e2e.engines import records
from tests.harness import kernel
from tests.harness.authority import Authority
from tests.harness.nginx import nginx
from tests.harness.processes import Process
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP

PORT, PLAIN = 443, 80
NAMES = ("api.example", "paste.example")
AUDITOR = "eve"
CARD = "4111 1111 1111 1111"
CARDS = {"name": "no-cards", "action": "Block", "patterns": [{"builtin": "CardNumber"}]}
NO_PASTE = {"name": "no-paste", "action": "Block", "match": {"serverNames": ["paste.example"]}}
UNIFIED = next(root for root in cgroups.roots() if (root / "cgroup.controllers").exists())


@pytest.fixture(scope="module")
def web(cluster, product, shop):
    """The definitions, and a server on the laptop with both names."""
    with (
        product.inspection(),
        nginx(
            cluster.node.laptop,
            product.folder / "outside",
            listen=[f"{machine.LAPTOP_IP}:{PORT}"],
            plain=[f"{machine.LAPTOP_IP}:{PLAIN}"],
            certificate=shop.authority.issue(*NAMES),
        ) as running,
    ):
        yield running


def ask(cluster, pod, name):
    """What curl in a pod says of the server: its answer, and curl's exit code."""
    url, place = f"https://{name}/", f"{name}:{PORT}:{machine.LAPTOP_IP}"
    line = f"curl -sk --max-time 20 --resolve {place} {url}; echo code=$?"
    text = cluster.exec(pod, "sh", "-c", line, within=40)
    answer, _, code = text.rpartition("code=")
    return answer.strip(), int(code)


def leaves(cluster, pod, name):
    return ask(cluster, pod, name) == ("app", 0)


def test_what_pods_send_is_allowed_blocked_told_and_left_alone_again(cluster, product, shop, web):
    pods = shop.pods()
    assert all(leaves(cluster, pod, name) for pod in pods for name in NAMES)
    policy = written.policy(mode="Enforce", name="out", egress={"rules": [NO_PASTE], "failurePolicy": "Fail"})
    del policy["spec"]["rules"]
    cluster.apply(policy, namespace=shop.namespace)
    try:
        written.wait_for(cluster, name="out", Accepted="Accepted", Programmed="Programmed")
        found = written.status(cluster, name="out")
        assert found["programmedPods"] == len(pods)
        [entry] = found["nodes"].values()
        [there] = entry["inspected"]
        assert (there["workload"], there["egress"]) == (f"{shop.namespace}/deployment/orders", True)
        assert all(programs(cluster, pod) for pod in pods)
        served = len(web.requests())
        for pod in pods:
            assert leaves(cluster, pod, "api.example")
            answer, code = ask(cluster, pod, "paste.example")
            assert (answer, code in (7, 35, 56)) == ("", True), (answer, code)
        assert len(web.requests()) == served + len(pods)
        assert shop.get(pods[0], "/").served_by == "app"
        for pod in pods:
            until(lambda pod=pod: alerts(product, pod), within=30, every=0.5, what=f"the alert of {pod.name}")
            [alert] = alerts(product, pod)
            assert (alert["sidestep"]["policy"], alert["sidestep"]["rule"]) == ("shop/out", "no-paste")
            assert (alert["src_ip"], alert["dest_ip"]) == (pod.ip, machine.LAPTOP_IP)
            assert alert["sidestep"]["host"] == "paste.example"
        listed = cluster_list(product, shop)
        assert re.search(r"outbound .*shop/out \(Enforce\)", listed), listed
    finally:
        cluster.kubectl("delete", "inspectionpolicy", "out", "-n", shop.namespace)
    product.quiet(pods)
    until(lambda: not any(programs(cluster, pod) for pod in pods), within=45, every=0.5, what="the programs to go")
    assert all(leaves(cluster, pod, "paste.example") for pod in pods)


def secrets(shop, issuer):
    """The CA of the policy with its key, and the authorities of the servers outside."""
    key, begin, certificate = issuer.pair.partition(b"-----BEGIN CERTIFICATE")
    texts = {
        "egress-ca": {"tls.crt": begin + certificate, "tls.key": key},
        "roots": {"ca.crt": shop.authority.pem},
    }
    for name, data in texts.items():
        encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
        yield {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": encoded}


def opened(cluster, pod, scheme, *options):
    """The status that curl in a pod gets, whose only authority is the policy's CA."""
    port = PORT if scheme == "https" else PLAIN
    place = f"api.example:{port}:{machine.LAPTOP_IP}"
    words = ("curl", "-sS", "--max-time", "20", "--cacert", "/tmp/issuer.pem", "-o", "/dev/null", "-w", "%{http_code}")
    return cluster.exec(pod, *words, "--resolve", place, *options, f"{scheme}://api.example/", within=40).strip()


def test_what_pods_send_is_opened_and_leaves_in_tls(cluster, product, shop, web):
    """Clear HTTP is originated, TLS is decrypted, and a card number does not leave."""
    pods, issuer = shop.pods(), Authority("Shop egress")
    network = [f"{machine.LAPTOP_IP}/32"]
    egress = {
        "failurePolicy": "Fail",
        "issuer": {"secretRef": {"name": "egress-ca"}},
        "trust": {"secretRef": {"name": "roots"}},
        "destinations": [
            {"name": "clear", "mode": "Originate", "networks": network, "ports": [PLAIN]},
            {"name": "tls", "mode": "Decrypt", "networks": network, "ports": [PORT]},
        ],
        "rules": [CARDS],
        "log": {"samplePercent": 100},
    }
    policy = written.policy(mode="Enforce", name="opened", egress=egress)
    del policy["spec"]["rules"]
    cluster.apply(*secrets(shop, issuer), policy, namespace=shop.namespace)
    for pod in pods:
        cluster.exec(pod, "sh", "-c", f"echo '{issuer.pem.decode()}' > /tmp/issuer.pem")
    begun = len(web.requests())
    try:
        written.wait_for(cluster, name="opened", Accepted="Accepted", Programmed="Programmed")
        for pod in pods:
            for scheme in ("http", "https"):
                until(
                    lambda pod=pod, scheme=scheme: opened(cluster, pod, scheme) == "200",
                    within=60,
                    every=0.5,
                    what=f"{scheme} of {pod.name}",
                )
                assert opened(cluster, pod, scheme, "-d", f"card={CARD}") == "403"
        arrived = web.requests()[begun:]
        assert {(each["tls"], each["sni"], each["method"]) for each in arrived} == {("TLSv1.3", "api.example", "GET")}

        def told(pod, kind):
            found = [each for each in records(product) if each.get("sidestep", {}).get("direction") == "egress"]
            return [each for each in found if each["event_type"] == kind and each["kubernetes"]["pod"] == pod.name]

        for pod in pods:
            until(
                lambda pod=pod: {each["dest_port"] for each in told(pod, "http")} == {PORT, PLAIN},
                within=30,
                every=0.5,
                what=f"the requests of {pod.name}",
            )
            cards = [each for each in told(pod, "alert") if each["sidestep"]["rule"] == "no-cards"]
            assert {each["dest_port"] for each in cards} == {PORT, PLAIN}
            assert {each["sidestep"]["policy"] for each in cards} == {"shop/opened"}
        assert CARD not in str(records(product))
    finally:
        cluster.kubectl("delete", "inspectionpolicy", "opened", "-n", shop.namespace)
        cluster.kubectl("delete", "secret", "egress-ca", "roots", "-n", shop.namespace)
    product.quiet(pods)
    until(lambda: not any(programs(cluster, pod) for pod in pods), within=45, every=0.5, what="the programs to go")


@contextlib.contextmanager
def listening(cluster, product, shop, command, user, *options):
    """A session about what the pods of the shop send, on the laptop, once it is active in all of them."""
    log = product.folder / f"{command}-egress.log"
    words = [SIDESTEP, command, "orders", "-n", shop.namespace, "--egress", "-o", "json", *options]
    with Process(cluster.command(*words, user=user), log=log, stdout=log.with_suffix(".jsonl"), patience=10) as process:
        told = lambda: "Ctrl-C" in process.output() or not process.running  # noqa: E731
        until(told, within=40, every=0.2, what=lambda: f"{command} to begin: {process.text()}")
        assert process.running, process.text()
        # It says that it has begun once its first pod has.
        pods = shop.pods()
        until(lambda: all(programs(cluster, pod) for pod in pods), within=20, every=0.2, what="all pods to be steered")
        yield lambda: [json.loads(line) for line in process.output().splitlines() if line.endswith("}")]
        process.signal(signal.SIGINT)
        assert process.wait(20) == 0, process.text()


def test_who_may_listens_to_what_pods_send_without_a_policy(cluster, product, shop, web):
    pods = shop.pods()
    bindings = (("--clusterrole=sidestep-auditor", shop.namespace), ("--role=sidestep-tunnel", "sidestep"))
    for role, namespace in bindings:
        cluster.kubectl("create", "rolebinding", "listener", role, f"--user={AUDITOR}", "-n", namespace)
    try:
        with listening(cluster, product, shop, "inspect", AUDITOR) as lines:
            [found] = cluster.get("inspections", namespace=shop.namespace)
            assert (found["spec"]["egress"], "port" in found["spec"]) == (True, False)
            assert all(leaves(cluster, pod, "api.example") for pod in pods)

            def told():
                return [each for each in lines() if each.get("event_type") == "tls"]

            until(lambda: len(told()) == len(pods), within=20, every=0.2, what=lambda: str(lines()))
            assert {each["kubernetes"]["pod"] for each in told()} == {pod.name for pod in pods}
            assert {(each["tls"]["sni"], each["tls"]["version"]) for each in told()} == {("api.example", "TLS 1.3")}
        with listening(cluster, product, shop, "flows", "ada") as lines:
            assert leaves(cluster, pods[0], "api.example")

            def flows():
                return [each for each in lines() if each.get("event") == "request"]

            until(flows, within=20, every=0.2, what=lambda: str(lines()))
            [flow] = flows()
            shown = (flow["protocol"], flow["authority"], flow["server"], flow["port"])
            assert shown == ("tls", "api.example", machine.LAPTOP_IP, PORT)
    finally:
        for _, namespace in bindings:
            cluster.kubectl("delete", "rolebinding", "listener", "-n", namespace)
    product.quiet(pods)
    assert not any(programs(cluster, pod) for pod in pods)


def programs(cluster, pod):
    """The programs on the folders of version 2 that a pod's containers are in, and on the pod's own."""
    folders = set()
    for pid in cluster.processes(pod):
        [path] = re.findall(r"^0::(.*)$", Path(f"/proc/{pid}/cgroup").read_text(), re.MULTILINE)
        folders |= {UNIFIED / path.lstrip("/"), (UNIFIED / path.lstrip("/")).parent}
    return set().union(*(kernel.on_cgroup(folder).links for folder in folders))


def cluster_list(product, shop):
    """`sidestep list` of somebody who may read policies."""
    shown = product.run("list", "-n", shop.namespace, user="admin")
    assert shown.code == 0, shown
    return shown.stdout


def alerts(product, pod):
    """The alerts about what a pod sent, as the daemon has written them."""
    found = [each for each in records(product) if each.get("sidestep", {}).get("direction") == "egress"]
    return [each for each in found if each["event_type"] == "alert" and each["kubernetes"]["pod"] == pod.name]
