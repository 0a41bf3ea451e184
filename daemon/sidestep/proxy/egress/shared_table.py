"""The table of original destinations, mapped into this process: the kernel writes entries, the proxy marks them.

The mapping lives as long as the object; the descriptor is closed at once. It is the only memory that the proxy shares
with anybody after its sandbox is locked (`sandbox.seccomp`).
"""

from __future__ import annotations

import mmap
import os
from ipaddress import IPv4Network

from sidestep.model.egress_table import ENTRIES_MAX, EgressTable, Original, table_size
from sidestep.model.errors import BugError, PeerError
from sidestep.policy.inspection_match import Address


class SharedTable:
    """Implements `outbound.Table`. Takes over `fd`. Raises PeerError for what is no such table, OSError."""

    def __init__(self, fd: int, *, network: IPv4Network, entries: int) -> None:
        try:
            if not 0 < entries <= ENTRIES_MAX:
                raise PeerError(f"a table of {entries} entries")
            self._memory = mmap.mmap(fd, table_size(entries), mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            self._table = EgressTable(memoryview(self._memory), network=network, entries=entries)
        except BugError as error:
            raise PeerError(f"a table that cannot be used: {error}") from error
        finally:
            os.close(fd)

    def take(self, local: Address, port: int) -> Original | None:
        """As `EgressTable.take`."""
        return self._table.take(local, port)
