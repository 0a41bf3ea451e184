"""Annotations that cannot be used, all at once on one pod: each is one condition, and none disables a good port."""

from __future__ import annotations

import base64
import os

import pytest

from tests.harness import manifests, scene
from tests.harness.authority import Authority
from tests.harness.cli import sidestep
from tests.harness.waiting import until

T, S = "telepresence.io", "sidestep.dev"
HOST = "orders.shop.test"
NO_DURATION = "not a duration: write number and unit, like 10s, 500ms or 1m30s"
PORTS = [*range(9001, 9030), scene.TLS_PORT]

ANNOTATIONS = [
    # (annotation, value, what the condition says about it)
    (f"{T}/downstream-tls-path", "/tls", "has no port: write telepresence.io/downstream-tls-path.PORT"),
    (f"{T}/downstream-tls-secret", "tls", "has no port"),
    (f"{T}/upstream-tls-path", "/tls", "has no port"),
    (f"{S}/downstream-client-auth", "require", "has no port"),
    (f"{T}/downstream-tls-path.7777", "/tls", "the pod has no container port 7777"),
    (f"{T}/upstream-insecure-skip-verify.0", "enabled", "not a port number from 1 to 65535"),
    (f"{T}/downstream-tls-secret.65536", "tls", "not a port number from 1 to 65535"),
    (f"{T}/downstream-tls-path.https", "/tls", "the port is written as a number"),
    (f"{T}/downstream-tls-pth.9001", "/tls", "did you mean telepresence.io/downstream-tls-path.PORT?"),
    (f"{S}/downstream-client-auht.9001", "require", "did you mean sidestep.dev/downstream-client-auth.PORT?"),
    (f"{T}/downstream-tls-path.5353", "/tls", "for UDP only"),
    (f"{T}/downstream-tls-path.9002", "etc/tls", "must be an absolute path"),
    (f"{T}/downstream-tls-path.9003", "/etc/../tls", "must not contain '..'"),
    (f"{T}/downstream-tls-path.9004", "", "is empty"),
    (f"{T}/upstream-tls-path.9005", "/a\tb", "characters that do not belong in a path"),
    (f"{T}/downstream-tls-secret.9006", "other/tls", "without any '/'"),
    (f"{T}/downstream-tls-secret.9007", "Upper", "is not the name of a Secret"),
    (f"{T}/upstream-insecure-skip-verify.9008", "true", "must be enabled or disabled"),
    (f"{T}/upstream-insecure-skip-verify.9009", "Enabled", "must be enabled or disabled"),
    (f"{S}/forward-client-cert.9010", "yes", "must be enabled or disabled"),
    (f"{S}/downstream-client-auth.9011", "required", "must be one of auto, require, request, none"),
    (f"{T}/upstream-probe-timeout.9012", "10", NO_DURATION),
    (
        f"{T}/upstream-probe-timeout.9013",
        "ten seconds",
        NO_DURATION,
    ),
    (f"{T}/upstream-probe-timeout.9014", "-1s", NO_DURATION),
    (f"{T}/upstream-probe-timeout.9015", "1h2", NO_DURATION),
    (f"{T}/upstream-probe-timeout.9016", "100h", "must be between 10ms and 10m"),
]
"""AnnotationInvalid: what is wrong can be read from the annotation itself."""

SOURCES = [
    (f"{T}/downstream-tls-secret.9017", "absent", "there is no Secret shop/absent"),
    (f"{T}/downstream-tls-secret.9018", "keyless", "holds tls.crt but no tls.key"),
    (f"{T}/downstream-tls-secret.9019", "mismatch", "the private key does not belong to the certificate"),
    (f"{T}/downstream-tls-secret.9020", "expired", "the certificate expired on"),
    (f"{T}/downstream-tls-secret.9021", "nonsense", "is not valid PEM"),
    (f"{T}/downstream-tls-secret.9022", "empty", "holds neither tls.crt nor cert-chain.pem"),
    (f"{T}/upstream-tls-secret.9023", "mismatch", "the private key does not belong to the certificate"),
    (f"{T}/downstream-tls-path.9024", "/none", "the folder holds neither tls.crt nor cert-chain.pem"),
    (f"{T}/downstream-tls-path.9025", "/keyless", "the folder holds tls.crt but no tls.key"),
    (f"{T}/downstream-tls-path.9026", "/pipe", "is not a regular file"),
    (f"{T}/downstream-tls-path.9027", "/large", "is larger than 1048576 bytes"),
    (f"{T}/downstream-tls-path.9028", "/expired", "the certificate expired on"),
]
"""CertificateInvalid: what is wrong is found when the source is read."""


def secrets(authority):
    good, other = authority.issue(HOST), Authority("Other").issue(HOST)
    made = {
        "keyless": {"tls.crt": good.chain},
        "mismatch": {"tls.crt": good.chain, "tls.key": other.key},
        "expired": {"tls.crt": (old := authority.issue(HOST, expired=True)).chain, "tls.key": old.key},
        "nonsense": {"tls.crt": b"nonsense", "tls.key": good.key},
        "empty": {"other": b"1"},
    }
    for name, data in made.items():
        yield manifests.secret(name, {key: base64.b64encode(value).decode() for key, value in data.items()})


def folders(root, authority):
    good = authority.issue(HOST)
    for name in ("keyless", "pipe", "large"):
        (root / name).mkdir(parents=True)
    (root / "keyless/tls.crt").write_bytes(good.chain)
    os.mkfifo(root / "pipe/tls.crt")
    (root / "large/tls.crt").write_bytes(b"x" * (1 << 20) + b"x")
    authority.issue(HOST, expired=True).write(root / "expired")


@pytest.fixture(scope="module")
def conditions(tmp_path_factory):
    """Every line of `sidestep status` about a pod that has all of it, and a good port beside."""
    folder = tmp_path_factory.mktemp("annotations")
    notes = {name: value for name, value, _ in [*ANNOTATIONS, *SOURCES]}
    notes["sidestep.dev/root"] = str(folder / "root")
    notes[f"{T}/downstream-tls-path.9029"] = "/tls"
    notes[f"{T}/downstream-tls-secret.9029"] = "orders-tls"
    with scene.shop(folder, annotations=notes, start=False) as shop, scene.shop_nginx(shop):
        folders(folder / "root", shop.authority)
        documents = scene.documents(shop.space, shop.own_certificate, annotations=notes)
        documents[2]["spec"]["containers"][0]["ports"] = [
            *(manifests.container_port(port, "https" if port == scene.TLS_PORT else "") for port in PORTS),
            manifests.container_port(5353, "dns", "UDP"),
        ]
        shop.node.write("orders.yaml", *documents, *secrets(shop.authority))
        shop.node.start()
        with shop.intercept(), shop.intercept(port=9023, pods=None):
            # Nothing is read before somebody wants the port; then he is told what is wrong.
            before = sidestep("status", socket=shop.node.socket).stdout
            assert not any(annotation in before for annotation, _, _ in SOURCES if "upstream" not in annotation)
            assert "not read yet" in sidestep("list", socket=shop.node.socket).stdout
            for annotation, _, reason in SOURCES:
                if "upstream" not in annotation:
                    port = annotation.rpartition(".")[2]
                    words = ["intercept", "orders", "-n", "shop", "--port", f"1:{port}", "--http-header", "x-dev=ada"]
                    told = sidestep(*words, socket=shop.node.socket)
                    assert told.code == 1, told
                    assert reason in told.stderr
                    assert annotation in told.stderr
            # A good port beside them works as ever.
            assert shop.get("/", scene.DEV).served_by == "handler"
            assert shop.get("/").served_by == "app"
            status = until(
                lambda: all_told(sidestep("status", socket=shop.node.socket).stdout),
                within=10,
                what=lambda: sidestep("status", socket=shop.node.socket).stdout,
                every=0.1,
            )
        yield status.splitlines()


def all_told(text):
    """The text if it has every annotation; they are read side by side."""
    return all(annotation in text for annotation, _, _ in SOURCES) and text


def the_line(lines, annotation, value, kind):
    begins = f"{kind}: pod shop/orders-1"
    found = [line for line in lines if line.startswith(begins) and f"annotation {annotation} {value!r}" in line]
    assert len(found) == 1, (annotation, value, [line for line in lines if annotation in line])
    return found[0]


def test_the_table_is_large_enough():
    assert len(ANNOTATIONS) + len(SOURCES) >= 25


@pytest.mark.parametrize(("annotation", "value", "reason"), ANNOTATIONS)
def test_a_bad_annotation_is_one_condition(conditions, annotation, value, reason):
    line = the_line(conditions, annotation, value, "AnnotationInvalid")
    assert reason in line
    assert "pod shop/orders-1" in line


@pytest.mark.parametrize(("annotation", "value", "reason"), SOURCES)
def test_a_bad_certificate_is_one_condition(conditions, annotation, value, reason):
    line = the_line(conditions, annotation, value, "CertificateInvalid")
    assert reason in line
    assert f"port {annotation.rpartition('.')[2]}" in line


def test_path_and_secret_for_one_port_contradict_each_other(conditions):
    line = the_line(conditions, f"{T}/downstream-tls-path.9029", "/tls", "AnnotationInvalid")
    assert f"{T}/downstream-tls-secret.9029 is set as well: keep one of the two" in line
