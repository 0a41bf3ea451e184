"""A real inspector beside a pod proxy, about what the pod sends: clear HTTP that leaves as it came or in TLS, and TLS
that is opened, in HTTP/1 and HTTP/2. One pod, whose policy is written anew."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

import pytest
import yaml

from tests.harness.inspection import FILE, policy, rule, view, wait_programmed
from tests.harness.waf import inspector
from tests.harness.waiting import until
from tests.system.test_opened import PLAIN, PORT, READ, READ_H2, WITHIN, ask, opened

pytestmark = pytest.mark.privileged

ATTACK = "/items?id=1%27%20UNION%20SELECT%20password%20FROM%20users--"
FORM = "q=%27+UNION+SELECT+password+FROM+users--"
SQLI = 942100
PATIENT = {"limits": {"verdictTimeout": "10s"}}
WAYS = [
    ("--http1.1", "http", PLAIN),
    ("--http1.1", "https", PORT),
    ("--http2", "https", PORT),
    ("--http1.1", "http", READ),
    ("--http2-prior-knowledge", "http", READ_H2),
]
KILLED = WAYS[1:3]
"""Of the ways those on which the inspector is killed: once for each version of HTTP."""


@pytest.mark.timeout(400)
def test_what_a_pod_sends_is_judged_as_a_whole(tmp_path):
    read = [{"name": "read", "names": ["api.test"], "ports": [READ, READ_H2]}]
    with opened(tmp_path, read, waf=PATIENT, rules=[]) as (scene, group, web, issuer, _):
        document = yaml.safe_load((scene.node.manifests / FILE).read_text())

        def get(way, path, *options):
            version, scheme, port = way
            done = ask(scene, group, issuer, version, *options, scheme=scheme, port=port, path=path)
            assert done.returncode == 0, done.stderr
            return int(done.stdout)

        def alerts(before=0, of="WAF"):
            found = [each for each in scene.node.records()[before:] if each["event_type"] == "alert"]
            return [each for each in found if each["sidestep"]["rule"] == of]

        def change(**fields):
            """Other fields of the policy, once they apply: an alert of another rule says so."""
            name = f"/{'-'.join(map(str, fields.values()))}".lower()
            spec, egress = document["spec"], document["spec"]["egress"]
            spec["mode"] = fields.get("mode", "Enforce")
            egress["failurePolicy"] = fields.get("failing", "Ignore")
            egress["rules"] = [rule(name, name="marker", action="Alert")]
            scene.node.write(FILE, document)
            wait_programmed(scene)
            before = len(scene.node.records())
            until(lambda: get(WAYS[0], name) and alerts(before, "marker"), within=WITHIN, what=scene.conditions)

        def kill(way, outcome):
            """Kill the inspector while a request is judged, until one is counted; what the requests got."""
            victim, codes, pause = 0, [], 0.1
            while not view(scene)[outcome].get("waf_crash"):
                victim = inspector(scene, but=victim)
                os.kill(victim, signal.SIGSTOP)
                thread = threading.Thread(target=lambda: codes.append(get(way, "/a")))
                thread.start()
                thread.join(pause := 2 * pause)
                with contextlib.suppress(ProcessLookupError):  # it has missed the deadline
                    os.kill(victim, signal.SIGKILL)
                thread.join()
                with contextlib.suppress(AssertionError):
                    until(lambda: view(scene)[outcome].get("waf_crash"), within=1, what="one to be counted")
            return codes

        # Enforce and Fail
        for way in WAYS:
            assert get(way, "/items?id=1") == 200, scene.conditions()
            assert get(way, ATTACK) == 403
            assert get(way, "/search", "--data", FORM) == 403
        assert [each["uri"] for each in web.requests()] == ["/items?id=1"] * len(WAYS)
        found = until(lambda: alerts()[2 * len(WAYS) - 1 :] and alerts(), within=WITHIN, what=scene.conditions)
        for each in found:
            assert (each["alert"]["signature_id"], each["alert"]["action"]) == (SQLI, "blocked")
            assert f"shop/orders: CRS {SQLI} " in each["alert"]["signature"]
            assert each["sidestep"]["direction"] == "egress"
            assert each["http"]["hostname"] == "api.test"
            assert (each["src_ip"], each["dest_ip"]) == (scene.space.ip, scene.space.client_ip)
        assert sorted(each["dest_port"] for each in found) == sorted(2 * [port for _, _, port in WAYS])
        assert "UNION" not in str(found)
        [engine] = [each for pod in scene.node.status()["pods"] for each in pod["engines"]]
        assert (engine["kind"], engine["state"], engine["policies"]) == ("inspector", "running", ["shop/orders"])
        [engine] = view(scene)["engines"]
        assert (engine["kind"], engine["pods"]) == ("inspector", 1)
        assert 503 in kill(KILLED[0], "closed")

        # Two more policies; the last one is about none of these requests
        until(lambda: get(WAYS[0], "/items?id=1") == 200, within=WITHIN, what=scene.conditions)
        more = []
        for name, network, threshold in (
            ("beside", f"{scene.space.client_ip}/32", 6),
            ("far", "192.0.2.0/24", 4),
        ):
            waf = {"anomalyThreshold": threshold, "limits": {"verdictTimeout": "10s", "fields": 200 + threshold}}
            destinations = [{"name": name, "networks": [network]}]
            egress = {"destinations": destinations, "failurePolicy": "Fail", "waf": waf}
            more.append(policy(rule("/inward"), name=name, egress=egress))
            scene.node.write(FILE, document, *more)
            wait_programmed(scene, name)
            for way in WAYS:
                assert (get(way, "/items?id=1"), get(way, ATTACK)) == (200, 403), scene.conditions()

        # Ignore
        change(failing="Ignore")
        assert get(WAYS[2], ATTACK) == 403
        assert set(kill(KILLED[1], "bypassed")) == {200}

        # Detect, and requests for hosts that the destination is not about
        change(mode="Detect")
        before = len(scene.node.records())
        for way in WAYS:
            assert get(way, ATTACK) == 200
        assert get(WAYS[3], ATTACK, "-H", "Host: other.test") == 200
        assert get(WAYS[3], ATTACK) == 200
        wanted = sorted([port for _, _, port in WAYS] + [READ])
        until(
            lambda: sorted(each["dest_port"] for each in alerts(before)) == wanted,
            within=WITHIN,
            what=lambda: str(alerts(before)),
        )
        assert {each["sidestep"]["action"] for each in alerts(before)} == {"WouldBlock"}
        assert {each["http"]["hostname"] for each in alerts(before)} == {"api.test"}
