"""Names: what clients write in SNI, what certificates carry, alone with the app and through Sidestep.

For each client and certificate: what the client sees of a request that matches no filter is the same with and without
us, and the app sees the same server name. A request that matches is diverted, or a condition says why it is not.
"""

from __future__ import annotations

import ssl
import subprocess

import pytest

from tests.harness import scene
from tests.harness.curl import curl
from tests.harness.nginx import client_context
from tests.harness.peers import Client
from tests.harness.waiting import until

PORT, HOST = scene.TLS_PORT, scene.HOST
UNDERSCORE = "my_app.shop.test"
CERTIFICATES = {
    "names": lambda authority, ip: authority.issue(HOST, UNDERSCORE),
    "a wildcard": lambda authority, ip: authority.issue("*.shop.test"),
    "an address": lambda authority, ip: authority.issue(ips=[ip], common_name="orders"),
    "a common name": lambda authority, ip: authority.issue(common_name=HOST),
}


def by_curl(host, *options):
    def ask(shop, *headers):
        name = host.replace("IP", shop.space.ip)
        address = None if name == shop.space.ip else shop.space.ip
        answer = curl(
            shop.space.client, f"https://{name}:{PORT}/", *options, address=address, ca=shop.ca, headers=headers
        )
        return answer.code, answer.served_by

    return ask


def by_s_client(*options):
    def ask(shop, *headers):
        words = [word.replace("IP", shop.space.ip) for word in options]
        command = ["openssl", "s_client", "-connect", f"{shop.space.ip}:{PORT}", "-ign_eof", "-CAfile", shop.ca]
        command += ["-verify_return_error", *words]
        lines = "\r\n".join(["GET / HTTP/1.1", f"Host: {HOST}", *headers, "Connection: close", "", ""])
        done = subprocess.run(
            shop.space.client.enter(command), input=lines.encode(), capture_output=True, timeout=20, check=False
        )
        served = [line.partition(": ")[2] for line in done.stdout.decode().splitlines() if "X-Served-By" in line]
        return done.returncode, ", ".join(served)

    return ask


def by_python(name):
    def ask(shop, *headers):
        context = client_context(shop.authority.pem)
        where = {"netns": shop.space.client, "tls": context, "server_name": name.replace("IP", shop.space.ip)}
        try:
            with Client(shop.space.ip, PORT, **where) as client:
                return 0, client.get("/", *headers).header("x-served-by")
        except ssl.SSLCertVerificationError as error:
            return error.verify_code, ""

    return ask


CLIENTS = {
    "curl": by_curl(HOST),
    "curl, upper case": by_curl(HOST.upper()),
    "curl, trailing dot": by_curl(f"{HOST}."),
    "curl, underscore": by_curl(UNDERSCORE),
    "curl, address": by_curl("IP"),
    "curl, address, unverified": by_curl("IP", "-k"),
    "openssl": by_s_client("-servername", HOST, "-verify_hostname", HOST),
    "openssl, upper case": by_s_client("-servername", HOST.upper()),
    "openssl, trailing dot": by_s_client("-servername", f"{HOST}."),
    "openssl, underscore": by_s_client("-servername", UNDERSCORE),
    "openssl, one label": by_s_client("-servername", "orders"),
    "openssl, no server name": by_s_client("-noservername"),
    "openssl, no server name, by address": by_s_client("-noservername", "-verify_ip", "IP"),
    "openssl, address as server name": by_s_client("-servername", "IP"),
    "openssl, empty label": by_s_client("-servername", "a..b"),
    "Python": by_python(HOST),
    "Python, upper case": by_python(HOST.upper()),
    "Python, address": by_python("IP"),
}
EXPLAINED = ("UpstreamUnverified", "SniUnsupported")


@pytest.fixture(scope="module", params=CERTIFICATES)
def shop(request, tmp_path_factory):
    make = CERTIFICATES[request.param]
    with scene.shop(tmp_path_factory.mktemp("names"), ipv6=False, start=False) as shop:
        shop.app_certificate, own = (make(shop.authority, shop.space.ip) for _ in range(2))
        shop.node.write("orders.yaml", *scene.documents(shop.space, own))
        shop.node.start()
        with scene.shop_nginx(shop) as shop.app:
            yield request.param, shop


def asked(shop, client, *headers):
    """What the client saw, and the server name that the app saw (None: the app was not asked)."""
    before = len(shop.app.requests())
    answer = CLIENTS[client](shop, *headers)
    if answer[1] == "app":
        until(lambda: len(shop.app.requests()) > before, within=5, what="the app's log")
    new = shop.app.requests()[before:]
    return answer, new[-1]["sni"] if new else None


def test_the_table(shop):
    certificate, shop = shop
    alone = {client: asked(shop, client) for client in CLIENTS}
    through, diverted, said = {}, {}, {}
    with shop.intercept() as running:
        for client in CLIENTS:
            through[client] = asked(shop, client)
            diverted[client] = asked(shop, client, scene.DEV)[0]
            said[client] = [kind for kind in EXPLAINED if kind in shop.conditions()]
        until(lambda: "none of its requests is matched" in running.process.output(), within=5, what="to be told")
    assert through == alone
    for client, (code, served_by) in diverted.items():
        assert code == alone[client][0][0], client
        if served_by == "app":
            assert said[client], (client, certificate)
    served = {client for client, (_, served_by) in diverted.items() if served_by == "handler"}
    assert {client for client in CLIENTS if alone[client][0][1] == "app"} - served <= WIRED[certificate]


ALWAYS_WIRED = {"openssl, address as server name", "openssl, empty label"}
"""Server names that no TLS library sends: they cannot be sent on."""
OTHER_NAMES = {"openssl, one label"}
"""The client does not verify the name, Sidestep does."""
WIRED = {
    "names": ALWAYS_WIRED | OTHER_NAMES,
    "a wildcard": ALWAYS_WIRED | OTHER_NAMES,
    "an address": ALWAYS_WIRED | OTHER_NAMES | {"openssl, upper case", "openssl, trailing dot", "openssl, underscore"},
    "a common name": ALWAYS_WIRED | OTHER_NAMES | {"openssl, underscore"},
}
