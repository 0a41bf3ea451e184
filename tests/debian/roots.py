"""Debian roots made by debootstrap, once, in the cache.

A root is named by its purpose and keyed by all that it is made of. The minimal system of a suite is an entry of its
own; a root with packages begins as a copy of it and has them installed by apt inside, so that any package of the suite
will do. Works alike on Debian 12 and 13, for suites that are older or newer than the machine's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.debian import cache, mirror
from tests.debian.room import Room

RECIPE = 1
"""To be raised when the way roots are made changes."""

_SCRIPTS = Path("/usr/share/debootstrap/scripts")
_WITHIN = 15 * 60.0
"""Seconds that one attempt at one step may take on a busy machine; the longest takes two minutes on an idle one."""

_NO_SERVICES = "#!/bin/sh\nexit 101\n"


def root(name: str, suite: str, packages: Sequence[str] = ()) -> Path:
    """The root folder of a Debian `suite` with `packages`, for a purpose. Raises BuildError.

    It must not be written to: enter it by `tests.debian.room.Room`.
    """
    origin = mirror.mirror()
    parts = (str(RECIPE), suite, origin, mirror.architecture())
    if not packages:
        return (
            cache.entry(f"debian-{suite}", cache.digest(*parts), lambda partial: _minimal(partial, suite, origin))
            / "root"
        )
    key = cache.digest(*parts, *sorted(packages))
    return cache.entry(f"{name}-{suite}", key, lambda partial: _furnished(partial, name, suite, packages)) / "root"


def _minimal(partial: Path, suite: str, origin: str) -> None:
    target, log = partial / "root", partial / "log"
    (partial / "stage").mkdir()
    target.mkdir()
    # Suites younger than the machine's debootstrap are made as sid is.
    script = _SCRIPTS / suite
    command: list[str | Path] = [f"--keyring={mirror.KEYRING}", suite, target, origin]
    command += [] if script.exists() else [_SCRIPTS / "sid"]
    cache.step(
        f"making a minimal Debian {suite} with debootstrap, once",
        # In a mount namespace of its own, so that nothing stays mounted when it is interrupted.
        [
            "sh",
            "-c",
            'find "$0" -mindepth 1 -delete; exec unshare --mount debootstrap --variant=minbase "$@"',
            target,
            *command,
        ],
        log=log,
        within=_WITHIN,
        environment=mirror.environment(),
        attempts=cache.ATTEMPTS,
    )
    _empty_caches(target)


def _furnished(partial: Path, name: str, suite: str, packages: Sequence[str]) -> None:
    target, log = partial / "root", partial / "log"
    (partial / "stage").mkdir()
    cache.step(
        f"copying it for {name}",
        ["cp", "-a", "--reflink=auto", root("", suite), target],
        log=log,
        within=_WITHIN,
    )
    policy = target / "usr/sbin/policy-rc.d"
    policy.write_text(_NO_SERVICES)
    policy.chmod(0o755)
    room = Room(target, in_place=True, environment={"DEBIAN_FRONTEND": "noninteractive"})
    install = "apt-get -qq --error-on=any update; exec apt-get -qq -y --no-install-recommends "
    install += '-o Dpkg::Options::=--force-unsafe-io -o Acquire::Retries=3 install "$@"'
    cache.step(
        f"installing {len(packages)} packages and what they need in {name}",
        room.run("sh", "-euc", install, "sh", *packages),
        log=log,
        within=_WITHIN,
        attempts=cache.ATTEMPTS,
    )
    policy.unlink()
    _empty_caches(target)


def _empty_caches(target: Path) -> None:
    for pattern in ("var/cache/apt/archives/*.deb", "var/cache/apt/*.bin", "var/lib/apt/lists/*_*"):
        for path in target.glob(pattern):
            path.unlink()
