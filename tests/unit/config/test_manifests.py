"""A directory of manifests: what comes out of good ones, and one precise line for each bad one."""

import base64
import json
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.config.manifests import MAX_ERRORS, MAX_FILES, MAX_TOTAL, combine, load_files, secret_data
from sidestep.config.objects import MAX_PORTS, converter
from sidestep.config.yaml_documents import MAX_TEXT
from sidestep.model.condition import ConditionType
from sidestep.model.pod import ContainerPort, Location, PodKey, ServicePort, Transport
from sidestep.model.workload import LabelRequirement, LabelSelector, SelectorOperator, WorkloadKey

POD = """\
apiVersion: v1
kind: Pod
metadata:
  name: orders-1
  namespace: shop
  uid: 0d5e1f1c-7f57-4a0b-9a5e-0d5f6a1b2c3d
  labels: {app: orders, tier: back}
  annotations:
    sidestep.dev/netns: /run/netns/orders
    telepresence.io/downstream-tls-path.8443: /etc/tls
spec:
  containers:
  - name: app
    image: orders:1
    ports:
    - {containerPort: 8443, name: https}
    - {containerPort: 53, protocol: UDP}
    - {containerPort: 99, protocol: SCTP}
    livenessProbe: {httpGet: {path: /, port: https}}
    readinessProbe: {tcpSocket: {port: 8081}}
  - name: side
    ports: [{containerPort: 9090}]
    startupProbe: {grpc: {port: 9091}}
    livenessProbe: {exec: {command: [x]}}
  initContainers:
  - {name: init, ports: [{containerPort: 1}]}
  - {name: native, restartPolicy: Always, ports: [{containerPort: 15000}], livenessProbe: {httpGet: {port: "15001"}}}
status:
  phase: Running
  podIP: 10.1.2.3
  podIPs: [{ip: 10.1.2.3}, {ip: "fd00::3"}]
"""


def read(files):
    """What a directory of these files (name to content) declares, and what is wrong with it."""
    return combine(load_files(files))


def pod(name="orders-1", *, annotations="sidestep.dev/netns: /run/netns/x", more="", labels="{app: orders}", spec=""):
    return f"""\
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: shop
  labels: {labels}
  annotations:
    {annotations}
{more}spec:
  containers:
  - name: app
    ports: [{{containerPort: 80}}]
{spec}"""


def load(*texts, **files):
    named = {f"{number}.yaml": text for number, text in enumerate(texts)}
    return read(named | files)


def good(*texts):
    inventory, errors = load(*texts)
    assert errors == ()
    return inventory


def one_error(text):
    _, (error,) = load(text)
    return error


def test_pod():
    (found,) = good(POD).pods.values()
    assert found.key == PodKey("shop", "orders-1")
    assert found.uid == "0d5e1f1c-7f57-4a0b-9a5e-0d5f6a1b2c3d"
    assert found.ips == (ip_address("10.1.2.3"), ip_address("fd00::3"))
    assert found.ports == (
        ContainerPort(8443, Transport.TCP, "https", "app"),
        ContainerPort(53, Transport.UDP, "", "app"),
        ContainerPort(9090, Transport.TCP, "", "side"),
        ContainerPort(15000, Transport.TCP, "", "native"),
    )
    assert found.containers == ("app", "side", "native")
    assert found.labels == {"app": "orders", "tier": "back"}
    assert found.annotations["telepresence.io/downstream-tls-path.8443"] == "/etc/tls"
    assert found.location == Location(netns="/run/netns/orders")
    assert found.probe_ports == {8443, 8081, 9091, 15001}
    assert not found.host_network
    assert not found.ended


@pytest.mark.parametrize(
    ("annotations", "location"),
    [
        ("sidestep.dev/netns: /run/netns/x", Location(netns="/run/netns/x")),
        ('sidestep.dev/pid: "1234"', Location(netns="/proc/1234/ns/net", pids={"": 1234})),
        (
            'sidestep.dev/pid: "7"\n    sidestep.dev/netns: /n\n    sidestep.dev/root: /r\n    sidestep.dev/cgroup: /c',
            Location(netns="/n", pids={"": 7}, root="/r", cgroup="/c"),
        ),
    ],
)
def test_location(annotations, location):
    assert good(pod(annotations=annotations)).pods[PodKey("shop", "orders-1")].location == location


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_an_ended_pod_needs_no_place(phase):
    text = pod(annotations="{}", spec=f"status: {{phase: {phase}}}\n")
    (found,) = good(text).pods.values()
    assert found.ended


@pytest.mark.parametrize(
    ("resources", "processors"),
    [
        ("", None),
        ("  resources: {limits: {cpu: 2}}\n", 2.0),
        ("  resources: {limits: {cpu: 500m}}\n", 0.5),
        ("  resources: {limits: {cpu: 1.5, memory: 1Gi}}\n", 1.5),
        ("  resources: {limits: {cpu: lots}}\n", None),
        ("  resources: {limits: {cpu: true}}\n", None),
        ("  resources: {limits: {memory: 1Gi}}\n", None),
        ("  resources:\n", None),
        ("    resources: {limits: {cpu: 250m}}\n  - name: side\n    resources: {limits: {cpu: '1'}}\n", 1.25),
        ("    resources: {limits: {cpu: 250m}}\n  - name: side\n", None),
    ],
)
def test_the_processors_that_its_containers_may_use(resources, processors):
    (found,) = good(pod(spec=resources)).pods.values()
    assert found.processors == processors


def test_defaults():
    (found,) = good(
        'apiVersion: v1\nkind: Pod\nmetadata: {name: a, annotations: {sidestep.dev/pid: "9"}}\n'
        "spec: {hostNetwork: true, containers: [{name: x}]}"
    ).pods.values()
    assert found.key == PodKey("default", "a")
    assert found.uid == "default/a"
    assert found.host_network
    assert (found.ips, found.ports, found.probe_ports) == ((), (), frozenset())


def test_service():
    (found,) = good(
        "apiVersion: v1\nkind: Service\nmetadata: {name: front, namespace: shop}\nspec:\n  selector: {app: orders}\n"
        "  ports:\n  - {port: 443, targetPort: https, name: secure, appProtocol: https}\n  - {port: 80}\n"
        "  - {port: 53, targetPort: 5353, protocol: UDP}\n  - {port: 99, protocol: SCTP}\n"
    ).services
    assert (found.namespace, found.name, found.selector) == ("shop", "front", {"app": "orders"})
    assert found.ports == (
        ServicePort(443, "https", "secure", "https"),
        ServicePort(80, 80),
        ServicePort(53, 5353, transport=Transport.UDP),
    )


def test_secret():
    encoded = base64.b64encode(b"\0key\xff" * 30).decode()
    folded = "\\n".join(encoded[i : i + 40] for i in range(0, len(encoded), 40))
    text = (
        "apiVersion: v1\nkind: Secret\nmetadata: {name: tls, namespace: shop}\ntype: kubernetes.io/tls\n"
        f'data: {{tls.key: "{folded}", both: "YQ==", empty: ""}}\nstringData: {{tls.crt: "-----BEGIN", both: b}}\n'
    )
    inventory = good(text)
    secret = inventory.secret("shop", "tls")
    data = {"tls.key": b"\0key\xff" * 30, "tls.crt": b"-----BEGIN", "both": b"b", "empty": b""}
    assert secret_data("--- {{{\n---\n" + text, "shop", "tls") == data
    assert secret_data(text, "shop", "other") is None
    assert secret.version != good(text.replace("both: b", "both: c")).secret("shop", "tls").version
    assert "key" not in repr(inventory)
    assert "BEGIN" not in repr(inventory)
    assert inventory.secret("shop", "other") is None


def test_namespace_and_node():
    inventory = good(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, annotations: {a: b}}\n---\n"
        "apiVersion: v1\nkind: Node\nmetadata: {name: n1.example, annotations: {c: d}}\n"
    )
    assert inventory.namespace_annotations("shop") == {"a": "b"}
    assert inventory.namespace_annotations("other") == {}
    assert inventory.node_annotations("n1.example") == {"c": "d"}
    assert inventory.node_annotations() == {"c": "d"}
    assert inventory.node_annotations("other") == {}


def workload(kind, name, *, version="apps/v1", annotations="{x: y}", selector="{matchLabels: {app: orders}}", more=""):
    return (
        f"apiVersion: {version}\nkind: {kind}\nmetadata:\n  name: {name}\n  namespace: shop\n"
        f"  annotations: {annotations}\n{more}spec:\n  selector: {selector}\n"
    )


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"])
def test_a_workload_owns_the_pods_it_selects(kind):
    other = pod("other", labels="{app: web}")
    inventory = good(workload(kind, "orders"), pod(), other)
    (owner,) = inventory.pods[PodKey("shop", "orders-1")].owners
    assert (owner.kind, owner.name, owner.annotations) == (kind.lower(), "orders", {"x": "y"})
    assert inventory.pods[PodKey("shop", "other")].owners == ()
    assert inventory.workloads[WorkloadKey(kind.lower(), "shop", "orders")].annotations == {"x": "y"}


def test_a_job_owns_by_the_label_kubernetes_gives():
    text = "apiVersion: batch/v1\nkind: Job\nmetadata: {name: import, namespace: shop}\nspec: {template: {}}\n"
    inventory = good(text, pod(labels="{job-name: import}"))
    (owner,) = inventory.pods[PodKey("shop", "orders-1")].owners
    assert (owner.kind, owner.name) == ("job", "import")


def test_selector_expressions():
    expressions = (
        "{matchExpressions: [{key: app, operator: In, values: [orders, web]},"
        " {key: tier, operator: NotIn, values: [x]}, {key: app, operator: Exists}, "
        "{key: gone, operator: DoesNotExist}]}"
    )
    inventory = good(
        workload("Deployment", "orders", selector=expressions),
        pod("a", labels="{app: web}"),
        pod("b", labels="{app: web, tier: x}"),
        pod("c", labels="{app: web, gone: y}"),
        pod("d", labels="{tier: y}"),
    )
    assert [key.name for key, each in inventory.pods.items() if each.owners] == ["a"]


def test_owner_references_are_followed():
    references = (
        "  ownerReferences: [{kind: ReplicaSet, name: orders-7d9, controller: true, apiVersion: apps/v1, uid: u}]\n"
    )
    up = "  ownerReferences: [{kind: Deployment, name: orders}]\n"
    inventory = good(
        pod(labels="{}", more=references),
        workload("ReplicaSet", "orders-7d9", more=up, annotations="{r: s}"),
        workload("Deployment", "orders"),
        workload("StatefulSet", "unrelated"),
    )
    owners = inventory.pods[PodKey("shop", "orders-1")].owners
    assert [(owner.kind, owner.name, owner.annotations) for owner in owners] == [
        ("replicaset", "orders-7d9", {"r": "s"}),
        ("deployment", "orders", {"x": "y"}),
    ]


def test_a_replica_set_that_nobody_described_leads_to_the_selecting_deployment():
    references = "  ownerReferences: [{kind: ReplicaSet, name: orders-7d9, controller: true}]\n"
    inventory = good(pod(more=references), workload("Deployment", "orders"), workload("StatefulSet", "unrelated"))
    owners = inventory.pods[PodKey("shop", "orders-1")].owners
    assert [(owner.kind, owner.name) for owner in owners] == [("replicaset", "orders-7d9"), ("deployment", "orders")]


def test_owner_references_in_a_circle_end():
    inventory = good(
        pod(more="  ownerReferences: [{kind: ReplicaSet, name: a}]\n"),
        workload("ReplicaSet", "a", more="  ownerReferences: [{kind: Deployment, name: b}]\n"),
        workload("Deployment", "b", more="  ownerReferences: [{kind: ReplicaSet, name: a}]\n"),
    )
    owners = inventory.pods[PodKey("shop", "orders-1")].owners
    assert [owner.name for owner in owners] == ["a", "b"]


def test_a_foreign_controller_is_kept_by_name():
    inventory = good(pod(more="  ownerReferences: [{kind: Rollout, name: canary}]\n"), workload("Deployment", "orders"))
    assert [(each.kind, each.name) for each in inventory.pods[PodKey("shop", "orders-1")].owners] == [
        ("rollout", "canary")
    ]


def test_other_kinds_are_passed_over_in_silence():
    inventory = good(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n---\n"
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: x}\nspec: {template: 1}\n---\n"
        "apiVersion: example.com/v1\nkind: Anything\n---\n# nothing\n---\n"
    )
    assert inventory == good()


def test_list():
    text = json.dumps(
        {
            "apiVersion": "v1",
            "kind": "List",
            "items": [
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}},
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "b", "annotations": {"x": 1}}},
                {"apiVersion": "v1", "kind": "ConfigMap"},
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "c"}},
            ],
        },
        indent=1,
    )
    inventory, (error,) = load(text)
    assert sorted(inventory.namespaces) == ["a", "c"]
    assert str(error).startswith("0.yaml, document 1, line 18: Namespace b: items[1].metadata.annotations.x: Expected")


def test_bytes_and_text_are_the_same():
    assert read({"a.yaml": POD.encode()}) == read({"a.yaml": POD})


BAD = [
    (
        POD.replace("containerPort: 9090", "containerPort: http"),
        "0.yaml, document 1, line 22: Pod shop/orders-1: spec.containers[1].ports[0].containerPort: Expected `int`",
    ),
    (
        POD.replace("containerPort: 9090", 'containerPort: "9090"'),
        "spec.containers[1].ports[0].containerPort: Expected `int`, got `str`",
    ),
    (POD.replace("containerPort: 9090", "containerPort: 0"), "containerPort: Expected `int` >= 1"),
    (POD.replace("containerPort: 9090", "containerPort: 65536"), "containerPort: Expected `int` <= 65535"),
    (POD.replace("containerPort: 9090", "containerPort: true"), "containerPort: Expected `int`, got `bool`"),
    (POD.replace("containerPort: 9090", "x: 1"), "missing required field `containerPort`"),
    (POD.replace("  - name: side", "  - image: side"), "spec.containers[1]: Object missing required field `name`"),
    (pod().replace("  containers:\n", "  x:\n"), "spec: Object missing required field `containers`"),
    ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n", "line 1: Pod default/a: Object missing required field `spec`"),
    ("apiVersion: v1\nkind: Pod\nspec: {containers: []}\n", "Pod: Object missing required field `metadata`"),
    ("apiVersion: v1\nkind: Pod\nmetadata: []\nspec: {}\n", "line 3: Pod: metadata: Expected `object`, got `array`"),
    ("apiVersion: v1\nkind: Pod\nmetadata: {}\nspec: {}\n", "Pod: metadata: Object missing required field `name`"),
    (pod("Orders"), "Pod shop/Orders: metadata.name: 'Orders' is not a Kubernetes name"),
    (pod('"a b"'), "metadata.name: 'a b' is not a Kubernetes name"),
    (pod('"../x"'), "metadata.name: '../x' is not a Kubernetes name"),
    (pod('"a\\nb"'), "line 4: Pod: metadata.name: 'a\\nb' is not a Kubernetes name"),
    (pod("7"), "metadata.name: Expected `str`, got `int`"),
    (pod().replace("namespace: shop", "namespace: a/b"), "metadata.namespace: 'a/b' is not a Kubernetes name"),
    (pod(more='  uid: "a b"\n'), "line 9: Pod shop/orders-1: metadata.uid: not a UID"),
    (
        pod(annotations="x: y"),
        "line 7: Pod shop/orders-1: metadata.annotations: add sidestep.dev/netns: /run/netns/NAME or sidestep.dev/pid",
    ),
    (pod(annotations="sidestep.dev/root: /srv"), "metadata.annotations: add sidestep.dev/netns"),
    (
        pod(annotations="sidestep.dev/pid: 1234"),
        "line 8: Pod shop/orders-1: metadata.annotations.sidestep.dev/pid: Expected `str`, got `int`: put the value in",
    ),
    (pod(annotations='sidestep.dev/pid: "0"'), "metadata.annotations.sidestep.dev/pid: must be a process id"),
    (pod(annotations='sidestep.dev/pid: "-1"'), "must be a process id"),
    (pod(annotations='sidestep.dev/pid: "4194305"'), "must be a process id from 1 to 4194304"),
    (pod(annotations='sidestep.dev/pid: "1/../2"'), "must be a process id"),
    (pod(annotations="sidestep.dev/netns: x"), "metadata.annotations.sidestep.dev/netns: must be an absolute path"),
    (pod(annotations='sidestep.dev/netns: ""'), "metadata.annotations.sidestep.dev/netns: must be an absolute path"),
    (pod(annotations='sidestep.dev/netns: "/a\\0b"'), "sidestep.dev/netns: must be an absolute path"),
    (
        pod(annotations="sidestep.dev/netns: /a\n    sidestep.dev/root: b"),
        "line 9: Pod shop/orders-1: metadata.annotations.sidestep.dev/root: must be an absolute path",
    ),
    (pod(annotations="sidestep.dev/netns: /a\n    x: true"), "metadata.annotations.x: Expected `str`, got `bool`"),
    (pod(labels="{app: 1}"), "line 6: Pod shop/orders-1: metadata.labels.app: Expected `str`, got `int`"),
    (pod(spec="status: {podIP: 10.1.1}\n"), "line 13: Pod shop/orders-1: status.podIP: not an IP address"),
    (pod(spec="status: {podIPs: [{ip: 1.2.3.4}, {ip: x}]}\n"), "status.podIPs[1].ip: not an IP address"),
    (pod(spec="  hostNetwork: maybe\n"), "spec.hostNetwork: Expected `bool | null`, got `str`"),
    (
        workload("Deployment", "x", selector='{matchExpressions: [{key: a, operator: "x - at `$.y\\n\\e"}]}'),
        "Deployment shop/x: ",
    ),
    (
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80, targetPort: 70000}]}\n",
        "line 4: Service default/a: spec.ports[0].targetPort: must be a port from 1 to 65535",
    ),
    (
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80, targetPort: []}]}\n",
        "Service default/a: spec.ports[0].targetPort: Expected `int | str | null`, got `array`",
    ),
    (
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {selector: {app: 1}}\n",
        "Service default/a: spec.selector.app: Expected `str`, got `int`",
    ),
    (
        "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata:\n  tls.crt: YQ==\n  tls.key: '!!hush!!'\n",
        "line 6: Secret default/a: data.tls.key: not base64 (plain text belongs in stringData)",
    ),
    ("apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata: {k: YQ}\n", "data.k: not base64"),
    ("apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata: {k: 'YQ== '}\n", "data.k: not base64"),
    ("apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata: {k: é}\n", "data.k: not base64"),
    ("apiVersion: v1\nkind: Secret\nmetadata: {name: a}\nstringData: {k: 1}\n", "stringData.k: Expected `str`"),
    ("apiVersion: v1\nkind: Secret\nmetadata: {name: a}\nstringData: {a/b: x}\n", "data: 'a/b' is not a key"),
    (
        workload("Deployment", "x", selector="{matchExpressions: [{key: a, operator: Like}]}"),
        "Deployment shop/x: spec.selector.matchExpressions[0].operator: Invalid enum value 'Like'",
    ),
    (
        workload("Deployment", "x", selector="{matchLabels: {a: 1}}"),
        "Deployment shop/x: spec.selector.matchLabels.a: Expected `str`, got `int`",
    ),
    ("apiVersion: v1\nkind: Namespace\nmetadata: {name: a.b}\n", "Namespace a.b: metadata.name: 'a.b' is not a"),
    ("apiVersion: v1\nkind: Node\nmetadata: {name: n, annotations: {a: []}}\n", "Node n: metadata.annotations.a: "),
    ("just text\n", "0.yaml, document 1, line 1: not a Kubernetes object"),
    ("- a\n- b\n", "not a Kubernetes object"),
    ("kind: Pod\n", "apiVersion: is missing or not a text"),
    ("apiVersion: v1\nkind: 3\n", "line 2: kind: is missing or not a text"),
    ("apiVersion: v1\nkind: List\nitems: 3\n", "List: items: must be a list of objects"),
    ("apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: List, items: []}]\n", "none of them a List"),
    ("apiVersion: v1\nkind: List\nitems: [3]\n", "items[0]: not a Kubernetes object"),
    ("a: b: c\n", "0.yaml, document 1, line 1: mapping values are not allowed"),
    ("a: [\n", "0.yaml, document 1, line 2: did not find expected"),
    ("a: !!python/object/new:os.system x\n", "0.yaml, document 1, line 1: tag "),
    (b"a: 1\nb: \xff\n", "0.yaml, line 2: not UTF-8 text"),
    ("#" * (MAX_TEXT + 1), "0.yaml: larger than 1024 KiB"),
    ("[" * 100_000, "nested more than 64 deep"),
]


@pytest.mark.parametrize(("text", "told"), BAD)
def test_a_bad_document_is_one_precise_line(text, told):
    error = one_error(text)
    assert told in str(error)
    assert str(error).startswith("0.yaml")
    assert str(error).isprintable()
    assert error.condition().type is ConditionType.MANIFEST_INVALID
    assert error.condition().text == str(error)


@pytest.mark.parametrize(("text", "told"), BAD)
def test_a_bad_document_never_stops_the_good_ones(text, told):
    namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: NAME}\n"
    before, after, beside = (namespace.replace("NAME", name) for name in ("before", "after", "beside"))
    whole_file_is_bad = isinstance(text, bytes) or len(text) > MAX_TEXT
    mixed = text if whole_file_is_bad else f"{before}---\n{text}\n---\n{after}"
    inventory, errors = load(mixed, beside)
    assert len(errors) == 1
    assert sorted(inventory.namespaces) == (["beside"] if whole_file_is_bad else ["after", "before", "beside"])


def test_secret_values_are_in_no_error():
    _, errors = load(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata: {k: 'hunter2!'}\nstringData: {x: hunter2}\n",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata: hunter2\n",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\nstringData: {k: [hunter2]}\n",
    )
    assert len(errors) == 3
    assert not any("hunter2" in str(error) for error in errors)


def test_duplicates_name_both_places():
    inventory, errors = load(
        POD, "---\n# x\n---\na: 1\napiVersion: x\nkind: y\n---\n" + POD.replace("/run/netns/orders", "/second")
    )
    (error,) = errors
    assert str(error).startswith(
        "1.yaml, document 2, line 8: Pod shop/orders-1: the same object stands in 0.yaml, document 1"
    )
    assert inventory.pods[PodKey("shop", "orders-1")].location.netns == "/run/netns/orders"


@pytest.mark.parametrize("kind", ["Service", "Secret", "Namespace", "Node", "Deployment"])
def test_duplicates_of_every_kind(kind):
    version = "apps/v1" if kind == "Deployment" else "v1"
    text = f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\nspec: {{}}\n"
    _, (error,) = load(f"{text}---\n{text}")
    assert "stands in 0.yaml, document 1" in str(error)


def test_same_name_in_other_namespaces_and_kinds_is_no_duplicate():
    text = "apiVersion: v1\nkind: Secret\nmetadata: {name: a, namespace: NS}\n"
    service = text.replace("Secret", "Service") + "spec: {}\n"
    assert len(good(text.replace("NS", "x"), text.replace("NS", "y"), service.replace("NS", "x")).secrets) == 2


def test_the_first_is_the_first_by_file_name():
    first = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, annotations: {from: FILE}}\n"
    inventory, _ = read({"z.yaml": first.replace("FILE", "z"), "b.yaml": first.replace("FILE", "b")})
    assert inventory.namespaces["a"] == {"from": "b"}


def test_a_mass_of_errors_is_counted():
    _, errors = load("--- 1\n" * 500, "--- 2\n" * 3)
    assert len(errors) == MAX_ERRORS + 1 + 3
    assert str(errors[MAX_ERRORS]) == f"0.yaml, line {MAX_ERRORS + 1}: {500 - MAX_ERRORS} more errors in this file"


def test_a_mass_of_errors_in_one_document_is_quick():
    text = "apiVersion: v1\nkind: List\nitems:\n" + "- 1\n" * 90_000
    _, errors = load(text)
    assert len(errors) == MAX_ERRORS + 1


def test_numbers_of_files_and_bytes_are_bounded():
    _, (error,) = read({f"{number:05}.yaml": "" for number in range(MAX_FILES + 5)})
    assert error.file == f"{MAX_FILES:05}.yaml"
    assert "are not read" in error.reason
    whole = "#" * MAX_TEXT
    _, (error,) = read({f"{number:05}.yaml": whole for number in range(MAX_TOTAL // MAX_TEXT + 2)})
    assert error.file == f"{MAX_TOTAL // MAX_TEXT:05}.yaml"


def test_selector_of_a_workload_is_kept():
    found = good(workload("Deployment", "x", selector="{matchExpressions: [{key: a, operator: In, values: [b]}]}"))
    selector = found.workloads[WorkloadKey("deployment", "shop", "x")].selector
    assert selector == LabelSelector({}, (LabelRequirement("a", SelectorOperator.IN, frozenset({"b"})),))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 70000) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["metadata", "spec", "name", "namespace", "ports", "containers", "port", "data", "status", "ip"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=25,
)


def test_addresses_of_a_node():
    given = [{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "ExternalIP", "address": "2001:db8::1"}]
    names = [{"type": "Hostname", "address": "n1"}, {"type": "InternalDNS"}]
    document = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "status": {"addresses": given + names}}
    convert = converter("", "Node")
    assert convert(document).addresses == ("10.0.0.1", "2001:db8::1")
    assert convert({**document, "status": None}).addresses == ()
    assert convert({**document, "status": {"addresses": None}}).addresses == ()


_KINDS = [("v1", kind) for kind in ("Pod", "Service", "Secret", "Namespace", "Node", "List")]
_KINDS += [("apps/v1", kind) for kind in ("Deployment", "ReplicaSet")] + [("batch/v1", "Job")]


@given(st.sampled_from(_KINDS), _JSON, _JSON, _JSON)
def test_objects_of_any_shape_end_in_an_error_or_an_object(kind, metadata, spec, more):
    value = {"apiVersion": kind[0], "kind": kind[1], "metadata": metadata, "spec": spec, "status": more, "data": more}
    _, errors = load(json.dumps(value | {"items": more}))
    assert len(errors) <= 3
    assert all(str(error).isprintable() for error in errors)


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_end_in_errors(data):
    _, errors = read({"x.yaml": data})
    assert all(str(error).isprintable() for error in errors)


def test_so_many_ports_of_a_pod_are_known_and_no_more():
    containers = [
        {"name": f"c{each}", "ports": [{"containerPort": 1 + number, "name": f"p{number}"} for number in range(700)]}
        for each in range(20)
    ]
    read = converter("", "Pod")({"metadata": {"name": "many"}, "spec": {"containers": containers}}).pod
    assert len(read.ports) == MAX_PORTS
    assert read.ports[0] == ContainerPort(1, name="p0", container="c0")
