"""What `--save FILE.har` keeps of a session: each request once, with its answer if there is one.

    waiting   the answer of a request is to come, or its copy (`laptop.copied_requests`, for wiretaps: fields, body and
              trailers); both come in any order, a moment apart
    kept      with both; or without the answer at the end, or when WAITING others wait; or without the copy PATIENCE
              seconds after the answer: it was dropped

Numbers count anew when the tunnel breaks (`interrupted`), and clients' connections go on: requests are kept at once,
without the answers and copies that have not come, and copies without a request are dropped.

A copy is known by pod, client, method and target, in the order in which the client has sent them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

import click
from msgspec.structs import replace

from sidestep.cli.command import FilePath
from sidestep.cli.request_text import is_wanted
from sidestep.laptop.recorded_body import Body
from sidestep.model.secret_fields import REDACTED, SECRET
from sidestep.tunnel.messages import Answered, Event, Request

if TYPE_CHECKING:
    from sidestep.laptop.copied_requests import CopiedRequest

F = TypeVar("F", bound=Callable[..., object])
Key = tuple[str, str, int, str, str]

WAITING = 4096
"""Requests that wait for their answers; the oldest one is kept without, for a newer one."""
MAX_COPIES = 64 * 1024 * 1024
"""Bytes of the bodies of copies that wait for their requests; the oldest ones are dropped for newer ones."""
PATIENCE = 2.0
"""Seconds that an answered request waits for its copy."""


def save_option(command: F) -> F:
    """Add `--save FILE`; the command receives `save`, a path or None."""
    return click.option(
        "--save", type=FilePath(), metavar="FILE", help="Keep requests and answers in this file, too (HAR 1.2)."
    )(command)


class Archive(Protocol):
    """Where requests are kept: `har_file.HarFile`, or the live page."""

    def keep(self, request: Request, body: Body | None) -> None:
        """Keep a request with its answer, and its body if it was recorded."""

    def close(self) -> str:
        """No more will come; returns what to say of it."""


class SavedRequests:
    """See the module. `statuses`: only requests answered so are kept; `copied`: requests are copied, and kept whole;
    `secret`: with the values of credentials.
    """

    def __init__(
        self, archive: Archive, *, statuses: tuple[str, ...] = (), copied: bool = False, secret: bool = False
    ) -> None:
        self._archive = archive
        self._statuses = statuses
        self._copied = copied
        self._secret = secret
        self._unanswered: dict[tuple[str, int], Request] = {}
        self._uncopied: dict[Key, deque[tuple[Request, asyncio.TimerHandle]]] = {}
        """Answered, but for their copies; each key has one at least."""
        self._copies: dict[Key, deque[CopiedRequest]] = {}
        """In the order in which their keys came first; each key has one at least."""
        self._size = 0
        """Bytes of their bodies."""
        self._interrupted = 0.0
        """When the tunnel broke the last time: copies that began before are of no request of this one."""

    def event(self, event: Event) -> None:
        """Take an event of a session."""
        if isinstance(event, Request) and event.method:
            if event.answer is not None or not event.number:
                self._answered(event)
                return
            before = self._unanswered.pop((event.pod, event.number), None)
            if before is not None:  # of a tunnel that broke while those of other nodes did not
                self._answered(before)
            if len(self._unanswered) >= WAITING:
                self._answered(self._unanswered.pop(next(iter(self._unanswered))))
            self._unanswered[event.pod, event.number] = event
        elif isinstance(event, Answered):
            request = self._unanswered.pop((event.pod, event.number), None)
            if request is not None:
                self._answered(replace(request, answer=event.answer))

    def take(self, copy: CopiedRequest) -> None:
        """Take a request that was copied."""
        if copy.began < self._interrupted:
            return
        key = _key_of(copy)
        waiting = self._uncopied.get(key)
        if waiting:
            request, handle = waiting.popleft()
            handle.cancel()
            if not waiting:
                del self._uncopied[key]
            self._keep(request, copy)
            return
        self._copies.setdefault(key, deque()).append(copy)
        self._size += len(copy.body)
        while self._size > MAX_COPIES:
            self._pop(next(iter(self._copies)))

    def _pop(self, key: Key) -> CopiedRequest | None:
        copies = self._copies.get(key)
        if not copies:
            return None
        copy = copies.popleft()
        self._size -= len(copy.body)
        if not copies:
            del self._copies[key]
        return copy

    def _answered(self, request: Request) -> None:
        if not self._copied or request.lost == "dropped" or request.earlier:
            self._keep(request, None)
            return
        key = request.pod, request.client, request.client_port, request.method, request.path
        copy = self._pop(key)
        if copy is not None:
            self._keep(request, copy)
            return
        handle = asyncio.get_running_loop().call_later(PATIENCE, self._give_up, key)
        self._uncopied.setdefault(key, deque()).append((request, handle))

    def _give_up(self, key: Key) -> None:
        waiting = self._uncopied[key]
        request, handle = waiting.popleft()
        handle.cancel()
        if not waiting:
            del self._uncopied[key]
        self._keep(request, None)

    def interrupted(self) -> None:
        """The tunnel broke: no answer is to come, and no copy. One that was read in part is dropped, too."""
        unanswered, self._unanswered = self._unanswered, {}
        for request in unanswered.values():
            self._answered(request)
        self._give_up_all()
        self._interrupted = time.monotonic()
        self._copies.clear()
        self._size = 0

    def close(self) -> str:
        """Keep those that wait, and close the file; returns what to say of it."""
        for request in [*self._unanswered.values()]:
            key = request.pod, request.client, request.client_port, request.method, request.path
            self._keep(request, self._pop(key))
        self._unanswered.clear()
        self._give_up_all()
        return self._archive.close()

    def _give_up_all(self) -> None:
        for key in [*self._uncopied]:
            while key in self._uncopied:
                self._give_up(key)

    def _keep(self, request: Request, copy: CopiedRequest | None) -> None:
        if not is_wanted(request.answer, self._statuses):
            return
        if copy is None:
            self._archive.keep(request, None)
            return
        fields = _shown(copy.fields, secret=self._secret)
        body = Body(bytes(copy.body), _shown(copy.trailers, secret=self._secret), copy.is_cut)
        self._archive.keep(replace(request, fields=fields), body)


def _key_of(copy: CopiedRequest) -> Key:
    opening = copy.opening
    return opening.pod, opening.client, opening.client_port, _text(copy.method), _text(copy.target)


def _shown(fields: list[tuple[bytes, bytes]], *, secret: bool) -> tuple[tuple[str, str], ...]:
    return tuple(
        (_text(name), _text(value if secret or name.lower() not in SECRET else REDACTED)) for name, value in fields
    )


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
