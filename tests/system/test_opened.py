"""Connections of a pod that are opened, with a whole daemon: Secrets, records, a CA that is replaced."""

from __future__ import annotations

import base64
import contextlib
import subprocess

import pytest

from tests.harness import cgroups, manifests, tshark
from tests.harness.authority import Authority
from tests.harness.inspection import policies, policy, rule, view
from tests.harness.nginx import nginx
from tests.harness.scene import shop, shop_nginx
from tests.harness.waiting import until
from tests.system.test_outbound_sessions import lines, session

pytestmark = pytest.mark.privileged

PORT, PLAIN = 443, 80
READ, READ_H2 = 8080, 8082
"""Clear HTTP that a policy may have read as it is."""
WITHIN = 60.0
CARD = "4111 1111 1111 1111"
CARDS = {"name": "no-cards", "action": "Block", "patterns": [{"builtin": "CardNumber"}]}
SECRETS = "secrets.yaml"


def encoded(**texts):
    return {name.replace("_", "."): base64.b64encode(text).decode() for name, text in texts.items()}


def write_secrets(scene, issuer, roots):
    """The CA with its key, and the authorities of servers."""
    key, _, certificate = issuer.pair.partition(b"-----BEGIN CERTIFICATE")
    pair = encoded(tls_crt=b"-----BEGIN CERTIFICATE" + certificate, tls_key=key)
    scene.node.write(SECRETS, manifests.secret("egress-ca", pair), manifests.secret("roots", encoded(ca_crt=roots.pem)))


@contextlib.contextmanager
def opened(folder, destinations=(), **egress):
    """The shop, whose pod speaks to servers in its client's namespace: in clear HTTP, which is originated, and in TLS,
    which is decrypted. `destinations` are further ones, in the same network, `egress` other fields of the policy."""
    issuer, roots = Authority("Shop egress"), Authority("Roots")
    with (
        cgroups.cgroup() as group,
        shop(folder / "scene", annotations={"sidestep.dev/cgroup": str(group)}) as scene,
        shop_nginx(scene, cgroup=group),
        nginx(
            scene.space.client,
            folder / "web",
            listen=[f"{scene.space.client_ip}:{PORT}"],
            plain=[f"{scene.space.client_ip}:{port}" for port in (PLAIN, READ, f"{READ_H2} http2")],
            certificate=roots.issue("api.test"),
            http2=True,
        ) as web,
    ):
        networks = [f"{scene.space.client_ip}/32"]
        block = {
            "failurePolicy": "Fail",
            "issuer": {"secretRef": {"name": "egress-ca"}},
            "trust": {"secretRef": {"name": "roots"}},
            "destinations": [
                {"name": "clear", "mode": "Originate", "networks": networks, "ports": [PLAIN]},
                {"name": "tls", "mode": "Decrypt", "networks": networks, "ports": [PORT]},
                *({**each, "networks": networks} for each in destinations),
            ],
            "rules": [rule(), CARDS],
            **egress,
        }
        write_secrets(scene, issuer, roots)
        with policies(scene, policy(rule("/inward"), egress=block)):
            yield scene, group, web, issuer, roots


def ask(scene, group, ca, *options, scheme="https", path="/", port=0):
    """What curl in the pod says of a server, by an authority."""
    trusted = scene.folder / "trusted.pem"
    trusted.write_bytes(ca.pem)
    url = f"{scheme}://api.test{f':{port}' if port else ''}{path}"
    port = port or (PORT if scheme == "https" else PLAIN)
    command = [
        "curl", "-sS", "--noproxy", "*", "--max-time", "20", "--cacert", trusted, "-w", "%{http_code}",
        "-o", "/dev/null", "--resolve", f"api.test:{port}:{scene.space.client_ip}", *options, url,
    ]  # fmt: skip
    words = cgroups.inside(group, scene.space.pod.enter(command))
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def test_what_is_opened_and_what_is_told_of_it(tmp_path):
    with opened(tmp_path) as (scene, group, web, issuer, _):
        for scheme in ("http", "https"):
            assert ask(scene, group, issuer, scheme=scheme).stdout == "200", scene.conditions()
            assert ask(scene, group, issuer, "-d", f"card={CARD}", scheme=scheme).stdout == "403"
            assert ask(scene, group, issuer, scheme=scheme, path="/admin/users?token=hidden").stdout == "403"
        assert [(each["uri"], each["tls"], each["sni"]) for each in web.requests()] == [
            ("/", "TLSv1.3", "api.test")
        ] * 2
        until(lambda: view(scene)["hits"].get("blocked") == 4, within=WITHIN, what=lambda: str(view(scene)))

        def told(kind):
            found = [each for each in scene.node.records() if each.get("sidestep", {}).get("direction") == "egress"]
            return [each for each in found if each["event_type"] == kind]

        until(lambda: len(told("flow")) == 6, within=WITHIN, what=lambda: str(told("flow")))
        alerts = told("alert")
        assert sorted(each["dest_port"] for each in alerts) == [PLAIN, PLAIN, PORT, PORT]
        assert {each["sidestep"]["rule"] for each in alerts} == {"no-admin", "no-cards"}
        for each in alerts:
            assert (each["http"]["hostname"], each["sidestep"]["host"]) == ("api.test", "api.test")
            assert each["src_ip"] == scene.space.ip
        assert len(told("tls")) == 3
        for each in told("tls"):
            assert (each["tls"]["version"], each["tls"]["sni"]) == ("TLS 1.3", "api.test")
            assert each["tls"]["issuerdn"] == "CN=Roots", "the server's own certificate"
        text = str(scene.node.records())
        assert CARD not in text
        assert "hidden" not in text


def test_another_ca_is_used_without_a_restart_and_one_that_is_gone_opens_nothing(tmp_path):
    with opened(tmp_path) as (scene, group, _, issuer, roots):
        before = scene.proxy()
        assert ask(scene, group, issuer).stdout == "200"
        newer = Authority("Newer")
        write_secrets(scene, newer, roots)
        until(lambda: ask(scene, group, newer).stdout == "200", within=WITHIN, what=scene.conditions)
        scene.node.write(SECRETS, manifests.secret("roots", encoded(ca_crt=roots.pem)))
        until(lambda: "egress-ca" in scene.conditions(), within=WITHIN, what=scene.conditions)
        assert scene.proxy() == before


def test_sessions_see_what_is_opened(tmp_path):
    """Each request, and packets in clear."""
    with opened(tmp_path) as (scene, group, _, issuer, _), contextlib.ExitStack() as stack:
        out = tmp_path / "out.pcapng"
        begun = "outbound connections. Ctrl-C ends it"
        inspected = stack.enter_context(session(scene, "inspect", "-o", "json", begun=begun))
        flows = stack.enter_context(session(scene, "flows", begun=begun))
        capture = stack.enter_context(
            session(scene, "capture", "--snap", "all", "-w", str(out), begun="Ctrl-C ends it")
        )
        for scheme in ("http", "https"):
            assert ask(scene, group, issuer, scheme=scheme, path="/opened").stdout == "200"

        def told():
            return [each for each in lines(inspected) if each.get("event_type") == "http"]

        until(lambda: len(told()) == 2, within=WITHIN, what=inspected.output)
        for each in told():
            assert (each["http"]["url"], each["http"]["status"]) == ("/opened", 200)
            assert each["sidestep"] == {"inspected": True, "direction": "egress", "host": "api.test"}
        until(lambda: flows.output().count("GET api.test/opened") == 2, within=WITHIN, what=flows.output)
        for field, options in (("http.request.uri", ()), ("http2.headers.path", ("-d", f"tcp.port=={PORT},http2"))):

            def captured(field=field, options=options):
                file = tshark.so_far(out.read_bytes())
                return tshark.rows(file, [field], only=f'{field} == "/opened"', options=options)

            until(captured, within=WITHIN / 4, what=capture.text)
