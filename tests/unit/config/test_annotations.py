"""Annotations: inheritance, and a table of bad values with the text each of them gives."""

import pytest

from sidestep.config.annotations import MAX_HINTS, MAX_PROBLEMS, CertificateScope, ClientAuth, SourceKind, resolve
from sidestep.model.condition import ConditionType
from sidestep.model.pod import ContainerPort, Owner, Pod, PodKey, Transport

T = "telepresence.io/"
S = "sidestep.dev/"
PATH, SECRET = f"{T}downstream-tls-path", f"{T}downstream-tls-secret"
UP_PATH, UP_SECRET = f"{T}upstream-tls-path", f"{T}upstream-tls-secret"
SKIP, PROBE = f"{T}upstream-insecure-skip-verify", f"{T}upstream-probe-timeout"
AUTH, FORWARD = f"{S}downstream-client-auth", f"{S}forward-client-cert"

PORTS = (
    ContainerPort(8443, name="https", container="app"),
    ContainerPort(9090, name="metrics", container="side"),
    ContainerPort(53, Transport.UDP, name="dns", container="app"),
)


def settle(pod=None, *, deployment=None, replicaset=None, namespace=None, node=None, extra_ports=(), ports=PORTS):
    owners = (Owner("replicaset", "orders-7d9", replicaset or {}), Owner("deployment", "orders", deployment or {}))
    made = Pod(
        PodKey("shop", "orders-1"),
        "uid",
        ports=ports,
        containers=("side", "app", "third"),
        annotations=pod or {},
        owners=owners,
    )
    return resolve(made, namespace_annotations=namespace or {}, node_annotations=node or {}, extra_ports=extra_ports)


def test_defaults():
    found = settle()
    assert sorted(found.ports) == [8443, 9090]
    port = found.ports[8443]
    assert (port.downstream, port.upstream, port.skip_verify, port.probe_timeout) == (None, None, False, 2.0)
    assert (port.client_auth, port.forward_client_cert) == (ClientAuth.AUTO, False)
    assert port.certificate_scope is CertificateScope.NONE
    assert found.problems == ()


def test_every_key():
    found = settle(
        {
            f"{PATH}.8443": "/etc/tls",
            f"{UP_SECRET}.8443": "client-cert",
            f"{SKIP}.8443": "enabled",
            f"{PROBE}.8443": "1m30s",
            f"{AUTH}.8443": "require",
            f"{FORWARD}.8443": "enabled",
        }
    )
    assert found.problems == ()
    port = found.ports[8443]
    assert port.downstream is not None
    assert port.upstream is not None
    assert (port.downstream.kind, port.downstream.value) == (SourceKind.PATH, "/etc/tls")
    assert (port.downstream.annotation, port.downstream.origin) == (f"{PATH}.8443", "pod shop/orders-1")
    assert (port.upstream.kind, port.upstream.value) == (SourceKind.SECRET, "client-cert")
    assert port.skip_verify
    assert port.probe_timeout == 90
    assert port.client_auth is ClientAuth.REQUIRE
    assert port.forward_client_cert
    assert port.certificate_scope is CertificateScope.PORT
    assert set(port.origins.values()) == {"pod shop/orders-1"}
    assert len(port.origins) == 6
    assert found.ports[9090].downstream is None


LEVELS = ["pod", "replicaset", "deployment", "namespace", "node"]
ORIGINS = {
    "pod": "pod shop/orders-1",
    "replicaset": "replicaset shop/orders-7d9",
    "deployment": "deployment shop/orders",
    "namespace": "namespace shop",
    "node": "its node",
}


@pytest.mark.parametrize("nearest", range(len(LEVELS)))
@pytest.mark.parametrize("base", [PATH, SECRET])
def test_the_nearest_source_wins(nearest, base):
    prefix = "/" if base == PATH else ""
    levels = {level: {f"{base}.8443": f"{prefix}of-{level}"} for level in LEVELS[nearest:]}
    found = settle(**levels)
    downstream = found.ports[8443].downstream
    assert downstream is not None
    assert downstream.value == f"{prefix}of-{LEVELS[nearest]}"
    assert downstream.origin == ORIGINS[LEVELS[nearest]]
    assert found.problems == ()


def test_inheritance_is_per_key():
    found = settle({f"{PROBE}.8443": "1s"}, deployment={f"{SKIP}.8443": "enabled"}, namespace={f"{PROBE}.8443": "9s"})
    assert found.ports[8443].probe_timeout == 1
    assert found.ports[8443].skip_verify
    assert found.ports[8443].origins == {f"{PROBE}.8443": ORIGINS["pod"], f"{SKIP}.8443": ORIGINS["deployment"]}


def test_a_nearer_path_beats_a_farther_secret():
    found = settle({f"{PATH}.8443": "/tls"}, namespace={f"{SECRET}.8443": "default-cert"})
    assert found.ports[8443].downstream.value == "/tls"
    assert found.problems == ()


def test_a_bad_nearer_value_does_not_bring_up_a_farther_one():
    found = settle({f"{SECRET}.8443": "NOT A NAME"}, namespace={f"{SECRET}.8443": "default-cert"})
    assert found.ports[8443].downstream is None
    assert len(found.problems) == 1


def test_the_node_may_leave_out_the_port():
    found = settle(node={SECRET: "node-cert", PROBE: "5s", f"{PROBE}.9090": "7s"})
    assert found.problems == ()
    assert found.ports[8443].probe_timeout == 5
    assert found.ports[9090].probe_timeout == 7
    assert found.ports[8443].downstream.value == "node-cert"
    assert found.ports[8443].certificate_scope is CertificateScope.DEFAULT


def test_on_the_node_a_port_beats_the_default_for_all():
    found = settle(node={SECRET: "node-cert", f"{PATH}.8443": "/tls"})
    assert found.problems == ()
    assert found.ports[8443].downstream.value == "/tls"
    assert found.ports[8443].certificate_scope is CertificateScope.PORT
    assert found.ports[9090].downstream.value == "node-cert"


def test_a_bad_default_of_the_node_is_one_problem():
    found = settle(node={PROBE: "soon"})
    assert len(found.problems) == 1
    assert "(set on its node)" in found.problems[0].text


def test_namespace_and_node_may_name_ports_that_this_pod_lacks():
    found = settle(namespace={f"{PATH}.7777": "/tls"}, node={f"{PATH}.7778": "/tls"})
    assert found.problems == ()
    assert sorted(found.ports) == [8443, 9090]


def test_extra_ports_count_as_ports_of_the_pod():
    found = settle({f"{PATH}.7777": "/tls"}, extra_ports=[7777])
    assert found.problems == ()
    assert found.ports[7777].downstream.value == "/tls"
    assert found.ports[7777].containers == ("side", "app", "third")


def test_candidate_containers():
    ports = (
        ContainerPort(8443, container="app"),
        ContainerPort(9090, container="side"),
        ContainerPort(9090, container="third"),
        ContainerPort(1000),
    )
    found = settle(ports=ports)
    assert found.ports[8443].containers == ("app",)
    assert found.ports[9090].containers == ("side", "third")
    assert found.ports[1000].containers == ("side", "app", "third")


def test_other_annotations_are_nobodys_business():
    others = {
        "telepresence.io/inject-container-ports": "http",
        "sidestep.dev/netns": "/run/netns/x",
        "sidestep.dev/pid": "1",
        "example.com/downstream-tls-path.8443": "x",
        "": "",
        "/": "",
        "downstream-tls-path.8443": "x",
    }
    assert settle(others, namespace=others, node=others).problems == ()


BAD = [
    # certificates by path
    (f"{PATH}.8443", "", "is empty"),
    (f"{PATH}.8443", "etc/tls", "must be an absolute path"),
    (f"{PATH}.8443", "./tls", "must be an absolute path"),
    (f"{PATH}.8443", "../tls", "must be an absolute path"),
    (f"{PATH}.8443", " /etc/tls", "must be an absolute path"),
    (f"{PATH}.8443", "/etc/../tls", "must not contain '..'"),
    (f"{PATH}.8443", "/..", "must not contain '..'"),
    (f"{PATH}.8443", "/etc/tls/..", "must not contain '..'"),
    (f"{PATH}.8443", "/etc/\0tls", "characters that do not belong in a path"),
    (f"{PATH}.8443", "/etc/tls\n", "characters that do not belong in a path"),
    (f"{PATH}.8443", "/etc/\x1b[2Jtls", "characters that do not belong in a path"),
    (f"{PATH}.8443", "/" + "a" * 5000, "a path has at most 4095"),
    (f"{UP_PATH}.8443", "client", "must be an absolute path"),
    (f"{UP_PATH}.9090", "/a/../b", "must not contain '..'"),
    # certificates by Secret
    (f"{SECRET}.8443", "", "is empty"),
    (f"{SECRET}.8443", "shop/orders-tls", "must be the name of a Secret in the pod's namespace"),
    (f"{SECRET}.8443", "../other", "must be the name of a Secret in the pod's namespace"),
    (f"{SECRET}.8443", "Orders-TLS", "is not the name of a Secret"),
    (f"{SECRET}.8443", "orders_tls", "is not the name of a Secret"),
    (f"{SECRET}.8443", "-orders", "is not the name of a Secret"),
    (f"{SECRET}.8443", "orders..tls", "is not the name of a Secret"),
    (f"{SECRET}.8443", "orders-tls\n", "is not the name of a Secret"),
    (f"{SECRET}.8443", "a" * 254, "is not the name of a Secret"),
    (f"{UP_SECRET}.8443", "two names", "is not the name of a Secret"),
    # switches
    (f"{SKIP}.8443", "", "is empty"),
    (f"{SKIP}.8443", "true", "must be enabled or disabled"),
    (f"{SKIP}.8443", "Enabled", "must be enabled or disabled"),
    (f"{SKIP}.8443", "enabled ", "must be enabled or disabled"),
    (f"{FORWARD}.8443", "yes", "must be enabled or disabled"),
    (f"{FORWARD}.8443", "1", "must be enabled or disabled"),
    # probe timeout
    (f"{PROBE}.8443", "", "is empty"),
    (f"{PROBE}.8443", "2", "write number and unit, like 10s"),
    (f"{PROBE}.8443", "2 s", "write number and unit, like 10s"),
    (f"{PROBE}.8443", "-2s", "write number and unit, like 10s"),
    (f"{PROBE}.8443", "two seconds", "write number and unit, like 10s"),
    (f"{PROBE}.8443", "1_0s", "write number and unit, like 10s"),
    (f"{PROBE}.8443", "s", "write number and unit, like 10s"),
    (f"{PROBE}.8443", "0s", "must be between 10ms and 10m"),
    (f"{PROBE}.8443", "24h", "must be between 10ms and 10m"),
    # client authentication
    (f"{AUTH}.8443", "", "is empty"),
    (f"{AUTH}.8443", "required", "must be one of auto, require, request, none"),
    (f"{AUTH}.8443", "REQUIRE", "must be one of auto, require, request, none"),
    (f"{AUTH}.8443", "auto,require", "must be one of auto, require, request, none"),
    # ports
    (PATH, "/etc/tls", f"has no port: write {PATH}.PORT"),
    (SECRET, "orders-tls", f"has no port: write {SECRET}.PORT"),
    (AUTH, "require", f"has no port: write {AUTH}.PORT"),
    (f"{PATH}.", "/etc/tls", "is not a port number"),
    (f"{PATH}.0", "/etc/tls", "is not a port number"),
    (f"{PATH}.65536", "/etc/tls", "is not a port number"),
    (f"{PATH}.08443", "/etc/tls", "is not a port number"),
    (f"{PATH}.+8443", "/etc/tls", "is not a port number"),
    (f"{PATH}.8443.1", "/etc/tls", "is not a port number"),
    (f"{PATH}.\u0668\u0664\u0664\u0663", "/etc/tls", "is not a port number"),
    (f"{PATH}.https", "/etc/tls", f"the port is written as a number: {PATH}.8443"),
    (f"{PATH}.7777", "/etc/tls", "the pod has no container port 7777 (TCP ports there are: 8443, 9090)"),
    (f"{SKIP}.1", "enabled", "the pod has no container port 1 "),
    (f"{PATH}.53", "/etc/tls", "the pod declares port 53 for UDP only"),
    # spelling
    (f"{T}downstream-tls-pth.8443", "/etc/tls", f"did you mean {PATH}.PORT?"),
    (f"{T}downstream-tls-secrets.8443", "orders-tls", f"did you mean {SECRET}.PORT?"),
    (f"{T}upstream-insecure-skip-verification.8443", "enabled", f"did you mean {SKIP}.PORT?"),
    (f"{S}downstream-client-auht.8443", "require", f"did you mean {AUTH}.PORT?"),
]


@pytest.mark.parametrize(("annotation", "value", "reason"), BAD)
def test_a_bad_value_is_one_problem_naming_annotation_value_pod_and_reason(annotation, value, reason):
    good = {f"{PATH}.9090": "/good", f"{SKIP}.9090": "enabled"} if not annotation.endswith(".9090") else {}
    found = settle(good | {annotation: value})
    (problem,) = found.problems
    condition = problem.condition()
    assert condition.type is ConditionType.ANNOTATION_INVALID
    assert condition.subject == "pod shop/orders-1"
    assert f"annotation {annotation} " in condition.text or not annotation.isprintable()
    assert repr(value)[:100].rstrip("'\"") in condition.text
    assert " of pod shop/orders-1: " in condition.text
    assert reason in condition.text
    assert condition.text.isprintable()
    assert len(condition.text) < 500
    # A bad port never disables a good one.
    if good:
        assert found.ports[9090].downstream.value == "/good"
        assert found.ports[9090].skip_verify
    # What is bad is not used, nor anything in its place.
    port = found.ports[8443]
    assert (port.downstream, port.upstream, port.skip_verify, port.probe_timeout) == (None, None, False, 2.0)
    assert (port.client_auth, port.forward_client_cert) == (ClientAuth.AUTO, False)


def test_the_table_is_long_enough():
    assert len(BAD) >= 40


@pytest.mark.parametrize(("path", "secret"), [(PATH, SECRET), (UP_PATH, UP_SECRET)])
@pytest.mark.parametrize("level", LEVELS)
def test_path_and_secret_on_one_object(path, secret, level):
    found = settle(**{level: {f"{path}.8443": "/etc/tls", f"{secret}.8443": "orders-tls"}})
    (problem,) = found.problems
    assert f"{path}.8443 '/etc/tls' of pod shop/orders-1" in problem.text
    assert f"{secret}.8443 is set as well" in problem.text
    assert found.ports[8443].downstream is None
    assert found.ports[8443].upstream is None


@pytest.mark.parametrize("level", ["deployment", "namespace", "node"])
def test_an_inherited_problem_tells_where_it_stands(level):
    (problem,) = settle(**{level: {f"{SKIP}.8443": "maybe"}}).problems
    assert f"of pod shop/orders-1 (set on {ORIGINS[level]}): must be enabled or disabled" in problem.text


def test_owner_with_a_port_that_the_pod_lacks():
    (problem,) = settle(deployment={f"{PATH}.7777": "/tls"}).problems
    assert "(set on deployment shop/orders): the pod has no container port 7777" in problem.text


def test_hostile_annotation_names_and_masses():
    hostile = {f"{PATH}.\x1b[2J\nERROR": "/tls", f"{PATH}.{'9' * 100_000}": "x"}
    hostile |= {f"{PATH}.{number}": "" for number in range(1000, 2000)}
    found = settle(hostile)
    assert len(found.problems) == MAX_PROBLEMS
    assert all(problem.text.isprintable() and len(problem.text) < 1000 for problem in found.problems)


def test_other_problems_do_not_use_up_the_guesses_at_misspelt_names():
    wrong = {f"{PATH}.{7000 + each}": "/tls" for each in range(MAX_HINTS + 2)}
    texts = [problem.text for problem in settle({**wrong, f"{T}downstream-tls-pth.8443": "/tls"}).problems]
    assert f"did you mean {PATH}.PORT?" in texts[-1]


def test_guesses_at_misspelt_names_are_limited():
    misspelt = {f"{T}downstream-tls-pth{each}.8443": "/tls" for each in range(MAX_HINTS + 2)}
    texts = [problem.text for problem in settle(misspelt).problems]
    assert ["did you mean" in text for text in texts] == [True] * MAX_HINTS + [False] * 2
