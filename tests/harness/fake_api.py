"""A small API server, real HTTP on loopback: lists, watches, 410, 403, patches, deletes, port-forwards.

It does what the API conventions say and no more. Tests reach into it: `put` and `remove` are what other clients do,
`forbid` is RBAC, `compact` makes old resourceVersions too old, `cut` breaks all connections, `stop` and `start` are an
API server that goes and comes back on the same port.

Connections are accepted by hand: what `asyncio.Server` has accepted but not yet met would outlive `stop`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import itertools
import json
import re
import socket
import ssl
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from sidestep.aio.time_limit import time_limit
from sidestep.kube.access import ClusterAccess
from tests.harness.waiting import SLACK

COLLECTION = re.compile(r"(/api/v1|/apis/[^/]+/[^/]+)/(?:namespaces/([^/]+)/)?([a-z]+)(?:/([^/]+))?(?:/([a-z]+))?")
CLUSTER_SCOPED = {"namespaces", "nodes", "clusterinspectionpolicies"}


PATIENCE = 30.0
"""Seconds for a test on an idle machine."""


def run(test: Callable[[FakeApi], Coroutine[Any, Any, None]]) -> None:
    """Run a test that is given an API server."""

    async def body() -> None:
        async with FakeApi() as api, time_limit(PATIENCE * SLACK):
            await test(api)

    asyncio.run(body())


class FakeApi:
    def __init__(self, *, known: set[str] | None = None) -> None:
        self.objects: dict[tuple[str, str], dict[tuple[str, str], dict[str, Any]]] = {}
        self.log: list[tuple[int, str, tuple[str, str], dict[str, Any]]] = []
        self.version = 100
        self.oldest = 0
        self.port = 0
        self.requests: list[str] = []
        self.forbidden: list[tuple[str, str, str]] = []
        self.unknown: set[str] = set()
        self.failing: dict[str, int] = {}
        """Statuses with which requests of these paths are answered."""
        self.forwards: dict[tuple[str, int], tuple[str, int]] = {}
        self.forwarding = asyncio.Event()
        """While it is not set, what daemons send through port-forwards stands still."""
        self.forwarding.set()
        self.clock = itertools.count()
        self.stamp = lambda: f"2025-01-01T00:00:{next(self.clock) % 60:02}Z"
        """The creationTimestamp of the next object."""
        self._changed = asyncio.Condition()
        self._listener: socket.socket | None = None
        self._fresh: set[socket.socket] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self.bookmarks = 0.2
        self.tls: ssl.SSLContext | None = None
        self.client: dict[str, Any] = {}
        """What a client's access has beside the address."""
        self.accepts = lambda _authorization: True
        """Whether a request with this Authorization is let in; 401 otherwise."""

    # --- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    async def stop(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        self.cut()

    def cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()
        for sock in self._fresh:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the client has thought better of it
            sock, _ = listener.accept()
            sock.setblocking(False)
            self._fresh.add(sock)
            task = asyncio.get_running_loop().create_task(self._serve(sock))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        for _turn in range(3):
            await asyncio.sleep(0)  # aborted transports close in the next turns

    def access(self, **changes: Any) -> ClusterAccess:
        return ClusterAccess(**{"host": "127.0.0.1", "port": self.port, "tls": None, **self.client, **changes})

    # --- what other clients do --------------------------------------------------------------------------------------

    async def put(self, group: str, plural: str, value: dict[str, Any]) -> dict[str, Any]:
        """Create or replace; `group` is /api/v1 or /apis/G/V."""
        metadata = value.setdefault("metadata", {})
        if plural not in CLUSTER_SCOPED:
            metadata.setdefault("namespace", "default")
        collection = self.objects.setdefault((group, plural), {})
        key = (metadata.get("namespace", ""), metadata["name"])
        known = collection.get(key)
        metadata.setdefault("uid", known["metadata"]["uid"] if known else str(uuid.uuid4()))
        metadata.setdefault("creationTimestamp", self.stamp())
        await self._record("MODIFIED" if known else "ADDED", (group, plural), value)
        collection[key] = value
        return value

    async def remove(self, group: str, plural: str, namespace: str, name: str) -> None:
        value = self.objects[group, plural].pop((namespace, name))
        await self._record("DELETED", (group, plural), value)

    def get(self, group: str, plural: str, namespace: str, name: str) -> dict[str, Any] | None:
        return self.objects.get((group, plural), {}).get((namespace, name))

    def forbid(self, verb: str, plural: str, namespace: str = "") -> None:
        self.forbidden.append((verb, plural, namespace))

    def compact(self) -> None:
        """Everything up to now is too old to be watched from."""
        self.oldest = self.version + 1
        self.version += 1

    async def _record(self, kind: str, collection: tuple[str, str], value: dict[str, Any]) -> None:
        self.version += 1
        value["metadata"]["resourceVersion"] = str(self.version)
        self.log.append((self.version, kind, collection, json.loads(json.dumps(value))))
        async with self._changed:
            self._changed.notify_all()

    # --- HTTP -------------------------------------------------------------------------------------------------------

    async def _serve(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock, ssl=self.tls)
        except OSError:
            self._fresh.discard(sock)
            return  # no TLS, or the client does not like the certificate
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        self._writers.add(writer)
        self._fresh.discard(sock)
        try:
            while await self._request(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        except asyncio.IncompleteReadError:
            return False
        first, *lines = head.split("\r\n")
        method, target, _ = first.split(" ")
        headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines if line}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.requests.append(f"{method} {target}")
        if not self.accepts(headers.get("authorization", "")):
            await self._status(writer, 401, "Unauthorized", "Unauthorized")
            return True
        url = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        match = COLLECTION.fullmatch(url.path)
        if match is None or match.group(3) in self.unknown or url.path in self.unknown:
            await self._answer(writer, 404, b"404 page not found\n")
            return True
        if url.path in self.failing:
            await self._status(writer, self.failing[url.path], "InternalError", "etcdserver: request is too large")
            return True
        group, namespace, plural, name, sub = (unquote(part or "") for part in match.groups())
        if plural == "namespaces" and namespace:
            plural, name = "namespaces", namespace
        verb = {"GET": "get" if name else "list", "POST": "create", "PATCH": "patch", "DELETE": "delete"}[method]
        if query.get("watch"):
            verb = "watch"
        resource = f"{plural}/{sub}" if sub else plural
        for bad_verb, bad_plural, bad_namespace in self.forbidden:
            if bad_verb in {verb, "*"} and bad_plural == resource and bad_namespace in {"", namespace}:
                text = f'{resource} is forbidden: User "eve" cannot {verb} resource "{resource}"'
                await self._status(writer, 403, "Forbidden", text)
                return True
        if sub == "portforward":
            await self._forward(reader, writer, headers, name, int(query["ports"]))
            return False
        collection = self.objects.setdefault((group, plural), {})
        if verb == "watch":
            await self._watch(writer, (group, plural), namespace, query, shown=_form(headers, query))
            return False
        await self._act(writer, verb, (group, plural), collection, namespace, name, sub, query, headers, body)
        return True

    async def _act(
        self, writer, verb, key: tuple[str, str], collection, namespace, name, sub, query, headers, body
    ) -> None:
        found = collection.get((namespace, name)) if name else None
        if name and found is None:
            await self._status(writer, 404, "NotFound", f'{key[1]} "{name}" not found')
            return
        match verb:
            case "list":
                await self._list(writer, collection, namespace, query, shown=_form(headers, query))
            case "get":
                await self._json(writer, 200, found)
            case "create":
                value = json.loads(body)
                value["metadata"]["namespace"] = namespace
                if (namespace, value["metadata"]["name"]) in collection:
                    await self._status(writer, 409, "AlreadyExists", "already exists")
                    return
                await self._json(writer, 201, await self.put(*key, value))
            case "patch":
                patch = json.loads(body)
                wanted = patch.get("metadata", {}).get("resourceVersion")
                if wanted and wanted != found["metadata"]["resourceVersion"]:
                    await self._status(writer, 409, "Conflict", "the object has been modified")
                    return
                part = "status" if sub == "status" else "spec"
                merged = json.loads(json.dumps(found))
                if headers["content-type"].startswith("application/strategic"):
                    patch = _by_type(merged, patch)
                merged[part] = _merge(merged.get(part, {}), patch.get(part, {}))
                if merged == found:
                    await self._json(writer, 200, found)
                    return
                await self._json(writer, 200, await self.put(*key, merged))
            case "delete":
                preconditions = (json.loads(body) if body else {}).get("preconditions", {})
                if preconditions.get("uid", found["metadata"]["uid"]) != found["metadata"]["uid"]:
                    await self._status(writer, 409, "Conflict", "uid")
                    return
                await self.remove(*key, namespace, name)
                await self._json(writer, 200, {"kind": "Status", "status": "Success"})

    async def _list(self, writer, collection, namespace, query, *, shown: str) -> None:
        begin = 0
        if "continue" in query:
            version, _, number = base64.b64decode(query["continue"]).decode().partition(":")
            if int(version) < self.oldest:
                await self._status(writer, 410, "Expired", "The provided continue parameter is too old")
                return
            begin = int(number)
        items = [value for value in collection.values() if _selected(value, namespace, query)]
        limit = int(query.get("limit", 0)) or len(items)
        page = items[begin : begin + limit]
        metadata = {"resourceVersion": str(self.version)}
        if begin + limit < len(items):
            metadata["continue"] = base64.b64encode(f"{self.version}:{begin + limit}".encode()).decode()
        if shown == "table":
            await self._json(
                writer, 200, {"kind": "Table", "metadata": metadata, "rows": [_row(each) for each in page]}
            )
            return
        await self._json(writer, 200, {"metadata": metadata, "items": [_shown(each, shown) for each in page]})

    async def _watch(self, writer, key, namespace, query, *, shown: str) -> None:
        since = int(query["resourceVersion"])
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        if since < self.oldest:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            await self._chunk(writer, {"type": "ERROR", "object": gone})
            writer.write(b"0\r\n\r\n")
            return
        deadline = asyncio.get_running_loop().time() + float(query.get("timeoutSeconds", 60))
        while asyncio.get_running_loop().time() < deadline:
            for version, kind, collection, value in self.log:
                if version > since and collection == key and _selected(value, namespace, query):
                    await self._chunk(writer, {"type": kind, "object": _shown(value, shown)})
            since = self.version
            try:
                async with time_limit(self.bookmarks), self._changed:
                    if since == self.version:
                        await self._changed.wait()
            except TimeoutError:
                await self._chunk(
                    writer, {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(self.version)}}}
                )
            if writer.is_closing():
                return
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def _forward(self, reader, writer, headers, pod: str, port: int) -> None:
        """A kubelet's port-forward by WebSocket, v4.channel.k8s.io."""
        assert headers["sec-websocket-protocol"] == "v4.channel.k8s.io"
        accept = base64.b64encode(
            hashlib.sha1(headers["sec-websocket-key"].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        ).decode()
        writer.write(
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
            f"sec-websocket-accept: {accept}\r\nsec-websocket-protocol: v4.channel.k8s.io\r\n\r\n".encode()
        )
        for channel in (0, 1):
            writer.write(_frame(bytes([channel]) + port.to_bytes(2, "little")))
        try:
            host, real = self.forwards.get((pod, port), ("127.0.0.1", port))
            inner_reader, inner_writer = await asyncio.open_connection(host, real)
        except OSError as error:
            writer.write(_frame(b"\x01" + f"error forwarding port {port}: {error}".encode()))
            writer.write(bytes([0x88, 2, 3, 232]))
            await writer.drain()
            return
        self._writers.add(inner_writer)

        async def outward() -> None:
            while data := await inner_reader.read(16384):
                await self.forwarding.wait()
                writer.write(_frame(b"\x00" + data))
                await writer.drain()
            writer.transport.abort()

        task = asyncio.get_running_loop().create_task(outward())
        try:
            while True:
                first, second = await reader.readexactly(2)
                size = second & 0x7F
                if size >= 126:
                    size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8), "big")
                mask = await reader.readexactly(4)
                data = bytes(byte ^ mask[index % 4] for index, byte in enumerate(await reader.readexactly(size)))
                if first & 0x0F == 8:
                    return
                assert data[0] == 0
                inner_writer.write(data[1:])
                await inner_writer.drain()
        finally:
            self._writers.discard(inner_writer)
            inner_writer.close()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _chunk(self, writer, value: Any) -> None:
        data = json.dumps(value).encode() + b"\n"
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await writer.drain()

    async def _status(self, writer, code: int, reason: str, message: str) -> None:
        value = {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}
        await self._json(writer, code, value)

    async def _json(self, writer, code: int, value: Any) -> None:
        await self._answer(writer, code, json.dumps(value).encode())

    async def _answer(self, writer, code: int, body: bytes) -> None:
        writer.write(f"HTTP/1.1 {code} X\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()


def _merge(old: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(old) if isinstance(old, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merge(merged.get(name), value)
    return merged


def _by_type(old: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """A strategic merge patch of conditions (patchMergeKey: type) as a merge patch."""
    known = {each["type"]: each for each in old.get("status", {}).get("conditions", ())}
    known |= {each["type"]: each for each in patch["status"]["conditions"]}
    return {**patch, "status": {**patch["status"], "conditions": [*known.values()]}}


def _selected(value: dict[str, Any], namespace: str, query: dict[str, str]) -> bool:
    if namespace and value["metadata"].get("namespace") != namespace:
        return False
    field, _, wanted = query.get("fieldSelector", "").partition("=")
    match field:
        case "metadata.name":
            return value["metadata"]["name"] == wanted
        case "spec.nodeName":
            return value.get("spec", {}).get("nodeName") == wanted
        case _:
            return True


def _form(headers: dict[str, str], query: dict[str, str]) -> str:
    """What is asked for of an object: "whole", "metadata", or the cells of a "table"."""
    if "as=Table" in headers["accept"]:
        assert query["includeObject"] == "None"
        return "table"
    return "metadata" if "PartialObject" in headers["accept"] else "whole"


def _row(value: dict[str, Any]) -> dict[str, Any]:
    return {"cells": [value["metadata"]["name"], value.get("type", "Opaque"), len(value.get("data") or {}), "5d"]}


def _shown(value: dict[str, Any], form: str) -> dict[str, Any]:
    if form == "table":
        version = {"resourceVersion": value["metadata"]["resourceVersion"]}
        return {"kind": "Table", "metadata": version, "rows": [_row(value)]}
    return {"kind": "PartialObjectMetadata", "metadata": value["metadata"]} if form == "metadata" else value


def _frame(payload: bytes) -> bytes:
    size = len(payload)
    head = bytes([0x82, size]) if size < 126 else bytes([0x82, 126]) + size.to_bytes(2, "big")
    return head + payload
