"""The product's image for both architectures, as `deploy/release --check` builds it, on bases that debootstrap makes.

What belongs to the architecture that is not the machine's runs emulated meanwhile: see `tests.debian.foreign.emulated`.
"""

from __future__ import annotations

import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sidestep
from tests.debian import cache, roots
from tests.e2e import images

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
"""The kernel's name of an architecture (uname(2)) by Debian's."""
BASE = "localhost/sidestep-release-base:latest"
LIST = f"localhost/sidestep-release:{sidestep.__version__}"
"""The images of a release, as deploy/release names them."""
RELEASE = cache.REPOSITORY / "build" / "release"

_WITHIN = 2 * 3600.0
"""Seconds that the release check may take on a busy machine: emulated, packages take half an hour to be installed."""


@dataclass(frozen=True)
class Release:
    """What is in `build/release`."""

    root: Path
    """The files of the image for arm64."""
    archive: Path = RELEASE / "image.tar"
    sbom: Path = RELEASE / "sbom.cdx.json"

    def config(self, architecture: str) -> dict[str, Any]:
        """The configuration of the image for an architecture (OCI image layout, "index.json")."""
        with tarfile.open(self.archive) as archive:
            (entry,) = self._read(archive, "index.json")["manifests"]
            (found,) = [
                each
                for each in self._blob(archive, entry)["manifests"]
                if each["platform"] == {"architecture": architecture, "os": "linux"}
            ]
            return self._blob(archive, self._blob(archive, found)["config"])

    def _blob(self, archive: tarfile.TarFile, descriptor: dict[str, Any]) -> dict[str, Any]:
        return self._read(archive, _path(descriptor))

    @staticmethod
    def _read(archive: tarfile.TarFile, name: str) -> dict[str, Any]:
        file = archive.extractfile(name)
        assert file is not None, name
        document: dict[str, Any] = json.load(file)
        return document


def _path(descriptor: dict[str, Any]) -> str:
    return f"blobs/{descriptor['digest'].replace(':', '/')}"


def release() -> Release:
    """Run the check for both architectures; layers that did not change are taken from the cache. Raises BuildError."""
    with cache.locked("images-arm64") as folder:
        work = folder / "images-arm64"
        (work / "run").mkdir(parents=True, exist_ok=True)
        bases = []
        for architecture in MACHINES:
            builder = images.Builder(work, architecture=architecture)
            base = images.packed(work, roots.minimal(images.SUITE, architecture))
            bases.append(f"localhost/sidestep-release-base-{architecture}:latest")
            builder.base(bases[-1], base)
        builder.join(BASE, bases)
        storage = work / "storage.conf"
        values = {"driver": images.storage_driver(work), "graphroot": work / "store", "runroot": work / "run"}
        storage.write_text("[storage]\n" + "".join(f'{name} = "{value}"\n' for name, value in values.items()))
        environment = {
            "ARCHITECTURES": " ".join(MACHINES),
            "BASE": BASE,
            "BUILD_OPTIONS": "\n".join(images.from_wheels(images.wheels(work, *MACHINES.values()))),
            "BUILDAH_ISOLATION": "chroot",
            "BUILDAH_LAYERS": "true",
            "CONTAINERS_STORAGE_CONF": str(storage),
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        }
        log = work / "release.log"
        log.unlink(missing_ok=True)
        command = [cache.REPOSITORY / "deploy" / "release", "--check"]
        what = f"building a release for {' and '.join(MACHINES)}"
        cache.step(what, command, log=log, within=_WITHIN, environment=environment)
        return Release(_unpacked(work))


def _unpacked(work: Path) -> Path:
    """The root folder of the image for arm64, beside a folder `stage`, as rooms want it."""
    folder = work / "arm64"
    cache.remove(folder)
    (folder / "stage").mkdir(parents=True)
    images.Builder(work, architecture="arm64").unpack(LIST, folder / "root")
    return folder / "root"
