"""The alerts of deploy/monitoring, judged by promtool: each fires for what it is about, and for nothing less.

PROMTOOL names the program, which `make release-check` takes out of Debian's package of Prometheus.
"""

import functools
import json
import os
import subprocess

import pytest
import yaml

from tests.unit.deploy.test_manifest import DEPLOY
from tests.unit.deploy.test_monitoring import ALERTS, PANELS, RULES

PROMTOOL = os.environ.get("PROMTOOL", DEPLOY.parent / "build" / "promtool" / "usr" / "bin" / "promtool")
MINUTES = 40
POD = 'namespace="shop",pod="orders-1"'
LOST = "sidestep_inspection_uninspected_seconds_total"
LOOP = "sidestep_loop_stall_seconds"


def condition(kind):
    return f'sidestep_conditions{{node="n1",type="{kind}"}}'


def stalls(count):
    """Ten turns a minute, `count` of which last longer than 0.1 s."""
    return {
        f'{LOOP}_bucket{{node="n1",le="0.1"}}': f"0+{10 - count}x{MINUTES}",
        f'{LOOP}_count{{node="n1"}}': f"0+10x{MINUTES}",
    }


def steady(value):
    return f"{value}x{MINUTES}"


def growing(step):
    return f"0+{step}x{MINUTES}"


NODE = {"node": "n1"}
OF_POD = {"namespace": "shop", "pod": "orders-1"}
CASES = {
    "SidestepDaemonDown": (
        {'up{job="sidestep-node",node="n1"}': steady(0)},
        {'up{job="sidestep-node",node="n1"}': steady(1), 'up{job="other",node="n1"}': steady(0)},
        {"job": "sidestep-node", **NODE},
        "Sidestep's daemon on node n1 does not answer",
    ),
    "SidestepDaemonStalls": (stalls(5), stalls(1), NODE, "Sidestep's daemon on node n1 stalls"),
    "SidestepSteeringFails": (
        {condition("ProxyNotReady"): steady(1)},
        {condition("ProxyNotReady"): f"1 1 1 0x{MINUTES}", condition("NoApp"): steady(1)},
        {"type": "ProxyNotReady", **NODE},
        "Pods of node n1 cannot be steered (ProxyNotReady)",
    ),
    "SidestepOverloaded": (
        {condition("Overloaded"): steady(2)},
        {condition("Overloaded"): steady(0)},
        NODE,
        "Connections pass by overloaded pod proxies of node n1",
    ),
    "SidestepInvalidSettings": (
        {condition("CertificateInvalid"): steady(1)},
        {condition("ProbesPassed"): steady(1)},
        {"type": "CertificateInvalid", **NODE},
        "Settings of pods of node n1 are not followed (CertificateInvalid)",
    ),
    "SidestepClosed": (
        {f'{LOST}{{{POD},outcome="closed",reason="no-proxy"}}': growing(60)},
        {
            f'{LOST}{{{POD},outcome="closed",reason="no-proxy"}}': f"0 5 5x{MINUTES}",
            f'{LOST}{{{POD},outcome="open",reason="no-proxy"}}': growing(60),
        },
        {"reason": "no-proxy", **OF_POD},
        "Clients of shop/orders-1 are refused: no-proxy",
    ),
    "SidestepUninspected": (
        {f'{LOST}{{{POD},outcome="open",reason="overloaded"}}': growing(30)},
        {f'{LOST}{{{POD},outcome="closed",reason="overloaded"}}': growing(30)},
        {"reason": "overloaded", **OF_POD},
        "Connections of shop/orders-1 are not inspected: overloaded",
    ),
    "SidestepBypassed": (
        {f'sidestep_inspection_bypassed_total{{{POD},direction="ingress",reason="not_http"}}': growing(1)},
        {f'sidestep_inspection_bypassed_total{{{POD},direction="ingress",reason="not_http"}}': steady(7)},
        {"reason": "not_http", **OF_POD},
        "Requests of shop/orders-1 pass uninspected: not_http",
    ),
    "SidestepPolicyInvalid": (
        {condition("PolicyInvalid"): steady(1)},
        {condition("PolicyEnforced"): steady(1)},
        {"type": "PolicyInvalid", **NODE},
        "A policy is not in force on node n1 (PolicyInvalid)",
    ),
    "SidestepEngineDown": (
        {f'sidestep_engine_up{{{POD},engine="suricata",node="n1"}}': steady(0)},
        {f'sidestep_engine_up{{{POD},engine="suricata",node="n1"}}': steady(1)},
        {"engine": "suricata", **NODE, **OF_POD},
        "suricata of shop/orders-1 does not run",
    ),
    "SidestepEngineRestarts": (
        {f'sidestep_engine_restarts_total{{{POD},engine="suricata",node="n1"}}': growing(1)},
        {f'sidestep_engine_restarts_total{{{POD},engine="suricata",node="n1"}}': f"0 1 2 2x{MINUTES}"},
        {"engine": "suricata", **NODE, **OF_POD},
        "suricata of shop/orders-1 ends again and again",
    ),
    "SidestepRecordsLost": (
        {condition("RecordsNotWritten"): steady(1)},
        {condition("RecordsNotWritten"): steady(0)},
        NODE,
        "Records of inspection are lost on node n1",
    ),
}


def promtool(folder, *words):
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": RULES["spec"]["groups"]}))
    return subprocess.run([PROMTOOL, *words], cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def case(name, series, expected):
    return {
        "interval": "1m",
        "input_series": [{"series": each, "values": values} for each, values in series.items()],
        "alert_rule_test": [{"eval_time": f"{MINUTES - 2}m", "alertname": name, "exp_alerts": expected}],
    }


def cases(name):
    [rule] = [rule for rule in ALERTS if rule["alert"] == name]
    fires, quiet, labels, summary = CASES[name]
    told = {
        "exp_labels": {"severity": rule["labels"]["severity"], **labels},
        "exp_annotations": {"summary": summary, "description": rule["annotations"]["description"]},
    }
    return [case(name, fires, [told]), case(name, quiet, [])]


def test_promtool_takes_the_rules(tmp_path):
    done = promtool(tmp_path, "check", "rules", "rules.yaml")
    assert done.returncode == 0, done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout


def test_every_alert_is_tried():
    assert sorted(CASES) == sorted(rule["alert"] for rule in ALERTS)


@pytest.mark.parametrize("name", CASES)
def test_an_alert_fires_for_what_it_is_about(tmp_path, name):
    trial = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": cases(name)}
    (tmp_path / "test.yaml").write_text(json.dumps(trial))
    done = promtool(tmp_path, "test", "rules", "test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_understands_every_query_of_the_dashboard(tmp_path):
    chosen = {"$__rate_interval": "5m", "$namespace": ".*", "$pod": ".*", "$node": ".*"}
    rules = []
    for number, query in enumerate(target["expr"] for panel in PANELS for target in panel["targets"]):
        said = functools.reduce(lambda text, pair: text.replace(*pair), chosen.items(), query)
        rules.append({"record": f"panel:query:{number}", "expr": said})
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = promtool(tmp_path, "check", "rules", "panels.yaml")
    assert done.returncode == 0, done.stderr
    assert f"{len(rules)} rules found" in done.stdout
