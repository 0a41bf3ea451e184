"""A real Suricata beside a pod proxy, fed what the pod sends: clear HTTP that leaves in TLS, and TLS that is opened."""

from __future__ import annotations

import pytest

from tests.harness.suricata import config_map, wait_fed
from tests.harness.waiting import until
from tests.system.test_opened import PLAIN, PORT, WITHIN, ask, opened

pytestmark = pytest.mark.landlock

RULES = """
alert http any any -> any any (msg:"uri"; http.uri; content:"/leak"; sid:1;)
alert http any any -> any any (msg:"status"; flow:to_client; http.stat_code; content:"200"; sid:2;)
"""


def test_what_a_pod_sends_is_looked_at(tmp_path):
    text = {"rulesFrom": {"configMapRef": {"name": "ids-rules", "key": "local.rules"}}}
    with opened(tmp_path, ids=text, log={"samplePercent": 100}) as (scene, group, web, issuer, _):
        scene.node.write("config.yaml", config_map(RULES))
        wait_fed(scene, within=WITHIN)
        for scheme in ("http", "https"):
            for option in ("--http1.1", "--http2"):
                assert ask(scene, group, issuer, option, scheme=scheme, path="/leak?token=hidden").stdout == "200"
        assert len(web.requests()) == 4

        def told(kind):
            found = [each for each in scene.node.records() if each.get("event_type") == kind]
            return [each for each in found if each.get("sidestep", {}).get("direction") == "egress"]

        def alerts():
            return sorted((each["sidestep"]["rule"], each["dest_port"], each["src_port"]) for each in told("alert"))

        until(lambda: len(alerts()) == 8, within=WITHIN, what=lambda: f"{alerts()} {scene.conditions()}")
        for each in told("alert"):
            assert each["sidestep"]["policy"] == "shop/orders"
            assert each["sidestep"]["engine"] == "suricata"
            assert each["kubernetes"]["pod"] == "orders-1"
            assert {each["src_ip"], each["dest_ip"]} == {scene.space.ip, scene.space.client_ip}
            assert {each["src_port"], each["dest_port"]} & {PORT, PLAIN}
        until(lambda: len(told("http")) == 4, within=WITHIN, what=lambda: str(told("http")))
        for each in told("http"):
            assert (each["http"]["url"], each["http"]["status"]) == ("/leak?token=[redacted]", 200)
        assert "hidden" not in str(scene.node.records())

        def engines():
            return [each for pod in (scene.node.status() or {})["pods"] for each in pod["engines"]]

        until(
            lambda: (
                [(each["kind"], each["state"]) for each in engines()] == [("suricata", "running")]
                and engines()[0]["connections"].get("fed") == 4
            ),
            within=WITHIN,
            what=lambda: str(engines()),
        )
