"""The ConfigMaps that inspection policies name, read one by one: `get` of a named object is all the right it takes.

Each is read at once when it is first wanted, and every POLL seconds after that. One that cannot be read now keeps what
was read before; one that is gone, or that was never read, is a ConfigMap with a `problem`. Calls `on_change` when
anything of that has changed.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from sidestep.aio.tasks import Tasks
from sidestep.aio.time_limit import time_limit
from sidestep.kube.api import Api
from sidestep.kube.errors import ApiError
from sidestep.kube.paths import escape
from sidestep.model.errors import SidestepError
from sidestep.model.inventory import ConfigMap

ConfigMapName = tuple[str, str]
"""(namespace, name)."""

POLL: Final = 15.0
"""Seconds between two readings."""
MAX_MAPS: Final = 64
"""ConfigMaps of one node that are read."""
MAX_SIZE: Final = 4 * 1024 * 1024
"""Bytes of an answer. A ConfigMap holds at most 1 MiB, before the escapes of JSON."""


class _Fields(msgspec.Struct):
    data: dict[str, Any] | None = None


class PolicyConfigMaps:
    """See the module. `service_account` is `namespace:name`, for the command that grants a missing right."""

    def __init__(self, api: Api, *, tasks: Tasks, on_change: Callable[[], None], service_account: str) -> None:
        self._api = api
        self._tasks = tasks
        self._on_change = on_change
        self._service_account = service_account
        self._wanted: frozenset[ConfigMapName] = frozenset()
        self._more = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self.found: Mapping[ConfigMapName, ConfigMap] = {}
        """Those that are wanted and have been read, or could not be."""
        self.revision = 0
        """Changes with `found`."""

    def want(self, names: frozenset[ConfigMapName]) -> None:
        """Read exactly these ConfigMaps from now on."""
        if names == self._wanted:
            return
        self._wanted = names
        self._keep({name: each for name, each in self.found.items() if name in names})
        self._more.set()
        if names and self._reading is None:
            self._reading = self._tasks.start(self._read_all(), name="ConfigMaps of policies")
        elif not names and self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _keep(self, found: Mapping[ConfigMapName, ConfigMap]) -> None:
        if found != self.found:
            self.found = found
            self.revision += 1

    async def _read_all(self) -> None:
        while True:
            self._more.clear()
            before = self.revision
            for name in sorted(self._wanted):
                read = await self._read(name)
                if name in self._wanted:
                    self._keep({**self.found, name: read})
            if self.revision != before:
                self._on_change()
            try:
                async with time_limit(POLL):
                    await self._more.wait()
            except TimeoutError:
                pass

    async def _read(self, wanted: ConfigMapName) -> ConfigMap:
        namespace, name = wanted
        if wanted not in sorted(self._wanted)[:MAX_MAPS]:
            return ConfigMap(namespace, name, {}, f"policies name more than {MAX_MAPS} ConfigMaps on this node")
        try:
            answer = await self._api.get(f"/api/v1/namespaces/{escape(namespace)}/configmaps/{escape(name)}")
            if len(answer) > MAX_SIZE:
                return ConfigMap(namespace, name, {}, f"ConfigMap {namespace}/{name} is too large")
            read = msgspec.json.decode(answer, type=_Fields)
        except ApiError as error:
            if error.status == 404:
                return ConfigMap(namespace, name, {}, f"there is no ConfigMap {namespace}/{name}")
            if error.status in {401, 403}:
                return ConfigMap(namespace, name, {}, self._advice(namespace, name))
            return self._unread(wanted, error)
        except SidestepError as error:
            return self._unread(wanted, error)
        except msgspec.MsgspecError:
            return ConfigMap(namespace, name, {}, f"ConfigMap {namespace}/{name} cannot be decoded")
        texts = {key: text for key, text in (read.data or {}).items() if isinstance(text, str)}
        return ConfigMap(namespace, name, texts)

    def _unread(self, wanted: ConfigMapName, error: SidestepError) -> ConfigMap:
        """What was read before, if anything was: the API server will answer again."""
        before = self.found.get(wanted)
        if before is not None and not before.problem:
            return before
        return ConfigMap(*wanted, {}, f"ConfigMap {'/'.join(wanted)} cannot be read: {error}")

    def _advice(self, namespace: str, name: str) -> str:
        return (
            f"ConfigMap {namespace}/{name} may not be read; allow it with: kubectl create rolebinding "
            f"sidestep-policy-config --clusterrole=sidestep-policy-config --serviceaccount={self._service_account} "
            f"-n {shlex.quote(namespace)}"
        )
