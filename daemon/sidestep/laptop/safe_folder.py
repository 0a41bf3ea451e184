"""Whether a folder of this machine stays where it is: nobody else can put another one, or a link, in its place.

Who may write a folder may rename what is in it, unless the folder is sticky and the entry somebody else's (unlink(2),
EPERM). So every folder above must have an owner who is trusted, and others must not be able to write it. A link on the
way must have such an owner, too. Windows has other rights, and is not asked; lists of rights (ACLs) of macOS are not
looked at.

Trusted are

  * root and the user; for root also who called sudo(8), whose home it usually is;
  * in a user namespace the owners that it does not map (user_namespaces(7), overflowuid). Root of the machine is one of
    them, who owns `/home` and `/tmp` in a container such as Fedora's toolbox. Which one it is cannot be told;
  * the group that only the user has, which bears his name. A shared one, such as `staff` of macOS, is not.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

_ALL_MAPPED: Final = ["0", "0", "4294967295"]
_UID_MAP, _OVERFLOW = Path("/proc/self/uid_map"), Path("/proc/sys/kernel/overflowuid")


def resolved(folder: Path) -> Path:
    """Return the folder by a path without links, but for its last part. Raises OSError."""
    return folder.parent.resolve(strict=True) / folder.name


def unsafe_above(folder: Path) -> str:
    """Return what is wrong with one of the folders above one, for an error; "": nothing. Raises OSError."""
    if not hasattr(os, "geteuid"):
        return ""
    users = _users()
    owners = {0, *users, *_unmapped()}
    for above in (*folder.absolute().parents, *resolved(folder).parents):
        if above.lstat().st_uid not in owners:
            return f"lies below {above}, which belongs to another user"
    for above in resolved(folder).parents:
        status = above.stat()
        group = status.st_mode & stat.S_IWGRP
        if group and not _has_acl(above) and any(_is_own_group(status.st_gid, user) for user in users):
            group = 0
        if (status.st_mode & stat.S_IWOTH or group) and not status.st_mode & stat.S_ISVTX:
            return f"lies below {above}, where others may write"
    return ""


def _users() -> set[int]:
    """Return the user, and for root who called sudo."""
    caller = os.environ.get("SUDO_UID", "") if os.geteuid() == 0 else ""
    return {os.geteuid(), *([int(caller)] if caller.isdecimal() else [])}


def _unmapped() -> set[int]:
    """Return as whose the files appear that belong to owners outside of the user namespace; none in the first one."""
    try:
        if _UID_MAP.read_text().split() == _ALL_MAPPED:
            return set()
        return {int(_OVERFLOW.read_text())}
    except (OSError, ValueError):
        return set()  # not Linux


def _has_acl(folder: Path) -> bool:
    """Whether a folder has a list of rights (acl(5)); its group bits are then the most that anybody is given by it."""
    if not hasattr(os, "getxattr"):
        return False
    try:
        return bool(os.getxattr(folder, "system.posix_acl_access"))
    except OSError:
        return False


def _is_own_group(group: int, user: int) -> bool:
    """Whether a group has one member by convention, this user. Root's never has: containers of any user are in it."""
    import grp  # Windows has none
    import pwd

    if group == 0:
        return False
    try:
        name, found = pwd.getpwuid(user).pw_name, grp.getgrgid(group)
    except KeyError:
        return group == user
    return found.gr_name == name and set(found.gr_mem) <= {name}
