"""Container images without a registry: Debian by debootstrap, everything else by buildah on top of it.

    base      the minimal Debian that deploy/Dockerfile begins with  (debootstrap, cached as a tar)
    app       nginx and curl on the base              images/app.Dockerfile
    pause     what holds a pod's namespaces           images/pause.Dockerfile
    sidestep  the product                             deploy/Dockerfile, the same file that users build

Each image is an archive in the cache, named after a digest of all that went into it. buildah keeps its layers there
too, so a change in Sidestep's own sources costs the last layer only. Wheels are fetched by pip outside of the build,
with this machine's settings, and given to it as a folder. buildah is bookworm's, whatever the machine has.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.debian import cache, roots
from tests.debian.room import Bind, Room

HERE = Path(__file__).resolve().parent
DEPLOY = cache.REPOSITORY / "deploy"

BASE = "localhost/sidestep-e2e/base:latest"
APP = "localhost/sidestep-e2e/app:latest"
PAUSE = "localhost/sidestep-e2e/pause:latest"
SIDESTEP = re.findall(r"^ *image: *(\S+)", (DEPLOY / "daemonset.yaml").read_text(), re.MULTILINE)[0]
"""The name by which deploy/daemonset.yaml asks for the product."""

SUITE = re.findall(r"^ARG BASE=debian:(\w+)-slim$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)[0]
"""The Debian release of the images: the one that users' images have."""
PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
"""Python's version in a Debian release."""
GLIBC = 36
"""The second number of glibc 2.N up to which wheels are taken; bookworm has this one."""

BUILDER = ("buildah", "ca-certificates")

_BUILD = 15 * 60.0
"""Seconds that one attempt at one step may take on a busy machine; the longest takes one on an idle one."""


@dataclass(frozen=True)
class Images:
    """Archives to import, by the name that their image has."""

    archives: dict[str, Path]


def images() -> Images:
    """All images, built where they are missing or stale. Raises BuildError."""
    with cache.locked("images") as folder:
        work = folder / "images"
        work.mkdir(exist_ok=True)
        root = roots.minimal(SUITE)
        base_key = key_of(root)
        app_key = cache.digest(base_key, HERE / "images" / "app.Dockerfile")
        pause_key = cache.digest(app_key, HERE / "images" / "pause.Dockerfile")
        sidestep_key = cache.digest(base_key, *_sources())
        archives = {
            APP: work / f"app-{app_key}.tar",
            PAUSE: work / f"pause-{pause_key}.tar",
            SIDESTEP: work / f"sidestep-{sidestep_key}.tar",
        }
        if all(archive.is_file() for archive in archives.values()):
            return Images(archives)
        builder = Builder(work)
        builder.base(BASE, packed(work, root))
        if not archives[APP].is_file() or not archives[PAUSE].is_file():
            file = HERE / "images" / "app.Dockerfile"
            builder.build(APP, file, f"--build-arg=BASE={BASE}", context=HERE / "images")
            builder.save(APP, archives[APP])
            file = HERE / "images" / "pause.Dockerfile"
            builder.build(PAUSE, file, f"--build-arg=APP={APP}", context=HERE / "images")
            builder.save(PAUSE, archives[PAUSE])
        if not archives[SIDESTEP].is_file():
            found = wheels(work, platform.machine())
            options = [
                f"--build-arg=BASE={BASE}",
                *from_wheels(found),
                f"--ignorefile={DEPLOY / 'Dockerfile.dockerignore'}",
            ]
            # The first stage gets a name, so that its layers are kept for the next build.
            for name, more in (("localhost/sidestep-e2e/build:latest", ["--target=build"]), (SIDESTEP, [])):
                builder.build(name, DEPLOY / "Dockerfile", *options, *more, context=cache.REPOSITORY)
            builder.save(SIDESTEP, archives[SIDESTEP])
        builder.prune()
        return Images(archives)


def _sources() -> list[Path]:
    """Everything that deploy/Dockerfile copies."""
    names = ("Dockerfile", "Dockerfile.dockerignore", "build.lock", "runtime.lock", "wheel-options")
    root = cache.REPOSITORY
    rest = [root / name for name in ("pyproject.toml", "README.md", "LICENSE", "bpf", "daemon/sidestep")]
    return [*(DEPLOY / name for name in names), *rest]


def key_of(root: Path) -> str:
    """A key for the image that is made of a root."""
    return cache.digest(cache.digest(root.parent.name), HERE / "images" / "base.Dockerfile")


def packed(work: Path, root: Path) -> Path:
    """A root as a tar."""
    archive = work / f"base-{cache.digest(root.parent.name)}.tar"
    if not archive.is_file():
        partial, log = archive.with_suffix(".partial"), work / "base.log"
        cache.step("packing it", ["tar", "--numeric-owner", "-C", root, "-cf", partial, "."], log=log, within=_BUILD)
        partial.rename(archive)
        cache.forget(f"{work.name}/base-*.tar", but=archive)
    return archive


def wheels(work: Path, *machines: str) -> Path:
    """A folder with the wheels of both locks for machines of these names (uname(2))."""
    locks = [DEPLOY / "build.lock", DEPLOY / "runtime.lock"]
    folder = work / f"wheels-{cache.digest(SUITE, *machines, *locks)}"
    if not folder.is_dir():
        partial, log = work / "wheels.partial", work / "wheels.log"
        shutil.rmtree(partial, ignore_errors=True)
        log.unlink(missing_ok=True)
        for machine in machines:
            command: list[str | Path] = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q"]
            command += ["--no-deps", "--require-hashes", "--only-binary=:all:", "-d", partial, *_for_the_image(machine)]
            for lock in locks:
                command += ["-r", lock]
            what = f"fetching the wheels of the image for {machine}"
            cache.step(what, command, log=log, within=_BUILD, attempts=cache.ATTEMPTS)
        partial.rename(folder)
        cache.forget(f"{work.name}/wheels-*", but=folder)
    return folder


def from_wheels(folder: Path) -> list[str]:
    """Options of buildah for a build of deploy/Dockerfile that takes its packages from a folder."""
    return [f"--volume={folder}:/wheels:ro", "--build-arg=PIP_OPTIONS=--no-index --find-links=/wheels"]


def _for_the_image(machine: str) -> list[str]:
    """pip's options for the interpreter of the image, which may be another than this one."""
    python = PYTHONS[SUITE]
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(17, GLIBC + 1)]
    platforms += [f"manylinux2014_{machine}", f"linux_{machine}"]
    words = ["--implementation=cp", f"--python-version={python}"]
    words += [f"--abi={abi}" for abi in (f"cp{python.replace('.', '')}", "abi3", "none")]
    return words + [f"--platform={one}" for one in platforms]


class Builder:
    """buildah with a store of its own, in `work`, which is a folder of the cache.

    `architecture` is what images are built for, by Debian's name; the machine's own one if it is empty.
    """

    def __init__(self, work: Path, *, architecture: str = "") -> None:
        self._work = work
        self._options = [f"--arch={architecture}"] if architecture else []
        seen = [work, HERE / "images", cache.REPOSITORY]
        self._room = Room(roots.root("buildah", "bookworm", BUILDER), binds=[Bind(path, str(path)) for path in seen])
        # The run root, where buildah notes its mounts, lasts as long as they do: as the room.
        self._words: list[str | Path] = ["buildah", "--root", work / "store", "--runroot", "/run/buildah"]
        self._words += ["--storage-driver", storage_driver(work)]

    def base(self, name: str, archive: Path) -> None:
        """The image of a root that `packed` has put into an archive."""
        context = self._work / "base"
        context.mkdir(exist_ok=True)
        shutil.copy2(HERE / "images" / "base.Dockerfile", context)
        if not (context / "base.tar").exists() or not (context / "base.tar").samefile(archive):
            (context / "base.tar").unlink(missing_ok=True)
            os.link(archive, context / "base.tar")
        self.build(name, context / "base.Dockerfile", context=context)

    def _buildah(self, *words: str | Path) -> list[str]:
        return self._room.run(*self._words, *words)

    def build(self, name: str, file: Path, *options: str, context: Path) -> None:
        """`buildah bud`; layers that did not change are taken from the store."""
        log = self._log(name)
        log.unlink(missing_ok=True)
        command = ["bud", "--isolation=chroot", "--layers", "--pull-never", *self._options, "-f", file, "-t", name]
        command += [*options, context]
        # Again begins after the last layer that is finished.
        cache.step(f"building {name}", self._buildah(*command), log=log, within=_BUILD, attempts=cache.ATTEMPTS)

    def save(self, name: str, archive: Path) -> None:
        """Write the image into an archive that containerd imports."""
        partial = archive.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        short = archive.name.partition("-")[0]
        cache.step(
            f"saving {name}",
            self._buildah("push", "-q", name, f"docker-archive:{partial}:{name}"),
            log=self._log(name),
            within=_BUILD,
        )
        partial.rename(archive)
        cache.forget(f"{self._work.name}/{short}-*.tar", but=archive)

    def join(self, name: str, members: Sequence[str]) -> None:
        """Make `name` the list of images that are the same for several architectures."""
        script = '"$@" manifest rm "$NAME" || true; "$@" manifest create "$NAME"; '
        script += 'for each in $MEMBERS; do "$@" manifest add "$NAME" "containers-storage:$each"; done'
        words = ["env", f"NAME={name}", f"MEMBERS={' '.join(members)}", "sh", "-euc", script, "sh", *self._words]
        cache.step(f"joining {name}", self._room.run(*words), log=self._log(name), within=_BUILD)

    def unpack(self, name: str, folder: Path) -> None:
        """Write the files of the image, of a list the one for the architecture, into a folder that does not exist."""
        script = 'container=$("$@" from --pull-never $OPTIONS "$NAME"); cp -a "$("$@" mount "$container")" "$FOLDER"; '
        script += '"$@" rm "$container"'
        variables = [f"NAME={name}", f"FOLDER={folder}", f"OPTIONS={' '.join(self._options)}"]
        words = ["env", *variables, "sh", "-euc", script, "sh", *self._words]
        cache.step(f"unpacking {name}", self._room.run(*words), log=self._log(name), within=_BUILD)

    def prune(self) -> None:
        """Forget images that no name holds any more: the layers of older versions."""
        subprocess.run(self._buildah("rmi", "--prune"), capture_output=True, check=False, timeout=300)

    def _log(self, name: str) -> Path:
        return self._work / f"{name.rpartition('/')[2].partition(':')[0]}.log"


def storage_driver(folder: Path) -> str:
    """`overlay`, or `vfs` where `folder` lies on an overlay itself (in a container), which cannot be stacked."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True).stdout.strip()
    return "vfs" if kind == "overlayfs" else "overlay"
