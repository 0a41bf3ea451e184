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
_EMULATED = 60 * 60.0
"""The same for debootstrap when the packages' programs are emulated: a quarter of an hour on a busy machine."""

_BACKPORTED = {("bookworm", "suricata"): "suricata/bookworm-backports libhtp2/bookworm-backports"}
"""(suite, package) -> what to install of the suite's backports, where the suite itself has no such package."""

_NO_SERVICES = "#!/bin/sh\nexit 101\n"


def root(name: str, suite: str, packages: Sequence[str] = ()) -> Path:
    """The root folder of a Debian `suite` with `packages`, for a purpose. Raises BuildError.

    It must not be written to: enter it by `tests.debian.room.Room`.
    """
    if not packages:
        return minimal(suite)
    key = cache.digest(*_parts(suite, mirror.architecture()), *sorted(packages))
    return cache.entry(f"{name}-{suite}", key, lambda partial: _furnished(partial, name, suite, packages)) / "root"


def minimal(suite: str, architecture: str = "") -> Path:
    """The root folder of a minimal Debian, of this machine's architecture or of another. Raises BuildError.

    The programs of another architecture must run here meanwhile: see `tests.debian.foreign.emulated`.
    """
    own = mirror.architecture()
    meant = architecture or own
    name = f"debian-{suite}" if meant == own else f"debian-{suite}-{meant}"
    return (
        cache.entry(name, cache.digest(*_parts(suite, meant)), lambda partial: _minimal(partial, suite, meant)) / "root"
    )


def _parts(suite: str, architecture: str) -> tuple[str, ...]:
    """What every root is made of."""
    return (str(RECIPE), suite, mirror.mirror(), architecture)


def _minimal(partial: Path, suite: str, architecture: str) -> None:
    target, log = partial / "root", partial / "log"
    (partial / "stage").mkdir()
    target.mkdir()
    # Suites younger than the machine's debootstrap are made as sid is.
    script = _SCRIPTS / suite
    command: list[str | Path] = [f"--keyring={mirror.KEYRING}", f"--arch={architecture}", suite, target]
    command += [mirror.mirror()]
    command += [] if script.exists() else [_SCRIPTS / "sid"]
    cache.step(
        f"making a minimal Debian {suite} for {architecture} with debootstrap, once",
        # In a mount namespace of its own, so that nothing stays mounted when it is interrupted.
        [
            "sh",
            "-c",
            'find "$0" -mindepth 1 -delete; exec unshare --mount debootstrap --variant=minbase "$@"',
            target,
            *command,
        ],
        log=log,
        within=_WITHIN if architecture == mirror.architecture() else _EMULATED,
        environment=mirror.environment(),
        attempts=cache.ATTEMPTS,
    )
    _empty_caches(target)


def _furnished(partial: Path, name: str, suite: str, packages: Sequence[str]) -> None:
    target, log = partial / "root", partial / "log"
    (partial / "stage").mkdir()
    cache.step(
        f"copying it for {name}",
        ["cp", "-a", "--reflink=auto", minimal(suite), target],
        log=log,
        within=_WITHIN,
    )
    policy = target / "usr/sbin/policy-rc.d"
    policy.write_text(_NO_SERVICES)
    policy.chmod(0o755)
    names = [_BACKPORTED.get((suite, package), package) for package in packages]
    if names != [*packages]:
        source = f"deb [signed-by={mirror.KEYRING}] {mirror.mirror()} {suite}-backports main\n"
        (target / "etc/apt/sources.list.d/backports.list").write_text(source)
    # Headers bring their kernel along in Debian 13. It is never booted, so no initial RAM disk is made for it.
    room = Room(target, in_place=True, environment={"DEBIAN_FRONTEND": "noninteractive", "INITRD": "No"})
    install = "apt-get -qq --error-on=any update; exec apt-get -qq -y --no-install-recommends "
    install += '-o Dpkg::Options::=--force-unsafe-io -o Acquire::Retries=3 install "$@"'
    cache.step(
        f"installing {len(packages)} packages and what they need in {name}",
        room.run("sh", "-euc", install, "sh", *" ".join(names).split()),
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
