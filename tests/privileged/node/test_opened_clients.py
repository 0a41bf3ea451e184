"""Clients whose TLS is opened, and whose clear HTTP is read and leaves as it came: wget, Node.js, and Python's own that
keeps its connection. Clients of Go and Java are in no test: their compiler and their runtime cost more than all others.
"""

from __future__ import annotations

import asyncio
import sys

import pytest

from tests.privileged.node.outward import PLAIN, TLS
from tests.privileged.node.test_decryption import CARD, CARDS, opened

pytestmark = pytest.mark.privileged

KEEPING = """
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=20)
for body in ("card=none", "card=" + sys.argv[3], "card=none"):
    connection.request("POST", "/", body, {"Host": "api.test"})
    answer = connection.getresponse()
    answer.read()
    print(answer.status)
"""
NODE = """
const http = require("http"), https = require("https");
const [card, ...urls] = process.argv.slice(2);

function asked(url, body) {
    const sends = url.startsWith("https") ? https : http;
    return new Promise((done, failed) => {
        const request = sends.request(url, { method: "POST", agent: false }, (answer) => {
            answer.resume();
            answer.on("end", () => done(answer.statusCode));
        });
        request.on("error", failed);
        request.end(body);
    });
}

(async () => {
    for (const url of urls) {
        for (const body of ["card=none", "card=" + card]) {
            console.log(await asked(url, body));
            const answer = await fetch(url, { method: "POST", body });
            await answer.text();
            console.log(answer.status);
        }
    }
})();
"""
"""Requests with `http` or `https`, and with `fetch`, which keeps its connections."""


def test_each_of_their_requests_is_judged(program, tmp_path):
    """Names are looked up in a file that the client finds in the place of /etc/hosts."""

    async def go():
        async with opened(program, tmp_path, CARDS, fail=True) as pod:
            hosts, script = tmp_path / "hosts", tmp_path / "client.js"
            hosts.write_text(f"{pod.space.client_ip} api.test\n")
            script.write_text(NODE)
            urls = [f"http://api.test:{PLAIN}/", f"https://api.test:{TLS}/"]

            async def said(*command):
                mounted = 'mount --bind "$0" /etc/hosts && exec "$@"'
                return await asyncio.to_thread(pod.run, "unshare", "-m", "sh", "-c", mounted, hosts, *command)

            keeping = (sys.executable, "-c", KEEPING, pod.space.client_ip, str(PLAIN), CARD)
            done = await asyncio.to_thread(pod.run, *keeping)
            assert done.stdout.split() == ["200", "403", "200"], done.stdout + done.stderr
            for url in urls:
                for body, code in (("card=none", 0), (f"card={CARD}", 8)):
                    done = await said(
                        "wget", "-q", "-O", "-", "--no-proxy", "-t", "1", "-T", "60", f"--ca-certificate={pod.issuer}",
                        f"--post-data={body}", url,
                    )  # fmt: skip
                    assert done.returncode == code, (url, body, done.stdout, done.stderr)
            done = await said("env", f"NODE_EXTRA_CA_CERTS={pod.issuer}", "node", script, CARD, *urls)
            assert done.stdout.split() == ["200", "200", "403", "403"] * 2, done.stdout + done.stderr
            asked = ["", "", "", "TLSv1.3", "", "", "TLSv1.3", "TLSv1.3"]
            assert [each["tls"] for each in pod.web.requests()] == asked
            await pod.counted(inspection_blocked=7, outbound_closed=None)

    asyncio.run(go())
