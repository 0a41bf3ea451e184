"""Images of programs, written as `docker save` archives: one layer, no base, no tool but tarfile.

A program brings the shared libraries that it loads, found by ldd inside of the Debian root it comes from.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def write(archive: Path, name: str, files: Mapping[str, Path | str], *, architecture: str) -> None:
    """Write an image called `name` with these files; a text is where a symbolic link points to."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for where, source in sorted(files.items()):
            if isinstance(source, Path):
                tar.add(source, where.lstrip("/"), recursive=False)
                continue
            link = tarfile.TarInfo(where.lstrip("/"))
            link.type, link.linkname = tarfile.SYMTYPE, source
            tar.addfile(link)
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"Env": [f"PATH={PATH}"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
    ).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": [f"{digest}.tar"]}]
    members = {
        config_name: config,
        f"{digest}.tar": layer.getvalue(),
        "manifest.json": json.dumps(manifest).encode(),
    }
    with tarfile.open(archive, "w") as tar:
        for member, content in members.items():
            information = tarfile.TarInfo(member)
            information.size = len(content)
            tar.addfile(information, io.BytesIO(content))


def with_libraries(root: Path, *programs: str) -> dict[str, Path]:
    """Programs of a Debian root, and every shared library that they load, by their paths in it."""
    found = {}
    for program in programs:
        found[program] = inside(root, program)
        listed = subprocess.run(["chroot", root, "ldd", program], capture_output=True, text=True, check=False).stdout
        for library in re.findall(r"(/\S+) \(0x", listed):
            found[library] = inside(root, library)
    return found


def inside(root: Path, name: str) -> Path:
    """The file that `name` is in a root, which its links must not lead out of."""
    path = root / name.lstrip("/")
    for folder in [*reversed(path.relative_to(root).parents[:-1]), path.relative_to(root)]:
        if (root / folder).is_symlink():
            target = os.readlink(root / folder)
            rest = path.relative_to(root / folder)
            return inside(root, os.path.normpath(os.path.join("/", folder.parent, target, rest)))
    return path
