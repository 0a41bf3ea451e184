"""`sidestep policy check --replay` with a firewall: what dumpcap captured of curl, judged by a real engine."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
from pathlib import Path

import msgspec
import pytest

from sidestep.cli.firewall_child import FirewallChild
from sidestep.engine.inspection.asking import Reason, Subject
from sidestep.model.errors import ConfigurationError
from sidestep.model.waf import Waf
from sidestep.policy.seclang import CustomRules
from sidestep.policy.waf import PolicyWaf, join
from sidestep.protocols.waf_messages import Outcome, Verdict
from tests.harness.cli import sidestep
from tests.harness.http2 import any_app
from tests.harness.inspectors import FIELDS
from tests.harness.peers import Server
from tests.harness.processes import children
from tests.harness.waiting import until
from tests.integration.protocols.test_replay import captured

ATTACK = "id=1%27%20UNION%20SELECT%20password%20FROM%20users--"
FORM = "q=%27+UNION+SELECT+password+FROM+users--"
POLICY = """
apiVersion: sidestep.dev/v1alpha1
kind: InspectionPolicy
metadata: {name: orders, namespace: shop}
spec:
  podSelector: {matchLabels: {app: orders}}
  mode: %s
  waf: {limits: {fields: 20}%s}
  rules:
  - {name: no-admin, action: Alert, match: {paths: [{match: Prefix, value: /admin}]}}
"""
CONFIG_MAP = """
---
apiVersion: v1
kind: ConfigMap
metadata: {name: waf-rules, namespace: shop}
data:
  custom.conf: |
    SecRule ARGS:color "@streq mauve" "id:7,phase:2,deny,msg:'no mauve'"
"""
REFERENCE = ", rulesFrom: {configMapRef: {name: waf-rules, key: custom.conf}}"


def curl(port, target, *options):
    url, resolve = f"http://shop.test:{port}{target}", f"shop.test:{port}:127.0.0.1"
    subprocess.run(["curl", "-s", "-o", "/dev/null", "--resolve", resolve, *options, url], timeout=60, check=True)


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("capture")
    file, zipped = folder / "curl.pcapng", folder / "body.gz"
    zipped.write_bytes(gzip.compress(FORM.encode()))
    with Server(any_app) as server, captured("lo", server.port, file):
        for version in ("--http1.1", "--http2-prior-knowledge"):
            curl(server.port, "/plain?id=1", version)
            curl(server.port, f"/sql?{ATTACK}", version)
            curl(server.port, "/form", version, "--data", "q=shoes")
            curl(server.port, "/form-sql", version, "--data", FORM)
            curl(server.port, "/zipped", version, "--data-binary", f"@{zipped}", "-H", "Content-Encoding: gzip")
            curl(server.port, "/admin?color=mauve", version)
            curl(server.port, "/many?" + "&".join(f"a{number}=1" for number in range(30)), version)
            curl(server.port, "/grpc", version, "--data", FORM, "-H", "Content-Type: application/grpc")
        curl(server.port, "/chunked", "--data", FORM, "-H", "Transfer-Encoding: chunked")

        def last_seen():
            # The kernel hands packets over in blocks: later ones push out those that are waited for.
            curl(server.port, "/later")
            return file.exists() and file.read_bytes().count(b"GET /later") > 1

        until(last_seen, within=30, every=0.2, what="the capture to hold what was said")
    return file


def replayed(capture, policy, *words):
    result = sidestep("policy", "check", policy, "--replay", capture, "--output", "json", *words, within=120)
    assert result.code == 0, result
    said = [json.loads(line) for line in result.stdout.splitlines()]
    assert not [each for each in said if each["event"] == "not-inspected"]
    return {
        (each["protocol"], each["target"].partition("?")[0].removeprefix("/")): each
        for each in said
        if each["event"] == "request"
    }, result.stdout


def rules(request):
    return [each["rule"] for each in request["hits"]]


@pytest.mark.parametrize("protocol", ["http/1", "h2"])
def test_what_the_firewall_would_say_of_each_request(capture, tmp_path, protocol):
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY % ("Enforce", ""))
    requests, text = replayed(capture, policy)
    found = {name: (each["verdict"], rules(each)) for (spoken, name), each in requests.items() if spoken == protocol}
    assert found.pop("chunked", None) == (("Block", ["WAF"]) if protocol == "http/1" else None)
    found.pop("later", None)
    assert found == {
        "plain": ("Pass", []), "sql": ("Block", ["WAF"]), "form": ("Pass", []), "form-sql": ("Block", ["WAF"]),
        "zipped": ("Block", ["WAF"]), "admin": ("Alert", ["no-admin"]), "many": ("Block", ["WAF"]),
        # Messages of gRPC are not judged, and over HTTP/1 it is no call.
        "grpc": ("Block", ["WAF"]) if protocol == "http/1" else ("Pass", []),
    }  # fmt: skip
    [hit] = requests[protocol, "sql"]["hits"]
    assert hit["found"].startswith("CRS 942100 SQL Injection Attack Detected via libinjection")
    assert requests[protocol, "many"]["hits"][0]["found"] == "the request exceeds a limit of the firewall"
    assert "UNION" not in text


def test_custom_rules_of_the_files_and_a_policy_that_detects(capture, tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY % ("Detect", REFERENCE) + CONFIG_MAP)
    requests, _ = replayed(capture, policy)
    assert rules(requests["h2", "admin"]) == ["no-admin", "WAF"]
    assert all(each["wouldBlock"] for each in requests["h2", "sql"]["hits"])
    text = sidestep("policy", "check", policy, "--replay", capture, within=120).stdout
    assert "would block: policy shop/orders, rule WAF (CRS 942100 SQL Injection" in text


def test_custom_rules_that_are_wrong_or_absent(capture, tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY % ("Detect", REFERENCE))
    done = sidestep("policy", "check", policy)
    assert done.code == 0
    assert "ConfigMap shop/waf-rules, key custom.conf is not in the files" in done.stdout
    policy.write_text(POLICY % ("Detect", REFERENCE) + CONFIG_MAP.replace("deny", "exec:/bin/sh"))
    done = sidestep("policy", "check", policy, "--replay", capture)
    assert done.code == 1
    assert "line 1: the action exec:/bin/sh is not allowed" in done.stdout
    policy.write_text(POLICY % ("Detect", REFERENCE) + CONFIG_MAP.replace("@streq mauve", "@rx ("))
    done = sidestep("policy", "check", policy, "--replay", capture, within=60)
    assert done.code == 1
    assert "waf: the regex '(' is none" in done.error


def test_without_a_core_rule_set(capture, tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY % ("Detect", ""))
    assert sidestep("policy", "check", policy).code == 0, "without a capture nothing is needed"
    done = sidestep("policy", "check", policy, "--replay", capture, "--crs", tmp_path, within=60)
    assert done.code == 1
    assert "there is no Core Rule Set; it needs libmodsecurity3 and modsecurity-crs" in done.error


# --- the child ------------------------------------------------------------------------------------------------------


def firewall():
    settings = join([PolicyWaf("shop/orders", True, False, Waf(), CustomRules())])
    return FirewallChild(settings, None)


def subject(child, target="/items?id=1"):
    ends = ("192.0.2.1", 4000), ("10.0.0.7", 80)
    return Subject(child.settings.profile, b"GET", target.encode(), "1.1", FIELDS, *ends)


def pid_of(child):
    [pid] = [each for each in children(os.getpid()) if b"sidestep.inspector.alone" in cmdline(each)]
    assert child.names
    return pid


def cmdline(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_the_child_is_locked_and_gone_with_the_command():
    with firewall() as child:
        assert child.ask(subject(child)) == Verdict(1, Outcome.PASS)
        told = child.ask(subject(child, f"/?{ATTACK}"))
        assert isinstance(told, Verdict)
        assert told.outcome is Outcome.BLOCK
        assert child.version.startswith("ModSecurity v3.0.")
        pid = pid_of(child)
        status = Path(f"/proc/{pid}/status").read_text()
        assert "Seccomp:\t2\n" in status
        assert "CapEff:\t0000000000000000\n" in status
        assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
    assert not cmdline(pid)


def test_one_that_ends_costs_a_request_its_verdict_and_the_next_is_judged():
    with firewall() as child:
        assert child.ask(subject(child)) == Verdict(1, Outcome.PASS)
        os.kill(pid_of(child), signal.SIGSTOP)
        os.kill(pid_of(child), signal.SIGKILL)
        assert child.ask(subject(child)) is Reason.CRASH
        answer = child.ask(subject(child, f"/?{ATTACK}"))
        assert isinstance(answer, Verdict)
        assert answer.outcome is Outcome.BLOCK


def test_one_that_hangs_is_replaced(monkeypatch):
    monkeypatch.setattr("sidestep.cli.firewall_child.PATIENCE", 0.001)  # of requests; taking the profile lasts longer
    with firewall() as child:
        hanging = pid_of(child)
        os.kill(hanging, signal.SIGSTOP)
        assert isinstance(child.ask(subject(child)), Reason)
        monkeypatch.setattr("sidestep.cli.firewall_child.PATIENCE", 60.0)
        assert isinstance(child.ask(subject(child)), Verdict)
        assert pid_of(child) != hanging


def test_a_machine_without_the_engine(monkeypatch):
    """The library's name is changed where the child is made: there is no such file."""
    code = (
        "import sys, sidestep.inspector.modsecurity as m; m.LIBRARY = 'libnone.so.3'; "
        "from sidestep.inspector.alone import main; sys.exit(main(sys.argv[1:]))"
    )
    real = subprocess.Popen

    def without(command, **options):
        return real([command[0], "-c", code, *command[4:]], **options)

    monkeypatch.setattr("sidestep.cli.firewall_child.subprocess.Popen", without)
    with pytest.raises(ConfigurationError, match=r"libnone\.so\.3 cannot be loaded") as told, firewall():
        pass
    assert "it needs libmodsecurity3 and modsecurity-crs (Debian), or leave out --replay" in str(told.value)


def test_a_profile_that_is_not_possible():
    child = firewall()
    bad = msgspec.structs.replace(child.settings.profile, regexes=("(",))
    child.settings = msgspec.structs.replace(child.settings, profile=bad)
    with pytest.raises(ConfigurationError, match="is none"), child:
        pass
