"""One Secret by blocking calls, from an API server behind TLS, with whatever it may answer."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading

import pytest

from sidestep.kube.errors import ApiError, UnreachableClusterError
from sidestep.kube.secret_fetch import fetch, prepare
from sidestep.model.errors import ConfigurationError
from tests.harness.authority import Authority
from tests.harness.peers import server_context

AUTHORITY = Authority("Cluster")
KUBERNETES = AUTHORITY.issue("kubernetes", ips=["127.0.0.1"])
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


def access(tmp_path, port, ca=AUTHORITY.pem):
    (tmp_path / "ca.crt").write_bytes(ca)
    (tmp_path / "token").write_text("sesame\n")
    return prepare("127.0.0.1", port, base="", ca_file=f"{tmp_path}/ca.crt", token_file=f"{tmp_path}/token")


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
