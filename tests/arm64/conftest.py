"""A Debian root for arm64 with bcc, kernel headers and the Python packages of requirements.lock."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.debian import cache, foreign
from tests.debian.room import Bind, Room

SUITE, PYTHON = "bookworm", "311"
PACKAGES = ("base-files", "bash", "coreutils", "libc-bin", "python3", "python3-bpfcc", "libstdc++6", "zlib1g")
HEADERS = ("linux-headers-arm64",)

_PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_17_aarch64", "manylinux_2_28_aarch64")
_WITHIN = 15 * 60.0


def pytest_collection_modifyitems(items):
    for item in items:
        if "/tests/arm64/" in str(item.path):
            item.add_marker(pytest.mark.privileged)


@dataclass(frozen=True)
class Arm64:
    """Runs commands on emulated arm64, in a room."""

    room: Room

    def run(self, *command: str, within: float) -> subprocess.CompletedProcess[bytes]:
        """Run a command, `within` seconds. Its output is captured, its exit status is the caller's to judge."""
        return subprocess.run(self.room.run(*command), capture_output=True, check=False, timeout=within)


@pytest.fixture(scope="session")
def emulation(request):
    """This machine starts arm64 programs."""
    assert os.geteuid() == 0, "these tests need root: sudo make arm64"
    cache.uncaptured = request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled
    with foreign.emulated():
        yield


@pytest.fixture(scope="session")
def arm64(emulation):
    """The repository's folder, and the packages of requirements.lock, in a Debian with bcc and kernel headers."""
    root = foreign.root("arm64", SUITE, PACKAGES, alone=HEADERS)
    packages = installed(cache.REPOSITORY / "requirements.lock", PYTHON)
    return Arm64(
        Room(
            root,
            binds=[Bind(cache.REPOSITORY, "/repository", True), Bind(packages, "/packages", True)],
            environment={"PYTHONPATH": "/repository/daemon:/packages", "PYTHONDONTWRITEBYTECODE": "1"},
            directory="/repository",
        )
    )


def installed(lock: Path, python: str) -> Path:
    """A folder with the arm64 wheels of `lock` for this version of Python ("311"), unpacked. Raises BuildError."""

    def make(partial: Path) -> None:
        wheels = partial / "wheels"
        command: list[str | Path] = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "download"]
        command += ["--no-deps", "--require-hashes", "--only-binary=:all:", "--implementation=cp"]
        command += [f"--platform={each}" for each in _PLATFORMS] + [f"--abi={each}" for each in (f"cp{python}", "abi3")]
        command += ["--abi=none", f"--python-version={python}", "-d", wheels, "-r", lock]
        what = f"fetching the arm64 wheels of {lock.name} for Python {python[0]}.{python[1:]}"
        cache.step(what, command, log=partial / "log", within=_WITHIN, attempts=cache.ATTEMPTS)
        for wheel in sorted(wheels.iterdir()):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(partial / "packages")
        cache.remove(wheels)

    name = f"arm64-{lock.name.removesuffix('.lock')}-py{python}"
    return cache.entry(name, cache.digest(lock, python), make) / "packages"
