"""A real inspector beside a real pod proxy, from the policy to the 403: what it blocks, and what failures lead to."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from sidestep.node.inspectors.inspectors import GROUP_MEMORY
from sidestep.node.proxies.memory_cgroups import MemoryCgroups
from tests.harness import memory, scene
from tests.harness.core_rule_set_4 import core_rule_set_4
from tests.harness.inspection import is_refusal, policies, policy, rule
from tests.harness.node import node
from tests.harness.processes import alive
from tests.harness.waf import alerts, counted, inspector, judged, ours, processes, verdicts, waf_policy, waf_shop
from tests.harness.waiting import until
from tests.system.test_inspect import inspecting

HTTP = [pytest.param("--http1.1", id="h1"), pytest.param("--http2", id="h2")]
ATTACK = "/items?id=1%27%20UNION%20SELECT%20password%20FROM%20users--"
FORM = "q=%27+UNION+SELECT+password+FROM+users--"
SQLI = 942100
TEXT = "SQL Injection Attack Detected via libinjection"
PATIENT = {"limits": {"verdictTimeout": "10s"}}
"""However busy the machine is."""
REFUSED = "sidestep: policy shop/orders, id "


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    with waf_shop(tmp_path_factory.mktemp("shop")) as shop:
        yield shop


def procs(group):
    """The processes of a cgroup; none while there is no such group."""
    with contextlib.suppress(FileNotFoundError):
        return (group / "cgroup.procs").read_text().split()
    return []


def limits(group):
    """The files of a memory cgroup that bound it, in either version."""
    return [each for each in (group / "memory.max", group / "memory.limit_in_bytes") if each.exists()]


@contextlib.contextmanager
def load(shop, version, answers):
    """Ordinary requests, one after the other, until the end."""
    stop = threading.Event()

    def ask():
        while not stop.is_set():
            answers.extend(shop.get_in_turn([("/a?b=1",), ("/c",), ("/d",)], options=[version]))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("version", HTTP)
def test_attacks_are_refused_and_ordinary_requests_are_served(shop, version):
    with judged(shop, waf_policy(waf=PATIENT)):
        before = len(shop.node.records())
        assert shop.get("/items?id=1", options=[version]).text == "app GET\n"
        assert shop.get("/search", options=[version, "--data", "q=shoes"]).text == "app POST\n"
        assert shop.get("/", options=[version, "--head"]).status == 200
        chunked = ["Transfer-Encoding: chunked"] if version == "--http1.1" else []
        answers = [
            shop.get(ATTACK, options=[version]),
            shop.get("/search", options=[version, "--data", FORM]),
            shop.get("/search", *chunked, options=[version, "--data", FORM]),
            shop.get("/search", "Expect: 100-continue", options=[version, "--data", FORM + "&pad=" + "x" * 20000]),
        ]
        assert all(is_refusal(answer) for answer in answers), answers
        found = until(lambda: alerts(shop, before)[3:] and alerts(shop, before), within=20, what=shop.conditions)
        assert not [each for each in shop.nginx.requests() if "UNION" in str(each)], "the app has seen none of them"
    for each in found:
        assert each["alert"]["signature_id"] == SQLI
        assert f"shop/orders: CRS {SQLI} {TEXT}" in each["alert"]["signature"]
        assert each["alert"]["action"] == "blocked"
        assert each["sidestep"]["rule"] == "WAF"
        assert str(SQLI) in each["sidestep"]["pattern"]
    assert {each["sidestep"]["id"] for each in found} == {answer.text.rpartition(" ")[2].strip() for answer in answers}
    assert "UNION" not in str(found)


def test_requests_are_judged_from_the_moment_at_which_the_policy_is_programmed(shop):
    with policies(shop, waf_policy(waf={"limits": {"verdictTimeout": "10s"}})):
        assert is_refusal(shop.get(ATTACK))
        [engine] = [each for pod in shop.node.status()["pods"] for each in pod["engines"]]
    assert (engine["kind"], engine["state"], engine["policies"]) == ("inspector", "running", ["shop/orders"])
    assert engine["rules"] > 100
    assert 0 < engine["memory"] < engine["memory_limit"]


@pytest.mark.parametrize("version", HTTP)
def test_detect_tells_and_holds_nothing(shop, version):
    with judged(shop, waf_policy("Detect", waf={"limits": {"verdictTimeout": "10s"}})):
        before = len(shop.node.records())
        assert shop.get(ATTACK, options=[version]).text == "app GET\n"
        assert shop.get("/search", options=[version, "--data", FORM]).text == "app POST\n"
        found = until(lambda: alerts(shop, before)[1:] and alerts(shop, before), within=20, what=shop.conditions)
        assert {each["sidestep"]["action"] for each in found} == {"WouldBlock"}
        pid = inspector(shop)
        os.kill(pid, signal.SIGSTOP)
        try:
            # Under Enforce each of these would take verdictTimeout, and all of them 200 s.
            began = time.monotonic()
            assert {each.status for each in shop.get_in_turn([("/a",)] * 20, options=[version])} == {200}
            assert time.monotonic() - began < 100
        finally:
            with contextlib.suppress(ProcessLookupError):  # it is late in the end, and is replaced
                os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("version", HTTP)
def test_what_is_longer_than_the_limit(shop, version):
    (shop.folder / "body").write_text("a=" + "x" * 100_000)
    body = ["--data-binary", f"@{shop.folder / 'body'}"]
    with judged(shop):
        assert is_refusal(shop.get("/upload", options=[version, *body]))
        assert is_refusal(shop.get("/upload", options=[version, "--data", "&".join(f"a{n}=1" for n in range(300))]))
    with judged(shop, waf_policy(waf={"limits": {"overLimitAction": "Pass"}})):
        assert shop.get("/upload", options=[version, *body]).text == "app POST\n"
        until(lambda: counted(shop, "inspection_bypassed_waf_over_limit"), within=10, what=shop.conditions)
    large = {"limits": {"bodyBytes": 1048576, "verdictTimeout": "10s"}}
    with judged(shop, waf_policy(waf=large)):
        assert shop.get("/upload", options=[version, *body]).text == "app POST\n"
        (shop.folder / "body").write_text("a=" + "x" * 100_000 + "&" + FORM)
        assert is_refusal(shop.get("/upload", options=[version, *body]))


def test_requests_that_are_sent_at_once_are_answered_in_order(shop):
    head = f"Host: {scene.HOST}\r\nUser-Agent: curl/8.0\r\nAccept: */*\r\n"
    with judged(shop), shop.client(alpn=("http/1.1",)) as client:
        good, bad = f"GET /a HTTP/1.1\r\n{head}\r\n", f"GET {ATTACK} HTTP/1.1\r\n{head}\r\n"
        kind = "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 7\r\n"
        post = f"POST /b HTTP/1.1\r\n{head}{kind}\r\na=hello"
        last = f"GET /z HTTP/1.1\r\n{head}Connection: close\r\n\r\n"
        client.send((good + bad + post + bad + last).encode())
        text = ""
        while data := client.sock.recv(65536):
            text += data.decode()
    wanted = ["app GET", REFUSED, "app POST", REFUSED, "app GET"]
    places, at = [], 0
    for each in wanted:
        at = text.find(each, at)
        assert at >= 0, (each, text)
        places.append(at)
        at += 1
    assert text.count("HTTP/1.1 ") == 5


def test_the_inspector_knows_no_key_and_is_gone_with_the_policy(shop):
    with judged(shop):
        shop.get(ATTACK)
        needles = memory.forms(shop.own_certificate.key)
        assert memory.search(shop.proxy(), needles), "the search finds what is there"
        pid = inspector(shop)
        assert memory.search(pid, needles) == set()
        zygotes = [each for each in ours(shop) if each != pid]
        assert zygotes
        assert all(memory.search(each, needles) == set() for each in zygotes)
        assert any(Path(f"/proc/{pid}/fd").iterdir())
        group = MemoryCgroups.find().folder / f"{shop.node.pid}-{pid}"
        until(lambda: str(pid) in procs(group), within=20, what=lambda: f"{pid} in a memory cgroup: {procs(group)}")
        assert GROUP_MEMORY in {int(each.read_text()) for each in limits(group)}
    until(lambda: not ours(shop) and not alive(pid), within=60, what=lambda: f"no process to be left: {processes()}")
    until(lambda: not group.exists(), within=20, what="its memory cgroup to be gone")
    with policies(shop, policy(rule())):
        assert is_refusal(shop.get("/admin"))
        assert not ours(shop), "no inspector without waf"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("version", HTTP)
@pytest.mark.parametrize("failing", ["Ignore", "Fail"])
def test_it_is_killed_again_and_again(shop, version, failing):
    """Nobody gets an error under Ignore, nor under Fail anything but a 503."""
    answers = []
    with judged(shop, waf_policy(failurePolicy=failing)):
        with load(shop, version, answers):
            victim = 0
            for _ in range(20):
                victim = inspector(shop, but=victim)
                before = counted(shop, "waf_verdicts")
                until(lambda before=before: counted(shop, "waf_verdicts") > before, within=20, what=shop.conditions)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
        assert {answer.code for answer in answers} == {0}
        assert {answer.status for answer in answers} <= ({200} if failing == "Ignore" else {200, 503})
        for answer in answers:
            assert answer.status == 200 or answer.text.startswith(REFUSED), answer
        until(lambda: shop.get(ATTACK, options=[version]).status == 403, within=20, what=shop.conditions)


@pytest.mark.parametrize("version", HTTP)
@pytest.mark.parametrize("failing", ["Ignore", "Fail"])
def test_one_that_hangs_is_ended_and_others_are_not_held(shop, version, failing):
    document = waf_policy(failurePolicy=failing, ports=[scene.TLS_PORT], waf={"limits": {"verdictTimeout": "3s"}})
    other = policy(rule(), name="plain", ports=[scene.PLAIN_PORT])
    with judged(shop, document, other):
        pid = inspector(shop)
        os.kill(pid, signal.SIGSTOP)
        answers = []
        thread = threading.Thread(target=lambda: answers.append(shop.get("/a", options=[version])))
        began = time.monotonic()
        thread.start()
        served = 0
        while thread.is_alive() and time.monotonic() - began < 30:
            assert shop.get("/b", port=scene.PLAIN_PORT).status == 200
            served += 1
        thread.join()
        assert served > 3, "another port is served meanwhile"
        assert [answer.status for answer in answers] == [200 if failing == "Ignore" else 503]
        until(lambda: not alive(pid), within=20, what="the one that hangs to be ended")
        inspector(shop, but=pid)
        outcome = "bypassed" if failing == "Ignore" else "closed"
        until(lambda: counted(shop, f"inspection_{outcome}_waf_"), within=10, what=shop.conditions)
        until(lambda: shop.get(ATTACK, options=[version]).status == 403, within=20, what=shop.conditions)


def test_the_next_proxy_has_one_too(shop):
    with judged(shop):
        pid = inspector(shop)
        os.kill(shop.proxy(), signal.SIGKILL)
        inspector(shop, but=pid)
        until(lambda: shop.get(ATTACK).status == 403, within=30, what=shop.conditions)
        until(lambda: not alive(pid), within=10, what="the inspector of the old proxy to end")


@pytest.mark.parametrize("version", HTTP)
def test_alerts_are_told_to_sessions(shop, version):
    with judged(shop), inspecting(shop, "--alerts") as inspection:
        assert is_refusal(shop.get(ATTACK, options=[version]))
        found = inspection.wait(1, "alert", within=60)[0]
    assert found["alert"]["signature_id"] == SQLI
    assert f"shop/orders: CRS {SQLI} {TEXT}" in found["alert"]["signature"]
    assert "UNION" not in str(found)


@pytest.mark.parametrize("version", HTTP)
@pytest.mark.parametrize("mode", ["Detect", "Enforce"])
def test_leaks_in_answers_are_told_and_refused(shop, version, mode):
    """The app repeats what it is sent, as text; the request is one that passes."""
    leak = "You have an error in your SQL syntax; check the manual that corresponds to your MySQL server version"
    text = ["--data", leak, "-H", "Content-Type: text/csv"]
    settings = {"responses": True, "excludeRules": [920420], "limits": {"verdictTimeout": "10s"}}
    with judged(shop, waf_policy(mode, waf=settings)):
        before = len(shop.node.records())
        answer = shop.get("/report", options=[version, *text])
        if mode == "Enforce":
            assert is_refusal(answer), answer
            assert "SQL" not in answer.text
        else:
            assert answer.status == 200
            assert leak in answer.text
        fine = shop.get("/report", options=[version, "--data", "a=b"])
        assert (fine.status, fine.text.strip()) == (200, "a=b")
        found = until(lambda: alerts(shop, before), within=20, what=shop.conditions)
        [told] = [each for each in found if each["http"]["url"] == "/report"]
        assert "CRS 951230" in told["alert"]["signature"]
        assert told["alert"]["action"] == ("blocked" if mode == "Enforce" else "allowed")
        assert told["sidestep"]["action"] == ("Block" if mode == "Enforce" else "WouldBlock")
        assert told["src_port"] == scene.TLS_PORT, "it is told of the app"
        assert told["http"]["status"] == 200
        assert "syntax" not in str(found)
    with judged(shop, waf_policy(mode, waf={**settings, "responses": False})):
        before = len(shop.node.records())
        assert leak in shop.get("/report", options=[version, *text]).text
        judgements = counted(shop, "waf_verdicts")
        until(lambda: verdicts(shop, judgements + 1), within=20, what=shop.conditions)
        assert not alerts(shop, before)


def config_map(text):
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "waf-rules", "namespace": "shop"},
        "data": {"custom.conf": text},
    }


def test_custom_rules_and_settings_of_a_policy(shop):
    good = 'SecRule ARGS:color "@streq mauve" "id:7,phase:2,deny,msg:\'no mauve\'"\n'
    maps = shop.node.write("waf-rules.yaml", config_map(good))
    settings = {"rulesFrom": {"configMapRef": {"name": "waf-rules", "key": "custom.conf"}}, "excludeRules": [SQLI]}
    try:
        with judged(shop, waf_policy(waf=settings)):
            until(lambda: shop.get("/?color=mauve").status == 403, within=20, what=shop.conditions)
            assert shop.get("/?color=red").status == 200
            shop.node.write("waf-rules.yaml", config_map('SecRule ARGS "@rx a" "id:1,exec:/bin/sh"\n'))
            until(lambda: "WafRulesInvalid" in shop.conditions(), within=20, what=shop.conditions)
            assert "line 1: the action exec:/bin/sh is not allowed" in shop.conditions()
            assert "the last good rules stay in force" in shop.conditions()
            assert shop.get("/?color=mauve").status == 403
            shop.node.write("waf-rules.yaml", config_map(good.replace("mauve", "beige")))
            until(lambda: shop.get("/?color=beige").status == 403, within=20, what=shop.conditions)
            assert shop.get("/?color=mauve").status == 200
            assert "WafRulesInvalid" not in shop.conditions()
    finally:
        maps.unlink()


OF_ANSWERS = """
SecRule RESPONSE_BODY "@rx internal-[0-9]{4}" "id:1,phase:4,deny,msg:'an internal number'"
SecRule REQUEST_URI "@beginsWith /image" "id:2,phase:3,deny,chain,msg:'who serves'"
SecRule RESPONSE_HEADERS:X-Served-By "@streq app"
"""


@pytest.mark.parametrize("version", HTTP)
@pytest.mark.parametrize("mode", ["Detect", "Enforce"])
def test_custom_rules_about_answers(shop, version, mode):
    """The policy has no `responses`: rules about answers have them judged."""
    maps = shop.node.write("waf-rules.yaml", config_map(OF_ANSWERS))
    reference = {"configMapRef": {"name": "waf-rules", "key": "custom.conf"}}
    settings = {**PATIENT, "rulesFrom": reference, "excludeRules": [920420]}

    def told(path, rule):
        return [
            each
            for each in alerts(shop, before)
            if each["http"]["url"] == path and each["alert"]["signature"].endswith(rule)
        ]

    try:
        with judged(shop, waf_policy(mode, waf=settings)):
            before = len(shop.node.records())
            # The rules come into force a moment after the policy.
            until(lambda: shop.get("/image/1", options=[version]) and told("/image/1", "custom rule 2"), within=30,
                  what=shop.conditions)  # fmt: skip
            answer = shop.get("/report", options=[version, "--data", "internal-1234", "-H", "Content-Type: text/csv"])
            image = shop.get("/image/2", options=[version])
            fine = shop.get("/report", options=[version, "--data", "a=internal"])
            assert (fine.status, fine.text.strip()) == (200, "a=internal")
            until(lambda: told("/report", "custom rule 1") and told("/image/2", "custom rule 2"), within=20,
                  what=lambda: str(alerts(shop, before)))  # fmt: skip
            for each in (*told("/report", ""), *told("/image/2", "")):
                assert each["alert"]["action"] == ("blocked" if mode == "Enforce" else "allowed")
                assert each["src_port"] == scene.TLS_PORT, "it is told of the app"
                assert "internal-" not in str(each)
            if mode == "Enforce":
                assert is_refusal(answer), answer
                assert is_refusal(image), image
            else:
                assert (answer.status, answer.text.strip()) == (200, "internal-1234")
                assert (image.status, image.text) == (200, "picture")
            shop.node.write("waf-rules.yaml", config_map('SecRule RESPONSE_BODY "a" "id:1,phase:2"\n'))
            until(lambda: "'RESPONSE_BODY' needs phase 4" in shop.conditions(), within=20, what=shop.conditions)
    finally:
        maps.unlink()


def test_another_core_rule_set(tmp_path):
    """A folder as the project releases it; one rule of it says something else than Debian's."""
    folder = core_rule_set_4(tmp_path / "crs")
    rules = folder / "rules" / "REQUEST-942-APPLICATION-ATTACK-SQLI.conf"
    rules.write_text(rules.read_text().replace(TEXT, "Found by another set"))
    with waf_shop(tmp_path / "shop", folder) as shop, judged(shop, waf_policy(waf=PATIENT)):
        assert is_refusal(shop.get(ATTACK))
        [engine] = [each for pod in shop.node.status()["pods"] for each in pod["engines"]]
        assert engine["version"].endswith(", CRS 4.13.0")
        until(lambda: "Found by another set" in str(alerts(shop)), within=20, what=shop.conditions)


def test_a_folder_without_a_core_rule_set_is_refused(tmp_path):
    with node(tmp_path / "node", start=False) as daemon:
        daemon.crs = tmp_path
        done = subprocess.run(daemon.command(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "there is no Core Rule Set" in done.stderr
