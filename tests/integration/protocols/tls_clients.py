"""ClientHellos of real TLS clients, each as the bytes that it sent to a socket of ours."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import subprocess
from collections.abc import Sequence

from sidestep.protocols.client_hello import ClientHello, Incomplete, parse
from tests.harness.client_hello import hello_of_ssl
from tests.harness.waiting import until

NAME = "app.test"
TIMEOUT = 30.0
"""Seconds that a client has to send its hello."""

_OLD = "DEFAULT@SECLEVEL=0"
_ALL = "ALL:COMPLEMENTOFALL@SECLEVEL=0"


def _curl(*options: str) -> tuple[str, ...]:
    return ("curl", "-sk", "-m", "20", "--resolve", f"{NAME}:PORT:127.0.0.1", *options, f"https://{NAME}:PORT/")


def _openssl(*options: str) -> tuple[str, ...]:
    return ("openssl", "s_client", "-connect", "127.0.0.1:PORT", "-servername", NAME, *options)


def _gnutls(*options: str) -> tuple[str, ...]:
    return ("gnutls-cli", "--insecure", "--sni-hostname", NAME, "-p", "PORT", *options, "127.0.0.1")


PROGRAMS = {
    "curl": _curl(),
    "curl, an address": ("curl", "-sk", "-m", "20", "https://127.0.0.1:PORT/"),
    "curl, HTTP/1.1": _curl("--http1.1"),
    "curl, no ALPN": _curl("--no-alpn"),
    "curl, TLS 1.3": _curl("--tlsv1.3"),
    "curl, up to TLS 1.2": _curl("--tls-max", "1.2"),
    "curl, up to TLS 1.1": _curl("--tlsv1.0", "--tls-max", "1.1", "--ciphers", _OLD),
    "curl, its own ciphers": _curl("--ciphers", "ECDHE-RSA-AES128-GCM-SHA256:AES128-SHA"),
    "curl, its own curves": _curl("--curves", "P-256:X25519"),
    "openssl": _openssl(),
    "openssl, no name": ("openssl", "s_client", "-connect", "127.0.0.1:PORT", "-noservername"),
    "openssl, TLS 1.2": _openssl("-tls1_2"),
    "openssl, TLS 1.3": _openssl("-tls1_3"),
    "openssl, TLS 1.1": _openssl("-tls1_1", "-cipher", _OLD),
    "openssl, TLS 1.0": _openssl("-tls1", "-cipher", _OLD),
    "openssl, each cipher": _openssl("-cipher", _ALL),
    "openssl, each cipher, TLS 1.2": _openssl("-tls1_2", "-cipher", _ALL),
    "openssl, h2": _openssl("-alpn", "h2,http/1.1"),
    "openssl, ALPN of one byte": _openssl("-alpn", "x"),
    "openssl, ALPN with punctuation": _openssl("-alpn", "h2!,h2"),
    "openssl, groups": _openssl("-groups", "P-521:X448"),
    "openssl, signatures": _openssl("-sigalgs", "RSA-PSS+SHA512:ECDSA+SHA256"),
    "openssl, OCSP and no tickets": _openssl("-status", "-no_ticket"),
    "openssl, short records": _openssl("-maxfraglen", "1024"),
    "nghttp": ("nghttp", "-n", "https://127.0.0.1:PORT/"),
    "h2load": ("h2load", "-n1", "https://127.0.0.1:PORT/"),
    "gnutls": _gnutls(),
    "gnutls, TLS 1.2": _gnutls("--priority", "NORMAL:-VERS-ALL:+VERS-TLS1.2"),
    "gnutls, the oldest": _gnutls("--priority", "NORMAL:-VERS-ALL:+VERS-TLS1.0:+VERS-TLS1.1"),
    "gnutls, secure": _gnutls("--priority", "SECURE256", "--alpn", "h2"),
}
"""Command lines; PORT stands for the port to connect to."""


def of_program(arguments: Sequence[str]) -> bytes:
    """Run a client against a listening socket until its hello is whole."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        server.settimeout(TIMEOUT)
        command = [argument.replace("PORT", port) for argument in arguments]
        client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            until(lambda: _can_accept(server) or client.poll() is not None, within=TIMEOUT, what=lambda: str(command))
            assert _can_accept(server), (command, client.communicate()[1])
            accepted, _ = server.accept()
            with accepted:
                return _read_hello(accepted)
        finally:
            client.kill()
            client.communicate()


def of_grpc() -> bytes:
    """The hello of grpcio, whose TLS is BoringSSL."""
    import grpc

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(TIMEOUT)
        channel = grpc.secure_channel(f"127.0.0.1:{server.getsockname()[1]}", grpc.ssl_channel_credentials())
        with contextlib.closing(channel):
            grpc.channel_ready_future(channel)
            accepted, _ = server.accept()
            with accepted:
                return _read_hello(accepted)


def all_hellos() -> dict[str, bytes]:
    """The hellos of every client, by the client's name."""
    return {
        **{name: of_program(arguments) for name, arguments in PROGRAMS.items()},
        "grpcio": of_grpc(),
        "python": hello_of_ssl(),
        "python, no name": hello_of_ssl(name=None),
        "python, h2": hello_of_ssl(alpn=("h2", "http/1.1")),
        "python, TLS 1.3": hello_of_ssl(least=ssl.TLSVersion.TLSv1_3),
        "python, TLS 1.2": hello_of_ssl(most=ssl.TLSVersion.TLSv1_2, ciphers="ECDHE+AESGCM"),
    }


def _can_accept(server: socket.socket) -> bool:
    return bool(select.select([server], [], [], 0)[0])


def _read_hello(accepted: socket.socket) -> bytes:
    accepted.settimeout(TIMEOUT)
    data = b""
    while isinstance(parse(data), Incomplete):
        received = accepted.recv(65536)
        assert received, "the client closed before its hello was whole"
        data += received
    parsed = parse(data)
    assert isinstance(parsed, ClientHello), parsed
    return data[: parsed.size]
