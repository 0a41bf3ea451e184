"""Requests that a pod makes are logged though no rule applies: in clear HTTP, and in TLS that is opened."""

from __future__ import annotations

import asyncio

import pytest

from sidestep.model.egress import Destination, EgressMode
from tests.harness.authority import Authority
from tests.privileged.node.outward import HERE, PLAIN, TLS, Records, outbound, policy

pytestmark = pytest.mark.privileged

ISSUER = Authority("Egress CA")


def requests(records):
    """What the log says of requests."""
    found = [each for each in records.made if each.event_type == "http"]
    assert all(each.sidestep.direction == "egress" and each.sidestep.inspected for each in found)
    return [(each.http.hostname, each.http.url, each.http.status) for each in found]


@pytest.mark.parametrize("opens", [EgressMode.OBSERVE, EgressMode.ORIGINATE])
def test_of_clear_http(program, tmp_path, opens):
    async def go():
        records, trust = Records(), "authority" if opens is EgressMode.ORIGINATE else ""
        async with outbound(program, tmp_path, policy(opens=opens, trust=trust, sample=100), records=records) as pod:
            done = await pod.asked(
                "api.test", f"http://api.test:{PLAIN}/a?token=1", port=PLAIN, scheme="http", path="b"
            )
            assert done.returncode == 0, done.stderr
            await pod.some.until(lambda: len(requests(records)) == 2)
            shown = [("api.test", "/a?token=[redacted]", 200), ("api.test", "/b", 200)]
            assert requests(records) == shown
            assert {each.sidestep.host for each in records.made} == {"api.test"}
            assert [each["tls"] != "" for each in pod.web.requests()] == [opens is EgressMode.ORIGINATE] * 2
            await pod.program(policy(opens=opens, trust=trust, name="none"))
            assert (await pod.asked("api.test", port=PLAIN, scheme="http", path="c")).returncode == 0
            await pod.counted(outbound=2)
            assert requests(records) == shown

    asyncio.run(go())


def test_of_hosts_that_the_policy_is_about(program, tmp_path):
    """Requests for others on the same connection are not logged."""

    async def go():
        records = Records()
        about = (Destination("api", names=("api.test",), networks=HERE),)
        async with outbound(program, tmp_path, policy(destinations=about, sample=100), records=records) as pod:
            url = f"http://api.test:{PLAIN}"
            done = await pod.asked(
                "api.test", f"{url}/a", "--next", "-sS", "-H", "Host: paste.test", f"{url}/b", "--next", "-sS",
                "--noproxy", "*", port=PLAIN, scheme="http", path="c",
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert [each["uri"] for each in pod.web.requests()] == ["/a", "/b", "/c"]
            await pod.counted(outbound=1)
            await pod.some.until(lambda: len(requests(records)) >= 2)
            assert requests(records) == [("api.test", "/a", 200), ("api.test", "/c", 200)]

    asyncio.run(go())


@pytest.mark.parametrize("option", ["--http1.1", "--http2"])
def test_of_tls_that_is_opened(program, tmp_path, option):
    async def go():
        records, made = Records(), policy(opens=EgressMode.DECRYPT, issuer="issuer", trust="authority", sample=100)
        async with outbound(program, tmp_path, made, records=records, secrets={"issuer": ISSUER.pair}) as pod:
            (tmp_path / "issuer.pem").write_bytes(ISSUER.pem)
            done = await pod.asked("api.test", option, "--cacert", str(tmp_path / "issuer.pem"), port=TLS, path="a")
            assert done.returncode == 0, done.stderr
            await pod.some.until(lambda: len(requests(records)) == 1)
            assert requests(records) == [("api.test", "/a", 200)]

    asyncio.run(go())
