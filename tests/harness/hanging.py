"""A file system that never answers, as a network file system whose server is gone."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MNT_DETACH = 2


@contextmanager
def hanging(folder: Path) -> Iterator[Path]:
    """Mount it on a new folder: FUSE (fuse(4)) whose server reads no request. Waiting processes can be killed."""
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        options = f"fd={server},rootmode=40000,user_id=0,group_id=0"
        if libc.mount(b"hanging", bytes(folder), b"fuse", 0, options.encode()) != 0:
            raise OSError(ctypes.get_errno(), "mounting a FUSE file system failed")
        try:
            yield folder
        finally:
            libc.umount2(bytes(folder), _MNT_DETACH)
    finally:
        os.close(server)  # whoever still waits gets ENOTCONN
