"""`sidestep policy check`: which documents it takes, what it says of the others, and its exit codes."""

import io
import json
import struct

import pytest

from sidestep.cli.main import run
from sidestep.protocols import pcapng
from sidestep.protocols.tcp_synthesis import Conversation, Endpoint
from tests.unit.engine.inspection.inspecting import answer, get

GOOD = """
apiVersion: sidestep.dev/v1alpha1
kind: InspectionPolicy
metadata: {name: orders, namespace: shop}
spec:
  podSelector: {}
  mode: Enforce
  rules:
  - {name: no-admin, action: Block, match: {paths: [{match: Prefix, value: /admin}]}}
  - {name: keys, action: Alert, direction: Response, patterns: [{regex: 'sk_live_[0-9a-z]{24}'}]}
"""
BAD = GOOD.replace("name: orders", "name: bad").replace("value: /admin", "value: admin")
SLOW = GOOD.replace("name: orders", "name: slow").replace("sk_live_[0-9a-z]{24}", "[ab]*a[ab]{400}c")
BROKEN = GOOD.replace("name: orders", "name: broken").replace("sk_live_[0-9a-z]{24}", "(")
OTHER = "{apiVersion: v1, kind: ConfigMap, metadata: {name: other}}"


@pytest.fixture(autouse=True)
def no_progress(monkeypatch):
    """However busy the machine is."""
    monkeypatch.setattr("sidestep.cli.replaying.PROGRESS", 1e9)


def check(tmp_path, capsys, text, *words):
    file = tmp_path / "policies.yaml"
    file.write_text(text)
    code = run(["policy", "check", str(file), *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err


def capture(tmp_path, *targets, cut=0):
    conversation = Conversation(Endpoint("10.0.0.7", 40000), Endpoint("10.0.0.2", 8080))
    packets = conversation.opening()
    for target in targets:
        packets += conversation.data(get(target), from_client=True) + conversation.data(answer(), from_client=False)
    file = tmp_path / "capture.pcapng"
    begin = pcapng.section(application="test") + pcapng.interface(name="eth0", description="")
    written = begin + b"".join(pcapng.packet(0, 10**9, each) for each in packets)
    file.write_bytes(written[: len(written) - cut])
    return file


def test_what_would_be_accepted(tmp_path, capsys):
    code, lines, error = check(tmp_path, capsys, f"{GOOD}---\n{OTHER}\n")
    assert (code, error) == (0, "")
    [line] = lines
    assert line.startswith("InspectionPolicy shop/orders: accepted, 2 rules, mode Enforce, failurePolicy Ignore; ")


def test_what_pods_send(tmp_path, capsys):
    good = f"{GOOD}  egress:\n    rules: [{{name: a, action: Block}}]\n"
    code, [line], _ = check(tmp_path, capsys, good)
    assert code == 0
    assert "accepted, 2 rules, mode" in line
    assert line.endswith("; egress: 1 rule, failurePolicy Ignore")
    code, [line], _ = check(tmp_path, capsys, good, "--output", "json")
    assert json.loads(line)["egress"] == {"destinations": 1, "rules": 1, "failurePolicy": "Ignore"}
    code, [line], _ = check(tmp_path, capsys, good.replace("action: Block}]\n", "action: Drop}]\n"))
    assert code == 1
    assert "spec.egress.rules[0].action" in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BAD, "InspectionPolicy shop/bad: spec.rules[0].match.paths[0].value: "),
        (SLOW, "InspectionPolicy shop/slow: the patterns (regex [ab]*a[ab]{400}c"),
        (BROKEN, "InspectionPolicy shop/broken: spec.rules[1].patterns[0].regex: "),
        (GOOD, "InspectionPolicy shop/orders: the same policy stands in "),
        ("a: [", ""),
    ],
)
def test_what_would_not(tmp_path, capsys, text, said):
    code, lines, error = check(tmp_path, capsys, f"{GOOD}---\n{text}")
    assert (code, error) == (1, "")
    accepted, fault = lines
    assert accepted.startswith("InspectionPolicy shop/orders: accepted")
    assert fault.startswith(f"{tmp_path}/policies.yaml, document 2, line ")
    assert said in fault


def test_as_json(tmp_path, capsys):
    code, lines, _ = check(tmp_path, capsys, f"{GOOD}---\n{BAD}", "--output", "json")
    accepted, fault = map(json.loads, lines)
    assert code == 1
    assert (accepted["event"], accepted["policy"], accepted["rules"]) == ("accepted", "InspectionPolicy shop/orders", 2)
    assert 0 < accepted["cost"] < 10
    assert (fault["event"], fault["document"], fault["field"]) == ("fault", 2, "spec.rules[0].match.paths[0].value")


def test_a_list_from_kubectl_on_standard_input(capsys, monkeypatch):
    item = {
        "apiVersion": "sidestep.dev/v1alpha1",
        "kind": "ClusterInspectionPolicy",
        "metadata": {"name": "base", "uid": "1", "managedFields": [{"manager": "kubectl"}]},
        "spec": {"namespaceSelector": {}, "podSelector": {}, "rules": [{"name": "a", "action": "Log"}]},
        "status": {"conditions": []},
    }
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [item]})
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert run(["policy", "check", "-"]) == 0
    assert capsys.readouterr().out.startswith("ClusterInspectionPolicy base: accepted, 1 rule, ")


def test_a_file_without_policies_is_an_error(tmp_path, capsys):
    code, lines, error = check(tmp_path, capsys, OTHER)
    assert (code, lines) == (1, [])
    assert "policies.yaml: has no InspectionPolicy" in error


@pytest.mark.parametrize("words", [["policy"], ["policy", "check"], ["policy", "check", ""], ["policy", "nothing"]])
def test_wrong_use(words, capsys):
    assert run(words) == 2


def test_a_replay(tmp_path, capsys):
    file = capture(tmp_path, b"/", b"/admin?token=hunter2")
    code, lines, error = check(tmp_path, capsys, GOOD, "--replay", file)
    assert (code, error) == (0, "")
    _, first, second, summary = lines
    assert first.startswith("Pass   ")
    assert first.endswith("GET app.test/  from 10.0.0.7:40000")
    assert second.startswith("Block  ")
    assert second.endswith("from 10.0.0.7:40000  policy shop/orders, rule no-admin")
    assert "token" in second
    assert "hunter2" not in second
    assert summary == "2 requests, 1 connection: Block 1, Pass 1"


def test_a_replay_as_json(tmp_path, capsys):
    file = capture(tmp_path, b"/admin?token=hunter2")
    code, lines, _ = check(tmp_path, capsys, GOOD, "--replay", file, "-o", "json")
    _, request, summary = map(json.loads, lines)
    assert code == 0
    assert (request["event"], request["verdict"], request["client"]) == ("request", "Block", "10.0.0.7:40000")
    [hit] = request["hits"]
    assert (hit["policy"], hit["rule"], hit["action"], hit["wouldBlock"]) == ("shop/orders", "no-admin", "Block", False)
    assert summary["verdicts"] == {"Block": 1, "Alert": 0, "Log": 0, "Pass": 0}
    assert "hunter2" not in "".join(lines)


def test_a_capture_that_ends_early_is_told_as_far_as_it_goes(tmp_path, capsys):
    file = capture(tmp_path, b"/admin", b"/", cut=10)
    code, lines, error = check(tmp_path, capsys, GOOD, "--replay", file)
    assert code == 1
    assert "the file ends inside a block" in error
    assert [line[:5] for line in lines[1:-1]] == ["Block", "Pass "]


@pytest.mark.parametrize("kind", ["missing", "folder", "other"])
def test_a_capture_that_is_none(tmp_path, capsys, kind):
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    if kind == "other":
        path.write_bytes(b"\xd4\xc3\xb2\xa1" + bytes(100))
    code, _, error = check(tmp_path, capsys, GOOD, "--replay", path)
    assert code == 1
    assert error.count("\n") == 1
    assert "editcap" in error if kind == "other" else kind in error


def test_nothing_is_replayed_with_policies_that_would_not_be_accepted(tmp_path, capsys):
    code, lines, _ = check(tmp_path, capsys, BAD, "--replay", capture(tmp_path, b"/"))
    assert (code, len(lines)) == (1, 1)


def test_progress_is_told_where_it_takes_long(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sidestep.cli.replaying.PROGRESS", 0.0)
    code, _, error = check(tmp_path, capsys, GOOD, "--replay", capture(tmp_path, b"/"))
    assert code == 0
    assert "policies.yaml: 1 of 1 policies are checked" in error
    assert "capture.pcapng: 0 MiB are read, " in error


def test_a_time_that_no_calendar_has_is_left_out(tmp_path, capsys):
    file = capture(tmp_path, b"/admin")
    nanoseconds, seconds = (struct.pack("<HHB3x", pcapng.TIMESTAMP_RESOLUTION, 1, power) for power in (9, 0))
    when, far = (struct.pack("<II", time >> 32, time & 0xFFFFFFFF) for time in (10**9, 2**62))
    file.write_bytes(file.read_bytes().replace(nanoseconds, seconds).replace(when, far))
    code, lines, error = check(tmp_path, capsys, GOOD, "--replay", file)
    assert (code, error) == (0, "")
    assert lines[1].startswith("Block  --:--:--  GET ")


OUTWARD = """
apiVersion: sidestep.dev/v1alpha1
kind: InspectionPolicy
metadata: {name: out, namespace: shop}
spec:
  podSelector: {}
  egress:
    destinations: [{name: all}]
    waf: {rulesFrom: {configMapRef: {name: waf-rules, key: custom.conf}}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: waf-rules, namespace: shop}
data: {custom.conf: 'RULE'}
"""
SEC_RULE = 'SecRule ARGS "@contains x" "id:1,phase:2,deny"'


@pytest.mark.parametrize(("rule", "code"), [(SEC_RULE, 0), ("SecRuleScript /bin/sh", 1)])
def test_rules_that_only_the_firewall_of_egress_has_are_checked(tmp_path, capsys, rule, code):
    found, lines, _ = check(tmp_path, capsys, OUTWARD.replace("RULE", rule))
    assert found == code
    assert any("ConfigMap shop/waf-rules, key custom.conf" in line for line in lines) is bool(code)


def test_a_replay_says_that_it_leaves_out_what_pods_send(tmp_path, capsys):
    text = OUTWARD.replace("RULE", SEC_RULE)
    code, lines, _ = check(tmp_path, capsys, text, "--replay", capture(tmp_path, b"/admin"))
    assert code == 0
    assert "shop/out: egress is not replayed: requests are judged as ones that pods receive" in lines
    code, lines, _ = check(tmp_path, capsys, GOOD, "--replay", capture(tmp_path, b"/admin"))
    assert not any("egress" in line for line in lines)
