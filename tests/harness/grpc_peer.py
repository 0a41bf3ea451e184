"""grpcio as a process of its own, so that it can run inside a namespace.

    python -m tests.harness.grpc_peer serve NAME ADDRESS:PORT [--tls FOLDER]      prints the port
    python -m tests.harness.grpc_peer call ADDRESS:PORT [--ca FILE] [--ping MS]   a JSON list of calls on stdin

Messages are raw bytes. The methods of `shop.Orders`: Get (unary), Collect (client streaming), List (server streaming),
Chat (both), Fail (an error without a message: trailers only), Slow (until the deadline). Answers begin with the name
of their server; all calls of one client share one connection. A chat `in_turn` says each message once the one before is
answered; with `compressed` messages are compressed by gzip.
"""

from __future__ import annotations

import argparse
import json
import queue
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc

HOST = "orders.shop.test"


class Orders(grpc.GenericRpcHandler):
    """The service."""

    def __init__(self, name: str) -> None:
        self.name = name.encode()

    def service(self, details: Any) -> Any:
        made = {
            "Get": grpc.unary_unary_rpc_method_handler(self.get),
            "Collect": grpc.stream_unary_rpc_method_handler(self.collect),
            "List": grpc.unary_stream_rpc_method_handler(self.list),
            "Chat": grpc.stream_stream_rpc_method_handler(self.chat),
            "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "Slow": grpc.unary_unary_rpc_method_handler(self.slow),
        }
        return made.get(details.method.rpartition("/")[2])

    def get(self, request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("x-served-by", self.name.decode()), ("x-bin-bin", b"\x00\xff")))
        return self.name + b" " + request

    def collect(self, requests: Any, context: Any) -> bytes:
        return self.name + b" " + b"+".join(requests)

    def list(self, request: bytes, context: Any) -> Any:
        for number in range(int(request)):
            yield self.name + b" %d" % number

    def chat(self, requests: Any, context: Any) -> Any:
        for request in requests:
            yield self.name + b" " + request

    def fail(self, request: bytes, context: Any) -> bytes:
        context.abort(grpc.StatusCode.NOT_FOUND, f"{self.name.decode()}: no such order: ä")
        raise AssertionError("abort raises")

    def slow(self, request: bytes, context: Any) -> bytes:
        ended = threading.Event()
        context.add_callback(ended.set)
        print(f"deadline in {context.time_remaining():.1f}", flush=True)
        ended.wait(30)
        print("slow call over", flush=True)
        return self.name


def serve(name: str, address: str, tls: Path | None) -> None:
    """Serve until killed."""
    server = grpc.server(futures.ThreadPoolExecutor(16), options=(("grpc.so_reuseport", 0),))
    server.add_generic_rpc_handlers((Orders(name),))
    if tls is None:
        port = server.add_insecure_port(address)
    else:
        pair = ((tls / "tls.key").read_bytes(), (tls / "tls.crt").read_bytes())
        port = server.add_secure_port(address, grpc.ssl_server_credentials((pair,)))
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


def call(address: str, ca: Path | None, ping: int) -> None:
    """Make the calls of stdin one after the other; print what came of each. `ping` is the pause between PINGs in ms."""
    options: tuple[tuple[str, str | int], ...] = (
        ("grpc.ssl_target_name_override", HOST),
        ("grpc.default_authority", HOST),
        ("grpc.enable_retries", 0),
    )
    if ping:
        options = (*options, ("grpc.keepalive_time_ms", ping), ("grpc.http2.max_pings_without_data", 0))
    if ca is None:
        channel = grpc.insecure_channel(address, options)
    else:
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(ca.read_bytes()), options)
    with channel:
        json.dump([_one(channel, each) for each in json.load(sys.stdin)], sys.stdout)


def _one(channel: grpc.Channel, wish: dict[str, Any]) -> dict[str, Any]:
    method = wish["method"]
    metadata = [tuple(pair) for pair in wish.get("metadata", ())]
    words = {"metadata": metadata, "timeout": wish.get("timeout", 20)}
    if wish.get("compressed"):
        words["compression"] = grpc.Compression.Gzip
    messages = [text.encode() for text in wish.get("messages", ["1"])]
    path = f"/shop.Orders/{method}"
    began = time.monotonic()
    made: Any = None
    answers: list[bytes] = []
    try:
        if method == "Collect":
            answer, made = channel.stream_unary(path).with_call(iter(messages), **words)
            answers = [answer]
        elif method == "List":
            made = channel.unary_stream(path)(messages[0], **words)
            answers = [*made]
        elif method == "Chat":
            answered: queue.SimpleQueue[None] = queue.SimpleQueue()
            made = channel.stream_stream(path)(_said(messages, answered, wish.get("in_turn", False)), **words)
            for answer in made:
                answers.append(answer)
                answered.put(None)
        else:
            answer, made = channel.unary_unary(path).with_call(messages[0], **words)
            answers = [answer]
    except grpc.RpcError as error:
        made = error
    return {
        "answers": [answer[:100].decode() for answer in answers],
        "sizes": [len(answer) for answer in answers],
        "code": made.code().name,
        "details": made.details(),
        "trailing": {key: str(value) for key, value in made.trailing_metadata() or ()},
        "seconds": time.monotonic() - began,
    }


def _said(messages: list[bytes], answered: queue.SimpleQueue[None], in_turn: bool) -> Iterator[bytes]:
    """The messages of a chat."""
    for message in messages:
        yield message
        if in_turn:
            try:
                answered.get(timeout=5)
            except queue.Empty:
                return


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["serve", "call"])
    parser.add_argument("words", nargs="+")
    parser.add_argument("--tls", type=Path)
    parser.add_argument("--ca", type=Path)
    parser.add_argument("--ping", type=int, default=0)
    options = parser.parse_args()
    if options.what == "serve":
        serve(options.words[0], options.words[1], options.tls)
    else:
        call(options.words[0], options.ca, options.ping)


if __name__ == "__main__":
    main()
