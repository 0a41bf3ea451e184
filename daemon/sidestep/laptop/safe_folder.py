"""Whether a folder of this machine stays where it is: nobody else can put another one, or a link, in its place.

Who may write a folder may rename what is in it, unless the folder is sticky and the entry somebody else's (unlink(2),
EPERM). So every folder above must be root's or the user's own, and others must not be able to write it; the user's own
group may, unless the user is root. A link on the way must be root's or the user's, too. Windows has other rights, and
is not asked.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


def resolved(folder: Path) -> Path:
    """Return the folder by a path without links, but for its last part. Raises OSError."""
    return folder.parent.resolve(strict=True) / folder.name


def unsafe_above(folder: Path) -> str:
    """Return what is wrong with one of the folders above one, for an error; "": nothing. Raises OSError."""
    if not hasattr(os, "geteuid"):
        return ""
    owners = {0, os.geteuid()}
    for above in (*folder.absolute().parents, *resolved(folder).parents):
        if above.lstat().st_uid not in owners:
            return f"lies below {above}, which belongs to another user"
    for above in resolved(folder).parents:
        status = above.stat()
        own_group = os.geteuid() != 0 and status.st_gid == os.getegid()
        others = stat.S_IWOTH if own_group else stat.S_IWOTH | stat.S_IWGRP
        if status.st_mode & others and not status.st_mode & stat.S_ISVTX:
            return f"lies below {above}, where others may write"
    return ""
