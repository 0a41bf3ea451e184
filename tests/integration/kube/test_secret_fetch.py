"""One Secret by blocking calls, from an API server behind TLS, with whatever it may answer."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
import traceback

import pytest

from sidestep.kube import secret_fetch
from sidestep.kube.errors import ApiError, UnreachableClusterError
from sidestep.kube.proxies import Proxy
from sidestep.kube.secret_fetch import fetch, prepare
from sidestep.model.errors import ConfigurationError
from tests.harness.authority import Authority
from tests.harness.connect_proxy import connect_proxy
from tests.harness.peers import server_context

AUTHORITY = Authority("Cluster")
KUBERNETES = AUTHORITY.issue("kubernetes", ips=["127.0.0.1", "127.0.0.77", "10.96.0.1"])
DATA = {"tls.key": base64.b64encode(b"key").decode()}


def answer(status, value):
    body = json.dumps(value).encode()
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    return b"HTTP/1.1 %d X\r\ntransfer-encoding: chunked\r\n\r\n" % status + chunks


@contextlib.contextmanager
def server(*answers, certificate=KUBERNETES):
    """An API server that gives these answers, one for each connection; the heads that it was sent."""
    heads, context = [], server_context(certificate, alpn=())
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(20)

    def serve():
        for each in answers:
            with contextlib.suppress(OSError):
                plain, _ = listener.accept()
                with context.wrap_socket(plain, server_side=True) as sock:
                    head = b""
                    while not head.endswith(b"\r\n\r\n"):
                        head += sock.recv(4096)
                    heads.append(head.decode())
                    sock.sendall(each)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1], heads
    finally:
        thread.join(20)
        listener.close()


def access(tmp_path, port, ca=AUTHORITY.pem, *, host="127.0.0.1", proxy=None):
    (tmp_path / "ca.crt").write_bytes(ca)
    (tmp_path / "token").write_text("sesame\n")
    files = {"ca_file": f"{tmp_path}/ca.crt", "token_file": f"{tmp_path}/token"}
    return prepare(host, port, base="", proxy=proxy, **files)


def test_a_secret_is_fetched_with_the_token(tmp_path):
    with server(answer(200, {"data": DATA})) as (port, heads):
        assert fetch(access(tmp_path, port), "shop", "orders-tls") == {"tls.key": b"key"}
    assert heads[0].startswith("GET /api/v1/namespaces/shop/secrets/orders-tls HTTP/1.1\r\n")
    assert "authorization: bearer sesame\r\n" in heads[0].lower()


def test_a_secret_that_may_be_listed_only_is_listed(tmp_path):
    forbidden = answer(403, {"message": "no"})
    with server(forbidden, answer(200, {"items": [{"data": DATA}]})) as (port, heads):
        assert fetch(access(tmp_path, port), "shop", "orders-tls") == {"tls.key": b"key"}
    assert "/secrets?fieldSelector=metadata.name%3Dorders-tls " in heads[1]
    with server(forbidden, answer(200, {"items": []})) as (port, _):
        assert fetch(access(tmp_path, port), "shop", "orders-tls") is None


@pytest.mark.parametrize(
    ("answers", "error", "text"),
    [
        ([answer(403, {"message": "may not"})] * 2, ApiError, "may not"),
        ([answer(500, {})], ApiError, "status 500"),
        ([b"rubbish\r\n\r\n"], UnreachableClusterError, "cannot be asked"),
        ([b""], UnreachableClusterError, "cannot be asked|broke off"),
        ([answer(200, {"data": {"tls.key": "@@"}})], ConfigurationError, "cannot be decoded"),
        ([answer(200, {"data": 1})], ConfigurationError, "cannot be decoded"),
        ([answer(200, {"data": {"tls.key": "A" * (5 << 20)}})], UnreachableClusterError, "bounds"),
    ],
)
def test_what_goes_wrong_is_said_without_what_was_read(tmp_path, answers, error, text):
    with server(*answers) as (port, _), pytest.raises(error, match=text):
        fetch(access(tmp_path, port), "shop", "orders-tls")


def test_another_server_is_not_told_the_token(tmp_path):
    with (
        server(answer(200, {}), certificate=Authority("Thief").issue("kubernetes", ips=["127.0.0.1"])) as (
            port,
            heads,
        ),
        pytest.raises(UnreachableClusterError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        fetch(access(tmp_path, port), "shop", "orders-tls")
    assert heads == []


def test_a_token_that_cannot_be_read_is_said(tmp_path):
    with pytest.raises(ConfigurationError, match="token"):
        prepare("127.0.0.1", 1, base="", ca_file="", token_file=str(tmp_path / "none"))


SERVICE = "10.96.0.1"
CREDENTIALS = "Basic " + base64.b64encode(b"ada:p@ss").decode()


@pytest.mark.parametrize("tls", [False, True], ids=["http proxy", "https proxy"])
def test_a_secret_is_fetched_through_a_proxy_which_sees_nothing_of_it(tmp_path, tls):
    context = server_context(KUBERNETES, alpn=()) if tls else None
    with (
        server(answer(200, {"data": DATA})) as (port, heads),
        connect_proxy({f"{SERVICE}:443": ("127.0.0.1", port)}, authorization=CREDENTIALS, tls=context) as proxy,
    ):
        through = Proxy(proxy.url, CREDENTIALS)
        assert fetch(access(tmp_path, 443, host=SERVICE, proxy=through), "shop", "orders-tls") == {"tls.key": b"key"}
    assert proxy.requests == [f"CONNECT {SERVICE}:443 HTTP/1.1"]
    assert "sesame" not in proxy.heads[0]
    assert "proxy-authorization" not in heads[0].lower()
    assert "authorization: bearer sesame\r\n" in heads[0].lower()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"silent": True}, "timed out"),
        ({"authorization": "Basic other"}, "status 407; it wants credentials in its URL"),
        ({"answer": b"HTTP/1.1 502 \x1b[31m\r\n\r\n"}, "status 502|cannot be asked"),
        ({"answer": b"HTTP/1.1 100 X\r\n\r\n" * 10_000}, "cannot be asked"),
        ({"endless": True}, "cannot be asked"),
        ({"answer": b""}, "cannot be asked"),
        ({"answer": b"\0nonsense\r\n\r\n"}, "cannot be asked"),
        ({"answer": b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"}, "speaks before"),
        ({"answer": b"HTTP/1.1 200 OK\r\n\r\n"}, "cannot be asked"),
    ],
    ids=["silent", "407", "502", "informational", "endless head", "closes", "nonsense", "speaks", "no tunnel"],
)
def test_a_proxy_that_does_otherwise_is_one_line_without_its_credentials(tmp_path, monkeypatch, options, reason):
    monkeypatch.setattr(secret_fetch, "TIMEOUT", 1.0)
    with connect_proxy({}, **options) as proxy:
        through = access(tmp_path, 443, host=SERVICE, proxy=Proxy(proxy.url, CREDENTIALS))
        with pytest.raises(UnreachableClusterError, match=reason) as caught:
            fetch(through, "shop", "orders-tls")
    assert proxy.url in str(caught.value)
    assert str(caught.value).isprintable()
    whole = f"{through!r} {through}" + "".join(traceback.format_exception(caught.value))
    assert "p@ss" not in whole
    assert CREDENTIALS.split()[1] not in whole
    assert "sesame" not in whole


def test_another_server_at_the_end_of_the_tunnel_is_not_told_the_token(tmp_path):
    thief = Authority("Thief").issue("kubernetes", ips=[SERVICE])
    with (
        server(answer(200, {}), certificate=thief) as (port, heads),
        connect_proxy({f"{SERVICE}:443": ("127.0.0.1", port)}) as proxy,
        pytest.raises(UnreachableClusterError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        fetch(access(tmp_path, 443, host=SERVICE, proxy=Proxy(proxy.url)), "shop", "orders-tls")
    assert heads == []
