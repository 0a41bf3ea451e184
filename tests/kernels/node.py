"""What a guest needs to boot the Kubernetes node of `tests/e2e`: the parts of this machine's cache that it is made of.

A guest has no network, so whatever `make e2e` builds is built here and copied to the guest's disk, at the same places
of a cache of its own. Names of entries depend on sources, architecture and mirror, all of which are the same in the
guest, so it finds every entry and makes none. The Debian below the images is there by name only: it takes part in their
names, and the images are whole.
"""

from __future__ import annotations

from pathlib import Path

from tests.debian import cache, mirror, roots
from tests.e2e import binaries, images
from tests.e2e.releases import Release

_WITHIN = 15 * 60.0


def furnish(target: Path, log: Path) -> None:
    """Make the folder `target`, which the guest takes for its cache. Raises BuildError."""
    built, programs = cache.side_by_side(images.images, binaries.kubernetes)
    root = Release(programs, binaries.VERSION).root()
    home = cache.folder()
    for path in (root.parent, programs, *built.archives.values()):
        place = target / path.relative_to(home)
        place.parent.mkdir(parents=True, exist_ok=True)
        cache.step(f"copying {path.name} for the guest", ["cp", "-a", path, place], log=log, within=_WITHIN)
    (target / roots.minimal(images.SUITE).parent.relative_to(home)).mkdir()
    (target / "mirror").write_text(mirror.mirror())
