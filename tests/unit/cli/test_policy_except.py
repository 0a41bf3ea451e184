"""`sidestep policy except` on files of records: what it finds there, prints and refuses."""

import io
import json

import msgspec
import pytest
import yaml

from sidestep.cli import alert_search
from sidestep.cli.cluster_policies import InspectedWorkloads
from sidestep.cli.main import run
from sidestep.config.yaml_documents import load, split
from sidestep.engine.inspection.alert_changes import of_one_exchange
from sidestep.model.errors import RefusedError
from sidestep.protocols import eve
from sidestep.protocols.eve_records import Kubernetes, Origin, Record, Sidestep
from sidestep.protocols.eve_redaction import Redaction

ID = "2c6db743-1"
ORIGIN = Origin(
    flow_id=77, client=("203.0.113.9", 40000), server=("10.0.0.7", 8443), protocol="http",
    kubernetes=Kubernetes("shop", "orders-1"),
)  # fmt: skip
POLICIES = """
apiVersion: sidestep.dev/v1alpha1
kind: InspectionPolicy
metadata: {name: orders, namespace: shop}
spec:
  podSelector: {}
  mode: Enforce
  waf: {excludeRules: [920420]}
  rules:
  - name: no-admin
    action: Block
    match: {paths: [{match: Prefix, value: /admin}]}
    except: {paths: [{match: Equal, value: /admin/health}]}
"""


def alert(rule="no-admin", target=b"/admin/users?page=7", exchange=ID, method=b"GET", **more):
    told = eve.http(method=method, target=target, authority=b"shop", fields=[], redaction=Redaction())
    decided = Sidestep(policy="shop/orders", rule=rule, action="Block", id=exchange, inspected=True, **more)
    made = eve.alert("shop/orders", rule, blocked=True)
    return eve.encode(eve.record(1_700_000_000_000_000_000, ORIGIN, made, transaction=0, http=told, sidestep=decided))


@pytest.fixture
def policies(tmp_path):
    path = tmp_path / "policies.yaml"
    path.write_text(POLICIES)
    return path


@pytest.fixture
def ask(tmp_path, capsys):
    def ask(records, *words, exchange=ID):
        (tmp_path / "eve.json").write_bytes(records)
        code = run(["policy", "except", exchange, "--eve", str(tmp_path / "eve.json"), *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return ask


def test_the_change_is_yaml_with_comments(ask, policies):
    code, out, err = ask(alert(exchange="2c6db743-11") + alert(), policies)
    assert (code, err) == (0, "")
    assert "page=[redacted]: Block shop/orders: no-admin" in out.splitlines()[0]
    assert "# InspectionPolicy shop/orders" in out
    paths = [{"match": "Equal", "value": "/admin/health"}, {"match": "Equal", "value": "/admin/users"}]
    [change] = yaml.safe_load_all(out)
    assert change == {"spec": {"rules": [{"name": "no-admin", "except": {"paths": paths}}]}}


@pytest.mark.parametrize("text", ["1e3", "0o7", "0x1f", "1_000", "7", "1-2", "y", "n", "on", "null", "a-1", "name"])
@pytest.mark.parametrize("method", [b"GET", b"1E3", b"0o7", b"Y", b"NULL", b"-", b"~", b"#", b"!x", b"&", b"*", b"%"])
def test_names_and_methods_that_look_like_numbers_and_booleans_are_texts(ask, text, method):
    """By this repository's reader, which takes a plain `1e3` for a number, and for readers that take `y` for True."""
    code, out, _ = ask(alert(rule=text, method=method))
    assert code == 0
    [change] = [load(each) for each in split(out)][-1:]
    [rule] = change["spec"]["rules"]
    assert (rule["name"], rule["except"]["methods"]) == (text, [method.decode()])
    assert not {"name: y", "name: n", "methods: [Y]"} & {line.strip(" -") for line in out.splitlines()}


@pytest.mark.parametrize("place", ["src_ip", "policy", "rule", "timestamp", "hostname", "url", "http_method", "action"])
@pytest.mark.parametrize(
    "text", ["a\nspec: {mode: Detect}", "\x1b]0;title\x07\u202e", "a\x85spec: 1\u2028---\n...\n", ""]
)
def test_a_hostile_record_prints_nothing_but_comments_and_one_change(ask, place, text):
    record = json.loads(alert())
    for part in (record, record["sidestep"], record["http"]):
        part.update({place: text} if place in part else {})
    for words in ((), ("--by", "source")):
        _, out, err = ask(json.dumps(record, separators=(",", ":")).encode() + b"\n", *words)
        assert err == "" or err.count("\n") == 1
        assert out.replace("\n", "").isprintable()
        changes = [each for each in yaml.safe_load_all(out) if each is not None]
        assert all(set(each) == {"spec"} and set(each["spec"]) == {"rules"} for each in changes)
        assert len(changes) <= 1


@pytest.mark.parametrize("target", [b"/a\\b", b"/a/\xff", b"/" + b"a" * 5000, b"x.test:443"])
def test_a_path_that_is_not_told_as_it_was_sent_is_in_no_exception(ask, target):
    code, out, _ = ask(alert(target=target))
    assert code == 0
    assert "the record does not show the path: the exception is about the client instead" in out
    assert "sources: [203.0.113.9/32]" in out


@pytest.mark.parametrize("source", [None, "", "nobody", "10.0.0.1\n"])
def test_a_record_without_the_clients_address_excepts_nobody(ask, source):
    record = {**json.loads(alert()), "src_ip": source}
    code, out, _ = ask(json.dumps(record, separators=(",", ":")).encode(), "--by", "source")
    assert code == 1
    assert "does not show the client's address" in out


def test_numbers_of_rules_have_bounds(ask):
    code, out, _ = ask(alert("WAF", pattern=f"{'9' * 5000} 942100"))
    assert code == 0
    assert "rules: [942100]" in out


def test_a_record_that_another_program_has_written_anew_is_found(ask):
    code, out, _ = ask(json.dumps(json.loads(alert()), indent=None).encode() + b"\n")
    assert code == 0
    assert "rule no-admin no longer applies" in out


def test_the_line_of_the_refusal_is_an_id_too(ask):
    assert ask(alert(), exchange=f"sidestep: policy shop/orders, id {ID}\n")[0] == 0


def elsewhere(**changed):
    """An alert with the same id: of another pod, connection or policy."""
    record = json.loads(alert())
    for name, value in changed.items():
        part = record["kubernetes"] if name == "pod" else record["sidestep"] if name == "policy" else record
        part[name] = value
    return json.dumps(record).encode() + b"\n"


@pytest.mark.parametrize("changed", [{"pod": "mallory"}, {"flow_id": 78}])
def test_two_exchanges_with_one_id_do_not_answer_for_each_other(ask, changed):
    code, out, err = ask(alert() + elsewhere(**changed))
    assert (code, out) == (1, "")
    assert "2 requests, of shop/" in err
    eve_log = "the records of one of them with --eve"
    assert f"have this id: give the whole line that the client was told or {eve_log}" in err
    whole = f"sidestep: policy shop/orders, id {ID}"
    code, _, err = ask(alert() + elsewhere(**changed), exchange=whole)
    assert code == 1, "nothing tells which is meant"
    assert f"have this id: give {eve_log}" in err
    with pytest.raises(RefusedError) as refused:
        of_one_exchange(
            (msgspec.json.decode(each, type=Record) for each in (alert(), elsewhere(**changed))), "", by_workload=True
        )
    assert ("--workload" in str(refused.value)) is ("pod" in changed), "one of a pod has one workload"
    code, out, _ = ask(elsewhere(policy="shop/other", **changed) + alert() + alert("cards"), exchange=whole)
    assert code == 0
    assert "shop/other" not in out
    assert "rule cards no longer applies" in out
    code, _, err = ask(elsewhere(policy="shop/other", **changed), exchange=whole)
    assert code == 1
    assert f"has no alert {ID} of policy shop/orders" in err


def test_a_workload_is_for_a_cluster(ask):
    code, _, err = ask(alert(), "--workload", "orders")
    assert code == 2
    assert "--workload is for a cluster" in err


def test_each_rule_has_its_change(ask, policies):
    records = alert() + alert("WAF", pattern="942100 949110") + alert()
    code, out, _ = ask(records, policies, "--output", "json")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [each["policy"] for each in found] == ["shop/orders", "shop/orders"]
    [excepted] = found[1]["spec"]["waf"]["exceptions"]
    assert excepted["rules"] == [942100]
    assert excepted["paths"][0]["match"] == "Equal"
    assert {(each["event"], each["alert"]) for each in found} == {("exception", ID)}


def test_without_the_policies_a_note_says_that_they_are_not_known(ask):
    code, out, _ = ask(alert(), "--by", "source")
    assert code == 0
    assert "sources: [203.0.113.9/32]" in out
    assert "is not known" in out


def test_lines_that_are_no_records_are_left_out(ask):
    broken = b'{"sidestep":{"id":"%s"' % ID.encode()
    assert ask(broken[:9] + b"\n" + broken + b"\n\xff" + broken + b"\n" + alert()[:-1])[0] == 0
    assert ask(b"\n".join([broken] * 3))[0] == 1


def test_standard_input(ask, monkeypatch, capsys):
    stdin = io.TextIOWrapper(io.BytesIO(alert()))
    monkeypatch.setattr("sys.stdin", stdin)
    assert run(["policy", "except", ID, "--eve", "-"]) == 0
    assert "/admin/users" in capsys.readouterr().out


def test_an_alert_without_an_exception_ends_with_1(ask):
    code, out, _ = ask(alert("WAF", pattern="over-limit"))
    assert code == 1
    assert "no change" in out
    assert "raise limits.bodyBytes" in out


@pytest.mark.parametrize(
    ("records", "words", "exchange", "code", "told"),
    [
        (alert(), (), "2c6db743-2", 1, "eve.json has no alert 2c6db743-2"),
        (b"", (), ID, 1, f"eve.json has no alert {ID}"),
        (alert(), (), "orders", 2, "'orders' is no id of an alert"),
        (alert(), ("/nowhere",), ID, 1, "FILE '/nowhere'"),
        (alert(), ("--by", "mood"), ID, 2, "'mood'"),
    ],
)
def test_what_is_wrong_is_one_line(ask, records, words, exchange, code, told):
    found, out, err = ask(records, *words, exchange=exchange)
    assert (found, out) == (code, "")
    assert told in err
    assert err.count("\n") == 1


def test_a_file_that_is_none_and_policies_with_errors(ask, policies, tmp_path, capsys):
    assert run(["policy", "except", ID, "--eve", str(tmp_path)]) == 1
    assert "is a folder, not a file" in capsys.readouterr().err
    assert run(["policy", "except", ID, "--eve", "/nowhere"]) == 1
    assert "cannot be read: No such file" in capsys.readouterr().err
    policies.write_text(POLICIES.replace("no-admin", "No Admin"))
    code, _, err = ask(alert(), policies)
    assert code == 1
    assert "spec.rules[0].name" in err


def test_policies_are_for_records_only(policies, capsys):
    assert run(["policy", "except", ID, str(policies), "--socket", "/nowhere"]) == 2
    assert "FILE is for --eve" in capsys.readouterr().err


def test_a_daemon_that_does_not_answer(capsys):
    assert run(["policy", "except", ID, "--socket", "/nowhere/node.sock"]) == 1
    assert "no node daemon answers on /nowhere/node.sock" in capsys.readouterr().err


def test_a_cluster_that_cannot_be_reached(tmp_path, capsys):
    config = tmp_path / "config"
    cluster = {"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    user = {"name": "u", "user": {"token": "t"}}
    config.write_text(
        yaml.safe_dump({"clusters": [cluster], "contexts": [context], "users": [user], "current-context": "c"})
    )
    assert run(["policy", "except", ID, "--by", "port", "--kubeconfig", str(config)]) == 1
    assert "https://127.0.0.1:1 cannot be reached" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("workload", "expected"),
    [
        ("", [("deployment/orders", "8443", False), ("job/nightly", "", True)]),
        ("orders", [("deployment/orders", "8443", False)]),
        ("job/nightly", [("job/nightly", "", True)]),
    ],
)
def test_each_workload_with_policies_is_asked_about_one_port(workload, expected):
    known = InspectedWorkloads({"deployment/orders": "8443", "job/nightly": ""}, is_cut=False)
    specs = alert_search.specs_of(known, ID, namespace="shop", workload=workload)
    assert [(each.workload, each.port, each.egress) for each in specs] == expected
    assert {(each.namespace, each.kind, each.records, each.alert) for each in specs} == {
        ("shop", "wiretap", "alerts", ID)
    }


def test_too_many_workloads_are_not_asked_at_once():
    known = InspectedWorkloads({f"deployment/d{number}": "80" for number in range(alert_search.MOST + 1)}, is_cut=False)
    with pytest.raises(RefusedError, match="choose one with --workload"):
        alert_search.specs_of(known, ID, namespace="shop", workload="")
    assert len(alert_search.specs_of(known, ID, namespace="shop", workload="d7")) == 1


def test_without_policies_nobody_is_asked():
    with pytest.raises(RefusedError, match="no inspection policy applies to a workload of namespace shop"):
        alert_search.specs_of(InspectedWorkloads({}, is_cut=False), ID, namespace="shop", workload="")
