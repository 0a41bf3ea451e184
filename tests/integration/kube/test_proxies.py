"""An API server over TLS that only a proxy can reach: commands, a session, hostile proxies; a token that rotates."""

import asyncio
import base64
import os
import ssl
import subprocess
import sys
import traceback

import pytest
import yaml

from sidestep.aio.client_tls import default_client_context
from sidestep.kube import transport
from sidestep.kube.access import ClusterAccess, in_cluster
from sidestep.kube.api import Api
from sidestep.kube.errors import UnreachableClusterError
from sidestep.model.errors import ConfigurationError
from tests.harness.authority import Authority
from tests.harness.connect_proxy import ConnectProxy
from tests.harness.fake_api import FakeApi
from tests.harness.warm import SIDESTEP
from tests.integration.kube.cluster import Laptop, daemon, resource, until
from tests.integration.kube.test_cluster_cache import populate
from tests.integration.kube.test_watch import Seen, pod, watching

NAME = "api.cluster.test"
TARGET = f"{NAME}:6443"
CREDENTIALS = "Basic " + base64.b64encode(b"ada:p@ss").decode()


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    """(server's context, client's context, CA's file) of the API server's name."""
    authority = Authority()
    folder = authority.issue(NAME, "127.0.0.1", ips=["127.0.0.1", "127.0.0.77"]).write(tmp_path_factory.mktemp("tls"))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    return server, default_client_context(cafile=folder / "ca.crt"), folder / "ca.crt"


def run(identity, test, *, name=NAME, **proxy_options):
    async def body():
        async with FakeApi() as api:
            await api.stop()
            api.tls, port = identity[0], api.port
            await api.start()
            async with ConnectProxy({f"{name}:6443": ("127.0.0.1", port)}, **proxy_options) as proxy:
                api.client = {"host": NAME, "port": 6443, "tls": identity[1], "proxy": proxy.url}
                await asyncio.wait_for(test(api, proxy), 60)

    asyncio.run(body())


def kubeconfig(folder, identity, **cluster):
    path = folder / "config"
    authority = base64.b64encode(identity[2].read_bytes()).decode()
    settings = {"server": f"https://{TARGET}", "certificate-authority-data": authority, **cluster}
    value = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "a",
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a", "namespace": "shop"}}],
        "clusters": [{"name": "a", "cluster": settings}],
        "users": [{"name": "a", "user": {"token": "let-me-in"}}],
    }
    path.write_text(yaml.safe_dump(value))
    return path


async def sidestep(*words, **env):
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    process = await asyncio.create_subprocess_exec(
        SIDESTEP,
        *map(str, words),
        env={**clean, "HOME": "/nonexistent", **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await asyncio.wait_for(process.communicate(), 50)
    return process.returncode, out.decode(), errors.decode()


@pytest.mark.parametrize("by", ["HTTPS_PROXY", "https_proxy", "proxy-url"])
def test_list_through_a_proxy(identity, tmp_path, by):
    async def test(api, proxy):
        await populate(api)
        url = proxy.url.replace("://", "://ada:p%40ss@")
        path = kubeconfig(tmp_path, identity, **({"proxy-url": url} if by == "proxy-url" else {}))
        env = {} if by == "proxy-url" else {by: url}
        code, text, errors = await sidestep("list", "--kubeconfig", path, **env)
        assert (code, errors) == (0, "")
        assert "orders" in text
        assert proxy.requests[0] == f"CONNECT {TARGET} HTTP/1.1"

    run(identity, test, authorization=CREDENTIALS)


def test_no_proxy_is_honoured(identity, tmp_path):
    async def test(api, proxy):
        path = kubeconfig(tmp_path, identity)
        code, _, errors = await sidestep("list", "--kubeconfig", path, HTTPS_PROXY=proxy.url, NO_PROXY=".cluster.test")
        assert code != 0
        assert "cannot be reached" in errors
        assert "proxy" not in errors
        assert proxy.requests == []

    run(identity, test)


def test_an_intercept_through_a_proxy(identity):
    async def test(api, proxy):
        async with daemon(api) as node:
            laptop = Laptop(api)
            await until(lambda: laptop.ear.active == 1, what="active")
            await until(lambda: len(node.cluster.intercepts()) == 1, what="the daemon serves it")
            await laptop.end()
            assert resource(api) is None
        assert len(proxy.requests) >= 4
        assert set(proxy.requests) == {f"CONNECT {TARGET} HTTP/1.1"}

    run(identity, test)


def test_a_proxy_that_speaks_tls_itself(identity):
    async def test(api, proxy):
        assert proxy.url.startswith("https://")
        client = Api(api.access())
        await client.get("/api/v1/pods")
        await client.aclose()
        assert proxy.requests == [f"CONNECT {TARGET} HTTP/1.1"]

    run(identity, test, tls=identity[0])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"silent": True}, "does not answer"),
        ({"answer": b"HTTP/1.1 407 No\r\ncontent-length: 0\r\n\r\n"}, "status 407; it wants credentials"),
        ({"answer": b"HTTP/1.1 502 \x1b[31m\r\n\r\n"}, "status 502"),
        ({"endless": True}, "broke off"),
        ({"answer": b"HTTP/1.1 200 " + b"x" * 1_000_000}, "broke off"),
        ({"answer": b""}, "broke off"),
        ({"answer": b"\0nonsense\r\n\r\n"}, "broke off"),
        ({"answer": b"HTTP/1.1 200 OK\r\n\r\nnot TLS"}, "the API server"),
    ],
    ids=["silent", "407", "502", "endless head", "long line", "closes", "nonsense", "no tunnel"],
)
def test_a_hostile_proxy_is_one_clear_line(identity, options, reason, monkeypatch):
    monkeypatch.setattr(transport, "CONNECT_TIMEOUT", 1.0)

    async def test(api, proxy):
        client = Api(api.access())
        with pytest.raises(UnreachableClusterError) as caught:
            await client.get("/api/v1/pods")
        await client.aclose()
        assert reason in str(caught.value)
        assert f"proxy {proxy.url}" in str(caught.value)
        assert str(caught.value).isprintable()

    run(identity, test, **options)


def issued(authority, folder, *names, ips=()):
    """(context of a server with this certificate, context of a client that trusts its authority)."""
    path = authority.issue(*names, ips=ips).write(folder)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path / "tls.crt", path / "tls.key")
    return server, default_client_context(cafile=path / "ca.crt")


def test_an_https_proxy_is_verified_by_its_own_name_whatever_that_of_the_api_server(tmp_path):
    authority = Authority()
    server = issued(authority, tmp_path / "server", NAME)
    right = issued(authority, tmp_path / "right", "proxy", ips=["127.0.0.77"])[0]

    async def named(api, proxy):
        client = Api(api.access(host="elsewhere.test", server_name=NAME))
        await client.get("/api/v1/pods")
        await client.aclose()
        assert proxy.requests == ["CONNECT elsewhere.test:6443 HTTP/1.1"]

    async def misnamed(api, proxy):
        client = Api(api.access(server_name=NAME))
        with pytest.raises(UnreachableClusterError, match=rf"^TLS with the proxy {proxy.url} failed: IP address mism"):
            await client.get("/api/v1/pods")
        await client.aclose()
        assert proxy.requests == []

    run(server, named, tls=right, name="elsewhere.test")
    run(server, misnamed, tls=server[0])


def test_credentials_reach_a_proxy_of_a_server_without_tls():
    async def body():
        answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
        async with ConnectProxy({}, answer=answer) as proxy:
            url = proxy.url.replace("://", "://ada:p%40ss@")
            client = Api(ClusterAccess("api.test", 8080, None, proxy=url, authorization=lambda: "Bearer x"))
            assert await client.get("/api") == b"hi"
            await client.aclose()
            assert proxy.requests == ["GET http://api.test:8080/api HTTP/1.1"]
            assert f"proxy-authorization: {CREDENTIALS}\r\n".lower() in proxy.heads[0].lower()

    asyncio.run(asyncio.wait_for(body(), 20))


@pytest.mark.parametrize(
    "options",
    [
        {"silent": True},
        {"authorization": "Basic other"},
        {"answer": b"HTTP/1.1 502 No\r\n\r\n"},
        {"endless": True},
        {"answer": b""},
        {"answer": b"\0nonsense\r\n\r\n"},
        {"answer": b"HTTP/1.1 200 OK\r\n\r\nnot TLS"},
        {"port": 1},
    ],
    ids=["silent", "407", "502", "endless head", "closes", "nonsense", "no tunnel", "not there"],
)
def test_credentials_of_a_proxy_stand_in_no_text(identity, options, monkeypatch, caplog):
    """Neither in an error nor in those behind it, which a log of a crash shows, nor in what asyncio and aiohttp log."""
    monkeypatch.setattr(transport, "CONNECT_TIMEOUT", 1.0)
    port = options.pop("port", None)

    async def test(api, proxy):
        url = proxy.url.replace("://", "://ada:p%40ss@")
        access = api.access(proxy=url if port is None else f"http://ada:p%40ss@127.0.0.77:{port}")
        client = Api(access)
        with pytest.raises(UnreachableClusterError) as caught:
            await client.get("/api/v1/pods")
        await client.aclose()
        texts = [repr(access), repr(client), *traceback.format_exception(caught.value), caplog.text]
        error = caught.value
        while error is not None:
            texts += [repr(error), str(error)]
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        whole = "".join(texts)
        assert not [each for each in ("p@ss", "p%40ss", CREDENTIALS.split()[1]) if each in whole]

    run(identity, test, **options)


def test_a_proxy_that_is_not_there(identity):
    async def test(api, proxy):
        client = Api(api.access(proxy="http://127.0.0.77:1"))
        with pytest.raises(UnreachableClusterError, match=r"the proxy \S+:1 cannot be reached: connection"):
            await client.get("/api/v1/pods")
        await client.aclose()

    run(identity, test)


@pytest.mark.parametrize("url", ["socks5://127.0.0.1:1", "http://", "http://[x", "http://a:port"])
def test_a_setting_that_is_no_http_proxy(identity, url):
    async def test(api, _proxy):
        with pytest.raises(ConfigurationError, match="proxy-url of the kubeconfig"):
            Api(api.access(proxy=url))

    run(identity, test)


def test_a_certificate_of_another_name_is_said(identity):
    async def test(api, proxy):
        proxy.routes = {"other.test:6443": proxy.routes[TARGET]}
        client = Api(api.access(host="other.test"))
        with pytest.raises(UnreachableClusterError, match=r"TLS with .* failed: Hostname mismatch"):
            await client.get("/api/v1/pods")
        await client.aclose()

    run(identity, test)


def test_a_token_that_the_api_server_rotates(identity, tmp_path, monkeypatch):
    """A bound token lives for ten minutes of the server's clock; the kubelet writes the next one after eight."""

    async def test(api, _proxy):
        clock, refused = [0.0], []
        issued = {"Bearer first": 0.0, "Bearer second": 480.0}

        def accepts(authorization):
            found = authorization in issued and clock[0] < issued[authorization] + 600
            refused.extend([] if found else [authorization])
            return found

        api.accepts = accepts
        for name, text in {"token": "first\n", "namespace": "sidestep", "ca.crt": identity[2].read_text()}.items():
            (tmp_path / name).write_text(text)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(api.port))
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.77:1")  # not for loopback
        access = in_cluster(tmp_path)
        api.access = lambda: access
        async with watching(api) as (watch, seen):
            assert isinstance(seen, Seen)
            await until(lambda: any("watch=true" in each for each in api.requests))
            clock[0] = 480.0
            (tmp_path / "token").write_text("second\n")
            clock[0] = 601.0
            assert not api.accepts("Bearer first")
            refused.clear()
            api.cut()
            await api.put("/api/v1", "pods", pod("after"))
            await until(lambda: "after" in seen.there)
            assert (watch.problem, refused, seen.lists) == (None, [], 1)

    run(identity, test)


PARTS = """
import sys
import {modules}
assert not {{each.partition(".")[0] for each in sys.modules}} & {{{packages}}}
"""


@pytest.mark.parametrize(
    ("modules", "packages"),
    [
        ("sidestep.proxy.runtime.zygote, sidestep.proxy.runtime.worker", "'kubernetes', 'aiohttp', 'websockets'"),
        ("sidestep.kube.secret_fetch", "'kubernetes', 'aiohttp', 'websockets'"),
        ("sidestep.cli.main, sidestep.node.daemon", "'kubernetes', 'aiohttp', 'websockets'"),
    ],
    ids=["pod proxy", "one-shot reader", "without a cluster"],
)
def test_who_speaks_to_no_api_server_loads_no_client(modules, packages):
    subprocess.run([sys.executable, "-c", PARTS.format(modules=modules, packages=packages)], check=True, timeout=60)


def test_the_transport_loads_few_parts_of_the_library():
    code = "import sys; import sidestep.kube.transport; print(*(each for each in sys.modules if 'kubernetes' in each))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = done.stdout.split()
    assert "kubernetes.aio.client.rest" in loaded
    assert len(loaded) < 20
    assert not [each for each in loaded if "models" in each or "informer" in each or "dynamic" in each]


@pytest.mark.parametrize(
    "use",
    [
        "from kubernetes import client; client.CoreV1Api",
        "import kubernetes; kubernetes.client.CoreV1Api; assert kubernetes.__version__",
        "import kubernetes.aio; kubernetes.aio.client.CoreV1Api; kubernetes.aio.watch.Watch",
    ],
)
def test_the_rest_of_the_library_is_there_for_whoever_asks_later(use):
    code = f"import sidestep.kube.transport\n{use}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
