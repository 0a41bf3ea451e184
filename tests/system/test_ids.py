"""A real Suricata beside a real pod proxy: what it finds in decrypted requests, what it may do, and how it ends."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from sidestep.ids.suricata import GROUP_MEMORY, MEMORY, RULES_MEMORY
from sidestep.node.proxies.memory_cgroups import MemoryCgroups
from tests.harness import memory, scene
from tests.harness.cli import sidestep
from tests.harness.inspection import policies, policy, rule, wait_programmed
from tests.harness.namespaces import run
from tests.harness.nginx import nginx
from tests.harness.processes import alive
from tests.harness.suricata import config_map, counted, ids_policy, started, wait_fed
from tests.harness.waiting import until

pytestmark = [pytest.mark.landlock, pytest.mark.long]
HTTP = [pytest.param("--http1.1", id="h1"), pytest.param("--http2", id="h2")]
RULES = """
# Seven keywords: five of requests, two of responses
alert http any any -> any any (msg:"uri"; http.uri; content:"/evil"; sid:1;)
alert http any any -> any any (msg:"request body"; http.request_body; content:"stolen-credential"; sid:2;)
alert http any any -> any any (msg:"user agent"; http.user_agent; content:"sqlmap"; classtype:attempted-recon; sid:3;)
alert http any any -> any any (msg:"header"; http.header; content:"x-attack"; nocase; sid:4;)
alert http any any -> any any (msg:"cookie"; http.cookie; content:"admin=1"; sid:5;)
alert http any any -> any any (msg:"response body"; flow:to_client; file.data; content:"leaked-secret"; sid:6;)
alert http any any -> any any (msg:"status"; flow:to_client; http.stat_code; content:"403"; sid:7;)
"""
ALL = {1, 2, 3, 4, 5, 6, 7}
TOKEN = "S3CRETtoken"
LEAK = "leaked-secret of the app"
SERVER = """
gzip on; gzip_types text/plain; gzip_min_length 1;
server {{
    listen {ip}:8443 ssl http2; listen {ip}:8080; server_name orders.shop.test; add_header X-Served-By app always;
    ssl_certificate {folder}/tls/tls.crt; ssl_certificate_key {folder}/tls/tls.key;
    location /evil {{ default_type text/plain; echo_read_request_body; echo_status 403; echo "{leak}"; }}
    location / {{ default_type text/plain; return 200 "app\n"; }}
}}
"""


OWN_FILES = {
    "-", "classification.config", "eve.sock", "lib", "lib64", "log", "pod.rules", "reference.config", "suricata.yaml",
    "threshold.config", "usr",
}  # fmt: skip
NEW = 'alert http any any -> any any (msg:"new"; http.uri; content:"/evil"; sid:9;)'


def running(shop):
    """Those that live."""
    return [pid for pid, _ in started(shop) if alive(pid)]


def wait_alone(shop, pid):
    """Wait until this one lives, and no other: that of the test before may still be ending."""
    until(lambda: running(shop) == [pid], within=20, what=lambda: f"{pid} alone: {running(shop)}")


@contextlib.contextmanager
def inspected(shop, *documents, rules=RULES):
    """The pod with a policy that has an IDS, once it runs."""
    maps = shop.node.write("config.yaml", config_map(rules))
    try:
        before = len(started(shop))
        wanted = documents or (ids_policy(),)
        with policies(shop, *wanted, wait=False):
            for each in wanted:
                wait_programmed(shop, each["metadata"]["name"], within=60)
            yield wait_fed(shop, after=before, policies=len(wanted), within=60)
    finally:
        maps.unlink()


def alerts(shop, before=0):
    return [each for each in shop.node.records()[before:] if each["event_type"] == "alert"]


@contextlib.contextmanager
def ids_shop(folder):
    """The scene with an nginx that compresses, and speaks HTTP/2, as the app."""
    with scene.shop(folder) as shop:
        where = shop.folder / "nginx"
        extra = SERVER.format(ip=shop.space.ip, folder=where, leak=LEAK)
        listen, plain = [f"{shop.space.ip}:{scene.TLS_PORT}"], [f"{shop.space.ip}:{scene.PLAIN_PORT}"]
        with nginx(
            shop.space.pod, where, listen=listen, plain=plain, certificate=shop.app_certificate, http2=True, extra=extra
        ) as shop.nginx:
            yield shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    with ids_shop(tmp_path_factory.mktemp("shop")) as shop:
        yield shop


def attack(shop, version="--http1.1"):
    """One request that all rules are about, with its answer."""
    return shop.get(
        f"/evil?token={TOKEN}", "X-Attack: 1", "Cookie: admin=1", f"Authorization: Bearer {TOKEN}",
        options=[version, "--user-agent", "sqlmap", "--data", "stolen-credential", "--compressed"],
    )  # fmt: skip


def found(shop, before, expected=ALL, *, within=60.0):
    """Wait for alerts of these rules among the records after `before`."""

    def look():
        records = alerts(shop, before)
        return records if expected <= {each["alert"]["signature_id"] for each in records} else None

    return until(look, within=within, what=lambda: f"alerts: {shop.node.records()[before:]} {shop.conditions()}")


@pytest.mark.parametrize("version", HTTP)
def test_what_rules_find_stands_in_the_log_within_a_second(shop, version):
    with inspected(shop):
        seconds = []
        for _ in range(3):
            before = len(shop.node.records())
            answer = attack(shop, version)
            began = time.monotonic()
            assert (answer.status, answer.text.strip()) == (403, LEAK)
            assert answer.headers["content-encoding"] == ["gzip"]
            records = found(shop, before)
            seconds.append(time.monotonic() - began)
        everything = "".join(path.read_text() for path in shop.node.folder.glob("eve.json*"))
        everything += shop.node.log() + str(shop.node.status())
    assert min(seconds) < 1
    assert {each["alert"]["signature"]: each["alert"]["category"] for each in records}["user agent"] == (
        "Attempted Information Leak"
    )
    for each in records:
        assert each["kubernetes"].items() >= {
            "namespace": "shop", "pod": "orders-1", "workload": "deployment/orders",
        }.items()  # fmt: skip
        rule = str(each["alert"]["signature_id"])
        assert each["sidestep"] == {
            "policy": "shop/orders", "rule": rule, "action": "Alert", "inspected": True, "engine": "suricata",
        }  # fmt: skip
        ends = {(each["src_ip"], each["src_port"]), (each["dest_ip"], each["dest_port"])}
        assert (shop.space.ip, scene.TLS_PORT) in ends
        assert each["http"]["url"] == "/evil?token=[redacted]"
        assert each["app_proto"] == ("http2" if version == "--http2" else "http")
    for secret in (TOKEN, "admin=1", "stolen-credential", LEAK):
        assert secret not in everything


def test_it_has_nothing_but_its_own(shop):
    with inspected(shop) as pid:
        attack(shop)
        proxy = shop.proxy()
        needles = memory.forms(shop.own_certificate.key)
        assert memory.search(proxy, needles), "the search finds what is there"
        assert memory.search(pid, needles) == set()
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        uids = {*status["Uid"].split(), *status["Gid"].split()}
        of_proxy = dict(line.split(":", 1) for line in Path(f"/proc/{proxy}/status").read_text().splitlines())
        assert len(uids) == 1
        assert uids.isdisjoint({"0", *of_proxy["Uid"].split()})
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[name], 16) == 0
        assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
        assert int(status["VmHWM"].split()[0]) < 64 * 1024
        namespaces = {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("net", "mnt", "ipc", "uts")}
        for other in (proxy, shop.node.pid):
            for kind, namespace in namespaces.items():
                assert namespace != os.readlink(f"/proc/{other}/ns/{kind}")
        kinds = {os.readlink(path).partition(":")[0] for path in Path(f"/proc/{pid}/fd").iterdir()}
        assert kinds <= {"pipe", "socket"}
        names = {str(path.relative_to(f"/proc/{pid}/root")) for path in Path(f"/proc/{pid}/root").rglob("*")}
        assert not [
            name for name in names if name.startswith(("etc", "proc", "sys", "dev", "run", "var", "home", "root"))
        ]


def engine(shop):
    """The engine that the status shows beside the pod's proxy, None if it shows none."""
    found = [each for pod in shop.node.status()["pods"] if pod["name"] == "orders-1" for each in pod["engines"]]
    return found[0] if found else None


def test_it_is_shown_and_has_a_memory_cgroup_of_its_own(shop):
    with inspected(shop) as pid:
        attack(shop)
        until(lambda: engine(shop)["connections"].get("fed"), within=60, what="a connection to be counted")
        shown = engine(shop)
        expected = {"kind": "suricata", "state": "running", "pid": pid, "policies": ["shop/orders"], "rules": 7}
        assert shown.items() >= {**expected, "restarts": 0, "problem": "", "memory_limit": MEMORY}.items()
        assert shown["version"].startswith("7.")
        assert 1 << 20 < shown["memory"] < RULES_MEMORY
        text = sidestep("status", socket=shop.node.socket).stdout
        assert re.search(rf"suricata 7\S+ +shop/orders-1 +running {pid} +7 +\d+ of 96 MiB +0 +fed \d", text), text
        scrape = run("curl", "-s", "--unix-socket", shop.node.socket, "http://node/metrics")
        assert 'sidestep_engine_rules{engine="suricata",namespace="shop",pod="orders-1"} 7.0' in scrape
        cgroups = MemoryCgroups.find()
        group = cgroups.folder / f"{shop.node.pid}-{pid}"
        assert (group / "cgroup.procs").read_text().split() == [str(pid)]
        limit = "memory.max" if cgroups.version == 2 else "memory.limit_in_bytes"
        assert int((group / limit).read_text()) == GROUP_MEMORY
        used = "memory.current" if cgroups.version == 2 else "memory.usage_in_bytes"
        assert int((group / used).read_text()) > 8 << 20, "what it allocates is charged to its group"
        os.kill(pid, signal.SIGKILL)
        until(lambda: engine(shop)["pid"] not in {0, pid}, within=30, what=lambda: engine(shop))
        assert engine(shop)["restarts"] == 1
        until(lambda: not group.exists(), within=60, what="its group to be removed")
    until(lambda: engine(shop) is None, within=60, what=lambda: engine(shop))


@pytest.mark.timeout(600)  # twenty starts, with pauses of up to 3 s before each
def test_requests_do_not_notice_that_it_is_killed(shop):
    document = ids_policy(mode="Enforce", failurePolicy="Fail")
    with inspected(shop, document) as first:
        victim = first
        before = shop.node.status()["node"]["counters"].get("records_ids_restarts", 0)
        stop, answers = threading.Event(), []

        def load():
            while not stop.is_set():
                answers.extend(each.status for each in shop.get_in_turn([("/evil",), ("/",), ("/evil",)]))

        thread = threading.Thread(target=load)
        thread.start()
        try:
            for number in range(1, 21):
                fed = counted(shop, "ids_fed")
                until(lambda fed=fed: counted(shop, "ids_fed") > fed, within=60, what="requests to be fed")
                os.kill(victim, signal.SIGKILL)
                victim = wait_fed(shop, after=len(started(shop)))
                restarts = shop.node.status()["node"]["counters"]["records_ids_restarts"]
                assert restarts - before >= number
        finally:
            stop.set()
            thread.join()
        assert set(answers) == {200, 403}
        assert answers.count(403) == 2 * answers.count(200)
        assert counted(shop, "ids_unfed") + counted(shop, "ids_cut") > 0
        until(lambda: "IdsNotRunning" not in shop.conditions(), within=60, what=shop.conditions)
        records = len(shop.node.records())
        attack(shop)
        found(shop, records)


def test_one_that_hangs_is_replaced(shop):
    with inspected(shop) as pid:
        count = len(started(shop))
        os.kill(pid, signal.SIGSTOP)
        wait_fed(shop, after=count, within=60)
        assert not alive(pid)
        before = len(shop.node.records())
        attack(shop)
        found(shop, before)


def test_the_next_proxy_has_one_too(shop):
    with inspected(shop) as pid:
        count = len(started(shop))
        os.kill(shop.proxy(), signal.SIGKILL)
        assert wait_fed(shop, after=count) != pid
        until(lambda: not alive(pid), within=60, what="the Suricata of the old proxy to end")
        before = len(shop.node.records())
        attack(shop)
        found(shop, before)


def test_other_rules_lose_nothing(shop):
    with inspected(shop) as pid, shop.client() as old:
        ask = f"GET /evil HTTP/1.1\r\nHost: {scene.HOST}\r\nUser-Agent: sqlmap\r\n\r\n".encode()
        before = len(shop.node.records())
        old.send(ask)
        found(shop, before, {1, 3})
        count = len(started(shop))
        shop.node.write("config.yaml", config_map(NEW))
        newer = wait_fed(shop, after=count)
        assert newer != pid
        assert alive(pid)
        before = len(shop.node.records())
        old.send(ask)
        found(shop, before, {1, 3})  # the connection goes on with the rules with which it began
        before = len(shop.node.records())
        attack(shop)
        assert {each["alert"]["signature_id"] for each in found(shop, before, {9})} == {9}
        assert counted(shop, "ids_cut") == 0
        old.close()
        until(lambda: not alive(pid), within=60, what="the one before to end with its last connection")
        assert alive(newer)


def test_bad_rules_leave_the_last_good_ones_in_force(shop):
    with inspected(shop) as pid:
        for text, reason in (
            ("pass http any any -> any any (sid:1;)", "line 1: the action pass is not possible"),
            ("alert http any any -> any any (http.nonsense; sid:1;)", "unknown rule keyword 'http.nonsense'"),
        ):
            shop.node.write("config.yaml", config_map(text))
            until(lambda reason=reason: reason in shop.conditions(), within=60, what=shop.conditions)
            assert "the last good rules stay in force" in shop.conditions()
        before = len(shop.node.records())
        attack(shop)
        found(shop, before)
        wait_alone(shop, pid)


def like_a_feed(count, first=1):
    """Generated rules of the kinds and sizes that public feeds have, short enough for 5,000 to fit into a ConfigMap."""
    chosen = random.Random(first)
    word = lambda: "".join(chosen.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=8))  # noqa: E731
    forms = (
        'http.uri; content:"/{0}/{1}.php"; fast_pattern; content:"{2}"; nocase;',
        'http.user_agent; content:"{0}{1}";',
        'http.host; content:"{0}.{1}";',
        'http.request_body; content:"{0}="; pcre:"/{1}[a-z0-9]{{4,20}}={2}/i";',
        'flow:to_client; file.data; content:"{0}{1}"; content:"{2}"; within:200;',
    )
    return [
        f'alert http any any -> any any (msg:"{word()}"; {forms[number % len(forms)].format(word(), word(), word())} '
        f"sid:{number};)"
        for number in range(first, first + count)
    ]


def heavy(count):
    """Short rules that take much memory: an expression each."""
    made = 'alert http any any -> any any (http.uri; content:"/{0}"; pcre:"/k{0}[a-z]{{2,9}}(a|b|c)+/U"; sid:{0};)'
    return [made.format(number) for number in range(1, count + 1)]


def test_five_thousand_rules_fit_and_more_are_refused_with_the_figure(shop):
    with inspected(shop, rules="\n".join([*RULES.strip().splitlines(), *like_a_feed(5000, first=100)])) as pid:
        assert engine(shop)["rules"] == 5007
        before = len(shop.node.records())
        attack(shop)
        found(shop, before, within=60)
        assert engine(shop)["memory"] <= RULES_MEMORY
        for count, reason in (
            (20_000, r"the rules have more than 1024 KiB: \d{4}\b|larger than 1024 KiB"),
            (8000, r"with the rules Suricata takes \d+ MiB of memory; 64 MiB are possible \(8000 rules\)"),
        ):
            text = "\n".join(like_a_feed(count)) if count > 8192 else "\n".join(heavy(count))
            shop.node.write("config.yaml", config_map(text))
            until(
                lambda reason=reason: re.search(reason, shop.conditions()),
                within=60,
                what=lambda: shop.conditions()[-2000:],
            )
        assert "the last good rules stay in force" in shop.conditions()
        wait_alone(shop, pid)
        before = len(shop.node.records())
        attack(shop)
        found(shop, before, within=60)


def test_rules_of_a_policy_that_find_no_room_beside_others_are_left_out(shop):
    path = shop.node.write("others.yaml", config_map("\n".join(like_a_feed(4500, first=6000)), "others"))
    try:
        maps = shop.node.write("config.yaml", config_map("\n".join(like_a_feed(4500))))
        with policies(shop, ids_policy("a"), ids_policy("b", config="others"), wait=False):
            reason = r"IdsRulesLeftOut.*policy shop/b find no room .* takes \d+ MiB of memory; 64 MiB are possible"
            until(lambda: re.search(reason, shop.conditions()), within=60, what=shop.conditions)
            until(lambda: (engine(shop) or {}).get("state") == "running", within=60, what=lambda: engine(shop))
            assert (engine(shop)["policies"], engine(shop)["rules"]) == (["shop/a"], 4500)
        maps.unlink()
    finally:
        path.unlink()


def test_two_policies_have_their_own_rules(shop):
    documents = [ids_policy("a"), ids_policy("b", config="others")]
    others = config_map('alert http any any -> any any (msg:"mine"; http.uri; content:"/evil"; sid:1;)', "others")
    path = shop.node.write("others.yaml", others)
    try:
        with inspected(shop, *documents):
            before = len(shop.node.records())
            attack(shop)
            records = until(
                lambda: (
                    len([e for e in alerts(shop, before) if e["alert"]["signature_id"] == 1]) == 2
                    and alerts(shop, before)
                ),
                within=60,
                what=lambda: str(alerts(shop, before)),
            )
    finally:
        path.unlink()
    told = {(each["sidestep"]["policy"], each["alert"]["signature"]) for each in records}
    assert {("shop/a", "uri"), ("shop/b", "mine")} <= told


def test_without_a_policy_that_has_one_there_is_none(shop):
    with inspected(shop) as pid:
        pass
    until(lambda: not alive(pid), within=60, what="it to end with its policy")
    with policies(shop, policy(rule())):
        count = len(started(shop))
        assert attack(shop).status == 403
        time.sleep(1.5)  # longer than a tick of the daemon
        assert len(started(shop)) == count
        assert running(shop) == []


def test_rules_that_are_not_there(shop):
    with policies(shop, ids_policy()):
        until(lambda: "no ConfigMap shop/ids-rules" in shop.conditions(), within=60, what=shop.conditions)
        assert "its IDS does not run" in shop.conditions()
        assert attack(shop).status == 403


@pytest.mark.parametrize("ending", ["SIGTERM", "SIGKILL"])
def test_it_ends_with_the_daemon(tmp_path, ending):
    with ids_shop(tmp_path) as shop:
        shop.node.write("config.yaml", config_map(RULES))
        shop.node.write("policies.yaml", ids_policy())
        pid = wait_fed(shop)
        os.kill(pid, signal.SIGSTOP)  # one that does not read its feed does not see its end
        if ending == "SIGTERM":
            assert shop.node.stop() == 0
        else:
            shop.node.kill()
        until(lambda: not alive(pid), within=60, what="it to end")
        assert shop.get("/", options=["--retry", "5", "--retry-connrefused"]).status == 200
