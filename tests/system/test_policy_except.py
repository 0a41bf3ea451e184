"""From the line that a refused client was told to a policy that lets the request pass, with a real daemon."""

from __future__ import annotations

import pytest
import yaml

from tests.harness.cli import sidestep
from tests.harness.inspection import FILE, is_refusal, policies, policy, rule, wait_programmed
from tests.harness.waf import alerts, judged, waf_policy, waf_shop
from tests.harness.waiting import until
from tests.system.test_inspect import inspecting

ATTACK = "/items?id=1%27%20UNION%20SELECT%20password%20FROM%20users--"
OTHER = "/items?id=%3Cscript%3Ealert(1)%3C/script%3E"


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    with waf_shop(tmp_path_factory.mktemp("shop")) as shop:
        yield shop


def excepted(shop, answer, *words):
    """What the command prints for a refused request, once the daemon knows of it."""
    assert is_refusal(answer), answer

    def look():
        done = sidestep("policy", "except", answer.text, *words, socket=shop.node.socket, within=60)
        return done if "none of the last alerts" not in done.stderr else None

    done = until(look, within=30, what=shop.conditions)
    assert done.code == 0, done
    return list(yaml.safe_load_all(done.stdout)), done.stdout


def apply(shop, written, found):
    """Change the firewalls of these policies as the command says, and wait until they are in force."""
    assert len(found) == len(written), "each policy of the port with a firewall has to leave the rules out"
    for document, change in zip(written, found, strict=True):
        document["spec"]["waf"] = {**document["spec"]["waf"], **change["spec"]["waf"]}
    shop.node.write(FILE, *written)
    for each in written:
        wait_programmed(shop, each["metadata"]["name"])


def test_a_rule(shop):
    written = policy(rule(), rule("/internal", name="inside"))
    with policies(shop, written):
        [change], text = excepted(shop, shop.get("/admin/users?token=4711"))
        assert "shop/orders: no-admin" in text
        assert "4711" not in text
        [changed] = change["spec"]["rules"]
        first, second = written["spec"]["rules"]
        written["spec"]["rules"] = [{**first, **changed}, second]
        shop.node.write(FILE, written)
        until(lambda: shop.get("/admin/users?token=1").status == 200, within=20, what=shop.conditions)
        assert is_refusal(shop.get("/admin/keys"))
        assert is_refusal(shop.get("/admin/users", options=["--data", "x=1"]))
        [change], _ = excepted(shop, shop.get("/internal/a"), "--by", "source")
        [changed] = change["spec"]["rules"]
        written["spec"]["rules"] = [written["spec"]["rules"][0], {**second, **changed}]
        shop.node.write(FILE, written)
        until(lambda: shop.get("/internal/b").status == 200, within=20, what=shop.conditions)


def test_the_firewall(shop):
    limits = {"limits": {"verdictTimeout": "10s"}}
    first = waf_policy(waf={"excludeRules": [920420], **limits})
    second = waf_policy(name="second", waf=limits)
    written = [first, second]
    with judged(shop, *written):
        found, text = excepted(shop, shop.get(ATTACK))
        assert "CRS 942100" in text
        assert "UNION" not in text
        apply(shop, written, found)
        assert "excludeRules" not in second["spec"]["waf"]
        [exception] = second["spec"]["waf"]["exceptions"]
        assert exception["paths"] == [{"match": "Equal", "value": "/items"}]
        until(lambda: shop.get(ATTACK).status == 200, within=30, what=shop.conditions)
        elsewhere = shop.get(ATTACK.replace("/items", "/orders"))
        assert is_refusal(elsewhere, "shop/orders")
        assert is_refusal(shop.get(OTHER), "shop/orders")
        found, _ = excepted(shop, elsewhere, "--by", "port")
        apply(shop, written, found)
        assert 920420 in first["spec"]["waf"]["excludeRules"]
        until(lambda: shop.get(ATTACK.replace("/items", "/orders")).status == 200, within=30, what=shop.conditions)
        assert is_refusal(shop.get(OTHER), "shop/orders")


def test_from_the_log_of_records(shop):
    written = policy(rule())
    with policies(shop, written):
        before = len(shop.node.records())
        answer = shop.get("/admin/x")
        assert is_refusal(answer)
        until(lambda: alerts(shop, before), within=20, what=shop.conditions)
        done = sidestep("policy", "except", answer.text, shop.node.manifests / FILE, "--eve", shop.node.eve)
    assert done.code == 0, done
    [change] = yaml.safe_load_all(done.stdout)
    assert change["spec"]["rules"][0]["except"]["paths"] == [{"match": "Equal", "value": "/admin/x"}]


def test_the_id_in_a_live_alert_is_known(shop):
    with policies(shop, policy(rule(action="Alert"))), inspecting(shop, "--alerts") as inspection:
        assert shop.get("/admin/live").status == 200
        found = inspection.wait(1, "alert", within=60)[0]
        exchange = found["sidestep"]["id"]
        done = sidestep("policy", "except", exchange, socket=shop.node.socket)
    assert done.code == 0, done
    assert "/admin/live" in done.stdout


def test_an_id_that_the_daemon_does_not_know(shop):
    done = sidestep("policy", "except", "0badcafe-1", socket=shop.node.socket)
    assert done.code == 1
    assert "0badcafe-1: is none of the last alerts of this daemon" in done.error
    assert "--eve FILE" in done.error
