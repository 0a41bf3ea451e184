"""The command line against an API server: which one it takes, list, status, leave, refusals; with a real kubeconfig."""

import json

import pytest
import yaml

from sidestep.cli.readable_ports import readable_ports
from sidestep.kube import kubeconfig as kubeconfigs
from sidestep.model.errors import RefusedError
from tests.harness.cluster import ApiServer
from tests.harness.warm import SIDESTEP, run
from tests.integration.kube.cluster import GROUP
from tests.integration.kube.test_cluster_cache import pod, populate
from tests.unit.cli.test_policy_except import ID, alert
from tests.unit.node.sessions.test_resources import value

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: here
contexts:
  - {name: here, context: {cluster: c, user: ada, namespace: shop}}
  - {name: there, context: {cluster: c, user: ada, namespace: other}}
clusters: [{name: c, cluster: {server: ""}}]
users: [{name: ada, user: {token: let-me-in}}]
"""


class Server(ApiServer):
    """A fake API server in clear, and a kubeconfig of two contexts."""

    def __init__(self, folder):
        super().__init__(folder, tls=False)
        config = yaml.safe_load(KUBECONFIG)
        config["clusters"][0]["cluster"]["server"] = f"http://127.0.0.1:{self.api.port}"
        (folder / "config").write_text(yaml.safe_dump(config))
        self.kubeconfig = folder / "config"


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path)
    yield made
    made.close()


def sidestep(*words, allow="1", **env):
    """Run the command line; `allow` is what SIDESTEP_INSECURE_HTTP says, for the server is one without TLS."""
    env = {"SIDESTEP_INSECURE_HTTP": allow, "HOME": "/nonexistent", **env}
    done = run([SIDESTEP, *map(str, words)], within=60, environment={name: str(text) for name, text in env.items()})
    return done.returncode, done.stdout, done.stderr


def test_list_reads_the_api_only(server):
    server.do(populate(server.api))
    server.do(server.api.put(GROUP, "intercepts", value("a")))
    bad = pod(annotations={"telepresence.io/downstream-tls-path": "/tls"})
    server.do(server.api.put("/api/v1", "pods", bad))
    code, text, errors = sidestep("list", "--kubeconfig", server.kubeconfig)
    assert (code, errors) == (0, "")
    assert "deployment/orders" in text
    assert "8443/tcp https" in text
    assert "intercept/a" in text
    assert "AnnotationInvalid: pod shop/orders-1" in text
    assert {request.split()[0] for request in server.api.requests} == {"GET"}


def test_the_ports_that_may_speak_http_are_found_in_the_api(server, monkeypatch):
    monkeypatch.setenv("SIDESTEP_INSECURE_HTTP", "1")
    server.do(populate(server.api))
    more = pod("orders-2", ip="10.0.0.2")
    ports = [(8443, "https", "TCP"), (8080, "http", "TCP"), (9000, "tcp", "TCP"), (53, "dns", "UDP")]
    more["spec"]["containers"][0]["ports"] = [
        {"containerPort": number, "name": name, "protocol": protocol} for number, name, protocol in ports
    ]
    server.do(server.api.put("/api/v1", "pods", more))
    raw = {"selector": {"app": "orders"}, "ports": [{"port": 9000, "appProtocol": "tcp"}]}
    server.do(server.api.put("/api/v1", "services", {"metadata": {"name": "raw", "namespace": "shop"}, "spec": raw}))
    access = kubeconfigs.load(server.kubeconfig, None)
    assert sorted(readable_ports(access, "shop", "orders")) == ["8080", "8443"]
    assert sorted(readable_ports(access, "shop", "deployment/orders", whole=True)) == ["8080", "8443", "9000"]
    for workload in ("carts", "statefulset/orders"):
        with pytest.raises(RefusedError, match="no workload"):
            readable_ports(access, "shop", workload)


def test_list_names_the_policies_that_inspect_each_port(server):
    server.do(populate(server.api))
    code, text, _ = sidestep("list", "--kubeconfig", server.kubeconfig)
    assert code == 0
    assert "INSPECTED BY" not in text
    spec = {"podSelector": {}, "mode": "Enforce", "rules": [{"name": "a", "action": "Block"}]}
    daemon = {"namespace": "sidestep", "pod": "sidestep-1", "started": "2026-01-01T00:00:00Z"}
    there = [{"workload": "shop/deployment/orders", "ports": [8443]}]
    gap = {"start": "2026-01-01T00:00:00.000Z", "end": "2026-01-01T00:00:07.000Z", "reason": "no-daemon", "pods": 1}
    entry = {"daemon": daemon, "observedGeneration": 1, "accepted": True, "inspected": there, "gaps": [gap]}
    found = {"metadata": {"name": "p", "namespace": "shop"}, "spec": spec, "status": {"nodes": {"n1": entry}}}
    server.do(server.api.put(GROUP, "inspectionpolicies", found))
    base = {"namespaceSelector": {}, **spec, "mode": "Detect"}
    nodes = {"n1": entry | {"inspectedMore": 2}, "n2": None}
    found = {"metadata": {"name": "base"}, "spec": base, "status": {"nodes": nodes}}
    server.do(server.api.put(GROUP, "clusterinspectionpolicies", found))
    code, text, errors = sidestep("list", "--kubeconfig", server.kubeconfig)
    assert (code, errors) == (0, "")
    assert "INSPECTED BY" in text.splitlines()[0]
    [line] = [line for line in text.splitlines() if "8443/tcp" in line]
    assert line.endswith("base (Detect), shop/p (Enforce)")
    assert "base inspects more workloads than its status names." in text.splitlines()
    _, text, _ = sidestep("list", "--kubeconfig", server.kubeconfig, "-o", "json")
    [ports] = [json.loads(line)["ports"] for line in text.splitlines() if '"orders"' in line]
    assert ["base (Detect)", "shop/p (Enforce)"] in [port["policies"] for port in ports]
    _, text, _ = sidestep("status", "--kubeconfig", server.kubeconfig)
    said = f"not inspected on 1 pod of node n1 from {gap['start']} to {gap['end']} (no-daemon)"
    assert f"  shop/p: {said}" in text.splitlines()
    server.api.forbid("list", "inspectionpolicies")
    server.api.forbid("list", "clusterinspectionpolicies")
    code, text, errors = sidestep("list", "--kubeconfig", server.kubeconfig)
    assert (code, errors) == (0, "")
    assert "INSPECTED BY" not in text


def test_the_context_gives_the_namespace(server):
    code, text, _ = sidestep("list", "--context", "there", KUBECONFIG=server.kubeconfig)
    assert (code, text) == (0, "No workloads in namespace other.\n")
    code, _, errors = sidestep("list", "--context", "nowhere", KUBECONFIG=server.kubeconfig)
    assert code == 1
    assert len(errors.splitlines()) == 1
    assert "nowhere" in errors


def test_a_kubeconfig_is_taken_when_no_daemon_answers_here(server):
    code, text, _ = sidestep("status", KUBECONFIG=server.kubeconfig)
    assert code == 0
    assert f"Cluster http://127.0.0.1:{server.api.port}, namespace shop" in text
    assert "No sessions." in text


def test_a_socket_is_this_machine(server, tmp_path):
    code, _, errors = sidestep("status", "--socket", tmp_path / "none.sock", KUBECONFIG=server.kubeconfig)
    assert code == 1
    assert "no node daemon answers on" in errors
    code, _, errors = sidestep("status", "--socket", tmp_path / "none.sock", "--context", "here")
    assert code == 2
    assert "--socket" in errors


def test_status_shows_inspection_policies_to_who_may_read_them(server):
    spec = {"podSelector": {}, "mode": "Enforce", "rules": [{"name": "a", "action": "Block"}]}
    message = "on 1 of 2 pods; shop/b is failed"
    failing = {"type": "Programmed", "status": "False", "reason": "Failing", "message": message}
    accepted = {"type": "Accepted", "status": "True", "reason": "Accepted", "message": "it is in force"}
    conditions = [each | {"lastTransitionTime": "2026-01-01T00:00:00Z"} for each in (accepted, failing)]
    written = {"programmedPods": 1, "bypassed": 7, "conditions": conditions}
    for namespace, name, more in (("shop", "p", {"status": written}), ("other", "q", {})):
        found = {"metadata": {"name": name, "namespace": namespace}, "spec": spec, **more}
        server.do(server.api.put(GROUP, "inspectionpolicies", found))
    bad = {"metadata": {"name": "base"}, "spec": {"podSelector": {}}}
    server.do(server.api.put(GROUP, "clusterinspectionpolicies", bad))
    code, text, _ = sidestep("status", "--kubeconfig", server.kubeconfig)
    assert code == 0
    [base, policy] = [line.split() for line in text.splitlines() if line.startswith(("base", "shop/p"))]
    assert policy == ["shop/p", "Enforce", "Ignore", "True", "False", "Unknown", "1", "7", *message.split()]
    assert "spec: lacks" in " ".join(base)
    assert "other/q" not in text
    code, text, _ = sidestep("status", "-A", "--kubeconfig", server.kubeconfig, "--output", "json")
    assert '"name":"q"' in text
    for plural in ("inspectionpolicies", "clusterinspectionpolicies"):
        server.api.forbid("list", plural)
    code, text, _ = sidestep("status", "--kubeconfig", server.kubeconfig)
    assert code == 0
    assert "INSPECTION" not in text


def test_status_shows_resources_and_what_is_wrong(server):
    found = value("a") | {"status": {"state": "Refused", "message": "no certificate", "activePods": 0, "nodes": {}}}
    server.do(server.api.put(GROUP, "intercepts", found))
    code, text, _ = sidestep("status", "--kubeconfig", server.kubeconfig)
    assert code == 0
    assert "shop/a" in text
    assert "Refused" in text
    assert "no certificate" in text
    code, text, _ = sidestep("status", "--kubeconfig", server.kubeconfig, "--output", "json")
    assert '"state":"Refused"' in text


def test_leave_deletes_the_resource(server):
    server.do(server.api.put(GROUP, "intercepts", value("a")))
    server.do(server.api.put(GROUP, "wiretaps", value("b")))
    assert sidestep("leave", "a", "--kubeconfig", server.kubeconfig)[:2] == (0, "Ended intercept shop/a.\n")
    assert sidestep("leave", "shop/b", "--kubeconfig", server.kubeconfig)[0] == 0
    assert server.api.get(GROUP, "intercepts", "shop", "a") is None
    assert server.api.get(GROUP, "wiretaps", "shop", "b") is None
    code, _, errors = sidestep("leave", "a", "--kubeconfig", server.kubeconfig)
    assert code == 1
    assert errors == "sidestep: there is no session shop/a; sidestep status shows those there are\n"


def test_list_and_status_in_every_form(server):
    server.do(populate(server.api))
    server.do(server.api.put(GROUP, "intercepts", value("a")))
    words = ("--kubeconfig", server.kubeconfig)
    assert sidestep("list", *words, "-o", "name")[:2] == (0, "deployment/orders\n")
    assert sidestep("status", *words, "-o", "name")[:2] == (0, "intercept/a\n")
    [orders] = yaml.safe_load(sidestep("list", *words, "-o", "yaml")[1])
    assert (orders["name"], orders["labels"]) == ("orders", {"app": "orders"})
    [found] = yaml.safe_load(sidestep("status", *words, "-o", "yaml")[1])
    assert found["intercepts"][0]["name"] == "a"
    _, text, _ = sidestep("list", *words, "-o", "wide")
    assert "orders:443" in text
    assert "app=orders" in text
    for selector, names in (("app=orders", "deployment/orders\n"), ("app!=orders", ""), ("!app", "")):
        assert sidestep("list", *words, "-o", "name", "-l", selector)[:2] == (0, names)
    code, text, errors = sidestep("list", *words, "-l", "app in orders")
    assert (code, text) == (2, "")
    assert "is no label selector" in errors


def test_flows_are_no_intercepts_and_are_ended_by_name_only(server):
    server.do(populate(server.api))
    server.do(server.api.put(GROUP, "intercepts", value("a")))
    server.do(server.api.put(GROUP, "wiretaps", value("a", headsOnly=True)))
    server.do(server.api.put(GROUP, "wiretaps", value("b", headsOnly=True)))
    code, text, _ = sidestep("list", "--kubeconfig", server.kubeconfig)
    assert code == 0
    assert "flows/a, flows/b, intercept/a" in text
    _, text, _ = sidestep("list", "--kubeconfig", server.kubeconfig, "--output", "json")
    [orders] = [each for each in map(json.loads, text.splitlines()) if each["name"] == "orders"]
    assert (orders["intercepts"], orders["sessions"]) == (["shop/a"], ["flows/a", "flows/b", "intercept/a"])
    _, text, _ = sidestep("status", "--kubeconfig", server.kubeconfig)
    assert [line.split()[:2] for line in text.splitlines() if "shop/" in line and "Pending" in line] == [
        ["shop/a", "intercept"], ["shop/a", "flows"], ["shop/b", "flows"],
    ]  # fmt: skip
    assert sidestep("leave", "a", "--kubeconfig", server.kubeconfig)[1] == "Ended intercept shop/a.\n"
    for words in (["leave", "a"], ["leave", "shop/b"], ["leave", "wiretap/b"]):
        code, text, errors = sidestep(*words, "--kubeconfig", server.kubeconfig)
        assert (code, text) == (1, "")
        assert "somebody's flows" in errors
    assert server.api.get(GROUP, "wiretaps", "shop", "a") is not None
    assert sidestep("leave", "flows/b", "--kubeconfig", server.kubeconfig)[1] == "Ended flows shop/b.\n"
    done = sidestep("leave", "shop/flows/a", "--kubeconfig", server.kubeconfig, "-o", "json")
    assert json.loads(done[1]) == {"ended": "shop/a", "kind": "flows"}
    assert server.api.objects[GROUP, "wiretaps"] == {}


def test_a_service_means_the_workload_behind_it_or_says_why_not(server):
    server.do(populate(server.api))
    words = ("--port", "1:https", "--kubeconfig", server.kubeconfig)

    def refusal(name):
        code, text, errors = sidestep("intercept", f"svc/{name}", *words)
        assert (code, text, len(errors.splitlines())) == (1, "", 1), errors
        return errors

    server.api.forbid("create", "intercepts")
    assert "you may not create intercepts.sidestep.dev" in refusal("orders"), "it is found, and the session begins"
    assert "there is no service shop/nothing" in refusal("nothing")
    idle = {"selector": {"app": "nobody"}, "ports": [{"name": "https", "port": 443, "targetPort": 8443}]}
    named = {"metadata": {"name": "idle", "namespace": "shop"}, "spec": idle}
    server.do(server.api.put("/api/v1", "services", named))
    assert "service shop/idle leads to no pod" in refusal("idle")
    server.do(server.api.put("/api/v1", "pods", pod("other-1", ownerReferences=[])))
    assert "service shop/orders leads to pods of deployment/orders and of pod/other-1: name one of them" in refusal(
        "orders"
    )
    server.api.forbid("get", "services")
    errors = refusal("orders")
    assert "you may not get services in namespace shop" in errors
    assert "--clusterrole=sidestep-developer" in errors


def test_captures_are_shown_and_ended_also_by_who_may_do_nothing_else(server):
    capture = value("a", duration="10m", snap="All")
    capture["status"] = {"state": "Active", "activePods": 1}
    server.do(server.api.put(GROUP, "captures", capture))
    for verb in ("get", "list", "delete"):
        for plural in ("intercepts", "wiretaps"):
            server.api.forbid(verb, plural)
    code, shown, errors = sidestep("status", "--kubeconfig", server.kubeconfig)
    assert code == 0, errors
    assert "capture" in shown
    assert "Active" in shown
    code, _, errors = sidestep("leave", "b", "--kubeconfig", server.kubeconfig)
    assert code == 1
    assert "you may not get intercepts.sidestep.dev in namespace shop" in errors, "who knows whether there is one"
    assert sidestep("leave", "a", "--kubeconfig", server.kubeconfig)[:2] == (0, "Ended capture shop/a.\n")
    assert server.api.get(GROUP, "captures", "shop", "a") is None


def test_who_may_not_capture_has_status_and_leave_as_before(server):
    for verb in ("get", "list", "delete"):
        server.api.forbid(verb, "captures")
    server.do(server.api.put(GROUP, "intercepts", value("a")))
    assert "intercept" in sidestep("status", "--kubeconfig", server.kubeconfig)[1]
    code, _, errors = sidestep("leave", "b", "--kubeconfig", server.kubeconfig)
    assert (code, errors) == (1, "sidestep: there is no session shop/b; sidestep status shows those there are\n")


def test_who_may_not_is_told_what_to_ask_for_in_one_line(server):
    server.api.forbid("create", "intercepts")
    code, text, errors = sidestep("intercept", "orders", "--port", "9443:https", "--kubeconfig", server.kubeconfig)
    assert (code, text) == (1, "")
    assert len(errors.splitlines()) == 1
    assert "you may not create intercepts.sidestep.dev in namespace shop" in errors
    assert "kubectl create rolebinding sidestep-eve --clusterrole=sidestep-developer --user=eve -n shop" in errors


def test_no_server(server):
    server.do(server.api.stop())
    for command in (["list"], ["status"], ["leave", "a"], ["intercept", "orders", "--port", "1:2"]):
        code, _, errors = sidestep(*command, "--kubeconfig", server.kubeconfig)
        assert code == 1
        assert len(errors.splitlines()) == 1
        assert "cannot be reached: connection refused" in errors


@pytest.mark.parametrize("allow", ["", "0"])
def test_a_token_is_not_sent_in_clear_unless_told(server, allow):
    for command in (["list"], ["status"], ["leave", "a"], ["intercept", "orders", "--port", "1:2"]):
        code, _, errors = sidestep(*command, "--kubeconfig", server.kubeconfig, allow=allow)
        assert code == 1
        assert len(errors.splitlines()) == 1
        assert "your token or password would be sent in clear" in errors
        assert "SIDESTEP_INSECURE_HTTP=1" in errors
    assert server.api.requests == []


@pytest.mark.parametrize(
    ("address", "user", "told"),
    [
        ("http://127.0.0.1:1", {}, "cannot be reached"),
        ("http://localhost:1", {}, "cannot be reached"),
        ("http://[::1]:1", {}, "cannot be reached"),
        ("http://127.0.0.1:1", {"username": "ada", "password": "x"}, "would be sent in clear"),
        ("http://api.test:8080", {}, "whoever is on the way could answer"),
        ("HTTP://api.test", {"token": "x"}, "would be sent in clear"),
        ("ftp://127.0.0.1:1", {}, "no https:// address"),
    ],
)
def test_which_servers_are_spoken_to_without_tls(tmp_path, address, user, told):
    """`kubectl proxy` offers a server in clear on this machine that wants no credentials."""
    config = yaml.safe_load(KUBECONFIG)
    config["clusters"][0]["cluster"]["server"] = address
    config["users"][0]["user"] = user
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    code, _, errors = sidestep("status", "--kubeconfig", tmp_path / "config", allow="")
    assert (code, len(errors.splitlines())) == (1, 1)
    assert told in errors


def test_what_others_wrote_is_harmless_to_a_terminal(server):
    evil = "\x1b]0;owned\x07\x9b31m\u202e"
    found = value("a") | {"status": {"state": "Refused", "message": f"no{evil}", "activePods": 0, "nodes": {}}}
    server.do(server.api.put(GROUP, "intercepts", found))
    event = {
        "metadata": {"name": "e", "namespace": "shop"},
        "involvedObject": {"kind": "Pod", "name": f"p{evil}", "namespace": "shop"},
        "reason": f"CertificateInvalid{evil}",
        "message": f"bad{evil}",
        "source": {"component": "sidestep"},
    }
    server.do(server.api.put("/api/v1", "events", event))
    for words in (["status"], ["status", "-o", "json"], ["list"], ["list", "-o", "json"], ["leave", f"x{evil}"]):
        _, text, errors = sidestep(*words, "--kubeconfig", server.kubeconfig)
        assert (text + errors).replace("\n", "").isprintable(), words


def test_an_exception_joins_what_the_policies_of_the_cluster_except(server, tmp_path):
    before = {"rules": [941100], "parameters": ["html"]}
    spec = {"podSelector": {}, "mode": "Enforce", "waf": {"exceptions": [before]}}
    found = {"metadata": {"name": "orders", "namespace": "shop"}, "spec": spec}
    server.do(server.api.put(GROUP, "inspectionpolicies", found))
    eve = tmp_path / "eve.json"
    eve.write_bytes(alert("WAF", target=b"/notes", pattern="942100 949110"))
    words = ("policy", "except", ID, "--eve", eve, "--kubeconfig", server.kubeconfig)
    code, text, errors = sidestep(*words)
    assert (code, errors) == (0, "")
    [change] = yaml.safe_load_all(text)
    wanted = {"rules": [942100], "paths": [{"match": "Equal", "value": "/notes"}]}
    assert change["spec"]["waf"]["exceptions"] == [before, wanted]
    server.api.failing[f"{GROUP}/namespaces/shop/inspectionpolicies"] = 500
    code, text, errors = sidestep(*words)
    assert code == 0
    assert "the policies of the cluster cannot be read" in errors
    [change] = yaml.safe_load_all(text)
    assert change["spec"]["waf"]["exceptions"] == [wanted]
    assert "is not known" in text
