"""Access to the pods' world on the real cluster: the right of its own, variables, files, connections, how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e import cluster as clusters
from tests.e2e import images, machine
from tests.e2e import shop as shops
from tests.harness.namespaces import run
from tests.harness.processes import Process
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP

EVE = "eve"
DEVELOPER = "ada"
PLURAL = "podaccesses.sidestep.dev"
ROLE = "sidestep-pod-access"
PASSWORD = 'it\'s a "$ecret"'
FILTER = ("--http-header", "x-dev=ada")
BILLING = "http://billing.pay:8080/"
"""What only pods reach: a Service of another namespace, by the name that they have for it."""
ACCESSES = "/tmp/accesses"


@pytest.fixture(scope="module", autouse=True)
def role(product, shop):
    """Eve may use what pods of the shop have and reach the daemons, and nothing else."""
    with product.session_role(ROLE, EVE, shop.namespace):
        yield


@pytest.fixture(scope="module")
def billing(cluster):
    """Service `billing` in namespace `pay`, and its pod, which is the name server of the worker, too: the cluster has
    none."""
    config = f"events {{}} http {{ server {{ listen 8080; access_log {ACCESSES}; return 200 billing; }} }}"
    known = ["--address=/billing.pay.svc.cluster.local/$(POD_IP)", "--local=/cluster.local/"]
    names = ["dnsmasq", "-k", "-C", "/dev/null", "--no-resolv", "--no-hosts", "--user=root", *known]
    address = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    billing = {
        "name": "billing",
        "command": ["sh", "-c", f"echo '{config}' > /tmp/conf; exec nginx -c /tmp/conf -g 'daemon off;'"],
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
    }
    image = {"image": images.APP, "imagePullPolicy": "Never"}
    containers = [{**billing, **image}, {"name": "names", "command": names, "env": [address], **image}]
    of_pod = {"terminationGracePeriodSeconds": 0, "containers": containers}
    labels, ports = {"app": "billing"}, [{"name": "http", "port": 8080}]
    service = {"selector": labels, "ports": ports, "clusterIP": "None"}
    cluster.apply(*clusters.namespaces("pay"))
    cluster.apply(
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "billing"}, "spec": service},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "billing", "labels": labels}, "spec": of_pod},
        namespace="pay",
    )
    try:
        yield cluster.wait_pods("pay", "app=billing", 1)[0]
    finally:
        cluster.kubectl("delete", "namespace", "pay", "--wait=false")


@pytest.fixture(scope="module")
def worker(cluster, shop, billing):
    """A Deployment whose process keeps its variables, which nginx does not; one is of a Secret. Its pod."""
    of_pod = shops.pod_spec(
        dnsPolicy="None",
        dnsConfig={
            "nameservers": [billing.ip],
            "searches": ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"],
            "options": [{"name": "ndots", "value": "5"}],
        },
    )
    container = of_pod["containers"][0]
    del container["readinessProbe"]
    container["command"] = ["sleep", "infinity"]
    container["env"] = [
        {"name": "DB_HOST", "value": "db.shop"},
        {"name": "DB_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "worker", "key": "password"}}},
    ]
    labels = {"app": "worker"}
    cluster.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "worker"}, "stringData": {"password": PASSWORD}},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "worker"},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": of_pod},
            },
        },
        namespace=shop.namespace,
    )
    try:
        yield cluster.wait_pods(shop.namespace, "app=worker", 1)[0]
    finally:
        cluster.delete("deployment", "worker", namespace=shop.namespace)
        cluster.delete("secret", "worker", namespace=shop.namespace)


def senders(cluster, daemon):
    """The processes of the reader: itself, while it runs, and its children."""
    found = []
    for pid in cluster.processes(daemon):
        try:
            if b"reader_child" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            pass  # it has just ended
    return found


def spec(**more):
    """A PodAccess as an API server may be sent it."""
    document = {
        "apiVersion": "sidestep.dev/v1alpha1",
        "kind": "PodAccess",
        "metadata": {"name": "by-hand"},
        "spec": {
            "workload": "deployment/orders",
            "allow": ["Environment"],
            "session": {"publicKey": "A" * 43 + "="},
            "renewTime": "2026-01-01T00:00:00.000000Z",
            **more,
        },
    }
    return json.dumps(document)


@pytest.mark.parametrize(
    "words", [("env",), ("files", "/etc/orders", "--to", "COPY"), ("connect", "--", "touch", "COPY")]
)
def test_who_lacks_the_role_is_told_verb_and_role(cluster, product, shop, tmp_path, words):
    """A developer, who may intercept."""
    to = tmp_path / "copy"
    name, *options = (to if word == "COPY" else word for word in words)
    refused = product.run(name, "deploy/orders", "-n", shop.namespace, *options, user=DEVELOPER, within=40)
    assert refused.code == 1
    assert f"you may not create {PLURAL} in namespace {shop.namespace}" in refused.error
    assert f"--clusterrole={ROLE} --user={DEVELOPER}" in refused.error
    assert not to.exists()
    assert cluster.get("podaccesses", namespace=shop.namespace) == []


def test_a_command_that_wants_variables_does_not_start_without_the_role(cluster, product, shop, tmp_path):
    """The intercept alone would be allowed, and is not what was asked for."""
    started = tmp_path / "started"
    words = ("intercept", "orders", "-n", shop.namespace, "--port", "9:https", *FILTER, "--env", "--", "touch", started)
    refused = product.run(*words, user=DEVELOPER, within=60)
    assert refused.code == 1
    assert f"create {PLURAL}" in refused.stderr
    assert f"--clusterrole={ROLE}" in refused.stderr
    assert not started.exists()
    until(lambda: not cluster.get("intercepts", namespace=shop.namespace), within=20, what="the intercept to end")


def test_who_may_what(cluster, product, shop):
    def may(user, verb, resource, *more):
        answer = cluster.kubectl_result("auth", "can-i", verb, resource, *more, "--as", user)
        return answer.stdout.strip() == "yes"

    here = ("-n", shop.namespace)
    for verb in ("create", "get", "list", "watch", "patch", "delete"):
        assert may(EVE, verb, PLURAL, *here)
        assert not may(EVE, verb, PLURAL, "-n", "default")
        assert not may(DEVELOPER, verb, PLURAL, *here)
    for other in ("intercepts.sidestep.dev", "wiretaps.sidestep.dev", "pods", "pods/exec"):
        assert not may(EVE, "create", other, *here)
    for user in (EVE, DEVELOPER):
        assert not may(user, "patch", PLURAL, "--subresource=status", *here)


def test_variables_are_those_of_the_containers_process(cluster, product, shop, worker):
    done = product.run("env", "deploy/worker", "-n", shop.namespace, "-o", "json", user=EVE, within=40)
    assert done.code == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["DB_HOST"], found["DB_PASSWORD"]) == ("db.shop", PASSWORD)
    assert found["HOSTNAME"] == worker.name
    inside = cluster.exec(worker, "cat", "/proc/1/environ")
    assert {f"{name}={value}" for name, value in found.items()} == {each for each in inside.split("\0") if each}
    assert cluster.get("podaccesses", namespace=shop.namespace) == []
    assert not product.steering(worker).links


def test_files_are_those_of_the_containers_volumes(cluster, product, shop, tmp_path):
    to = tmp_path / "volumes"
    done = product.run("files", "deploy/orders", "-n", shop.namespace, "--to", to, user=EVE, within=40)
    assert done.code == 0, done.stderr
    assert (to / "etc/orders/nginx.conf").read_text() == shops.NGINX
    certificate = cluster.get("secret", "orders-tls", namespace=shop.namespace)["data"]
    assert sorted(path.name for path in (to / "etc/orders-tls").iterdir() if not path.name.startswith("..")) == sorted(
        certificate
    )
    pod = min(shop.pods(), key=lambda pod: pod.name).name
    for name in certificate:
        inside = cluster.kubectl("exec", "-n", shop.namespace, pod, "--", "cat", f"/etc/orders-tls/{name}")
        assert (to / "etc/orders-tls" / name).read_text() == inside
        assert (to / "etc/orders-tls" / name).is_symlink()
    assert (to / "etc/hosts").is_file()
    assert not (to / "proc").exists()
    assert not (to / "usr").exists()
    assert cluster.get("podaccesses", namespace=shop.namespace) == []
    words = ("files", "deploy/orders", "/usr/share/nginx", "/proc/1/environ", "/absent", "-n", shop.namespace)
    done = product.run(*words, "--to", tmp_path / "named", user=EVE, within=40)
    assert done.code == 1
    assert "/absent: no such file or directory" in done.stderr
    assert "/proc/1/environ: an interface of the kernel" in done.stderr


def test_a_pod_connects_to_a_service_of_another_namespace(cluster, product, shop, billing, worker):
    """By its name there, and from the pod's address. What the node denies is denied."""
    curl = ("--", "curl", "-sS", "--max-time", "30")
    done = product.run("connect", "deploy/worker", "-n", shop.namespace, *curl, BILLING, user=EVE, within=60)
    assert (done.code, done.stdout) == (0, "billing"), done.stderr
    assert f"{worker.ip} " in cluster.kubectl("exec", "-n", "pay", "billing", "-c", "billing", "--", "cat", ACCESSES)
    api = f"https://{machine.NODE_IP}:10250/"
    denied = product.run("connect", "deploy/worker", "-n", shop.namespace, *curl, api, user=EVE, within=60)
    assert denied.code != 0
    assert "is refused: it is the node's own" in denied.stderr
    assert cluster.get("podaccesses", namespace=shop.namespace) == []
    until(lambda: not product.steering(worker).links, within=45, every=0.5, what="the pod to be released")


def test_connections_end_with_the_resource(cluster, product, shop, billing, worker, tmp_path):
    """In the middle of one, which the server has then, and after that has not."""
    open_ones = ("nsenter", f"--target={cluster.processes(billing)[0]}", "--net", "ss", "-Htn", "state", "established")
    through = lambda: f" {worker.ip}:" in run(*open_ones)  # noqa: E731
    talk = "sleep 600 | curl -sS --proxytunnel -x $HTTP_PROXY telnet://billing.pay:8080"
    words = [SIDESTEP, "connect", "deploy/worker", "-n", shop.namespace, "--", "sh", "-c", talk]
    with Process(cluster.command(*words, user=EVE), log=tmp_path / "connect.log", patience=10) as process:
        begun = lambda: through() or not process.running  # noqa: E731
        until(begun, within=40, every=0.1, what=lambda: f"the connection: {process.text()}")
        [access] = cluster.get("podaccesses", namespace=shop.namespace)
        assert access["spec"]["allow"] == ["Network"]
        cluster.kubectl("delete", "podaccess", access["metadata"]["name"], "-n", shop.namespace, "--wait=false")
        assert process.wait(40) == 1, process.text()
    assert "has ended: somebody deleted it" in process.text()
    assert "Traceback" not in process.text()
    until(lambda: not through(), within=20, every=0.2, what="the server to lose the connection")
    until(lambda: not product.steering(worker).links, within=45, every=0.5, what="the pod to be released")


def test_a_handler_finds_all_of_it(cluster, product, shop, worker):
    """The right for it is given to a developer by the command that a refusal prints."""
    binding = ("rolebinding", f"{ROLE}-{DEVELOPER}")
    cluster.kubectl("create", *binding, f"--clusterrole={ROLE}", f"--user={DEVELOPER}", "-n", shop.namespace)
    try:
        words = ("intercept", "deploy/worker", "-n", shop.namespace, "--port", "9:8080")
        words += ("--env", "--files", "--outbound", "--")
        program = 'echo "password $DB_PASSWORD in $SIDESTEP_ROOT"; cat "$SIDESTEP_ROOT/etc/orders/nginx.conf"; '
        program += f"curl -sS --max-time 30 {BILLING}"
        done = product.run(*words, "sh", "-ec", program, user=DEVELOPER, within=60)
        assert done.code == 0, done.stderr
        assert f"password {PASSWORD} in /" in done.stdout
        assert "ssl_certificate_key /etc/orders-tls/tls.key;" in done.stdout
        assert done.stdout.endswith("billing"), done
    finally:
        cluster.kubectl("delete", *binding, "-n", shop.namespace)
    until(lambda: not product.steering(worker).links, within=45, every=0.5, what="the pod to be released")


def test_access_ends_with_its_resource(cluster, product, shop, tmp_path):
    """In the middle of a file of 3 GiB, of which nothing takes room in the pod."""
    pod = shop.pods()[0].name
    inside = ("exec", "-n", shop.namespace, pod, "--")
    cluster.kubectl(*inside, "sh", "-c", "dd if=/dev/null of=/tmp/huge bs=1 seek=3221225472 2>/dev/null")
    to = tmp_path / "copy"
    words = [SIDESTEP, "files", f"pod/{pod}", "/tmp/huge", "-n", shop.namespace, "--max-size", "4096", "--to", to]
    try:
        with Process(cluster.command(*words, user=EVE), log=tmp_path / "files.log", patience=10) as process:
            begun = lambda: (to / "tmp/huge").exists() or not process.running  # noqa: E731
            until(begun, within=40, every=0.05, what=lambda: f"the copy to begin: {process.text()}")
            [access] = cluster.get("podaccesses", namespace=shop.namespace)
            assert access["spec"]["allow"] == ["Files"]
            cluster.kubectl("delete", "podaccess", access["metadata"]["name"], "-n", shop.namespace, "--wait=false")
            assert process.wait(40) == 1, process.text()
        assert "has ended: somebody deleted it" in process.text()
        assert "Traceback" not in process.text()
        assert not (to / "tmp/huge").exists()
        daemon = product.daemon()
        until(lambda: len(senders(cluster, daemon)) < 2, within=20, what="the child that sends files to end")
    finally:
        cluster.kubectl(*inside, "rm", "-f", "/tmp/huge")


def test_another_kind_of_session_has_no_field_for_it(cluster, product, shop):
    """What an Intercept is sent beside its fields is not kept, so its key opens nothing of a pod's world."""
    document = {
        "apiVersion": "sidestep.dev/v1alpha1",
        "kind": "Intercept",
        "metadata": {"name": "greedy"},
        "spec": {
            "workload": "deployment/orders",
            "port": "https",
            "allow": ["Environment", "Files"],
            "session": {"publicKey": "A" * 43 + "="},
            "renewTime": "2026-01-01T00:00:00.000000Z",
        },
    }
    words = ("create", "--validate=false", "-f", "-", "-n", shop.namespace)
    made = cluster.kubectl_result(*words, user=DEVELOPER, stdin=json.dumps(document))
    try:
        assert made.code == 0, made.stderr
        kept = cluster.get("intercept", "greedy", namespace=shop.namespace)["spec"]
        assert kept["port"] == "https"
        assert "allow" not in kept
    finally:
        cluster.kubectl_result("delete", "intercept", "greedy", "-n", shop.namespace, "--ignore-not-found")


@pytest.mark.parametrize(
    "wrong", [{}, {"allow": []}, {"allow": ["Everything"]}, {"session": {}}, {"container": 5}, {"allowLoopback": "yes"}]
)
def test_the_api_server_refuses_what_it_can_judge(cluster, product, shop, wrong):
    """Without anything wrong it takes the resource."""
    words = ("create", "--dry-run=server", "-f", "-", "-n", shop.namespace)
    answer = cluster.kubectl_result(*words, user=EVE, stdin=spec(**wrong))
    assert (answer.code != 0) is bool(wrong), answer
    if wrong:
        assert "invalid" in answer.stderr or "ValidationError" in answer.stderr, answer


@pytest.mark.since(25)
def test_what_is_allowed_does_not_change(cluster, product, shop):
    """Not even for who may patch it, to renew it."""
    here = ("-n", shop.namespace)
    made = cluster.kubectl_result("create", "-f", "-", *here, user=EVE, stdin=spec())
    assert made.code == 0, made.stderr
    try:
        for change in (
            {"allow": ["Environment", "Files"]},
            {"workload": "deployment/other"},
            {"session": {"publicKey": "B" * 43 + "="}},
        ):
            words = ("patch", "podaccess", "by-hand", *here, "--type=merge", "-p", json.dumps({"spec": change}))
            refused = cluster.kubectl_result(*words, user=EVE)
            assert refused.code != 0, change
    finally:
        cluster.kubectl_result("delete", "podaccess", "by-hand", *here, "--ignore-not-found")
