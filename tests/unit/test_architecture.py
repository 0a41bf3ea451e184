"""ARCHITECTURE.md names files that exist, and its walk through the big packages names each of their files once."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "daemon" / "sidestep"
TEXT = (ROOT / "ARCHITECTURE.md").read_text()
WALK = TEXT[TEXT.index("## One request") : TEXT.index("## What dies with what")]
WALKED = ("engine", "proxy", "inspector", "node", "sandbox")


def named(text):
    """The files that a text names, in order; a bare name belongs to the last folder that was named."""
    folder = ""
    for path in re.findall(r"`((?:[a-z0-9_]+/)*(?:[a-z0-9_]+\.(?:py|c|h))?)`", text):
        at, slash, name = path.rpartition("/")
        if slash:
            folder = at
        if name and folder:
            yield f"{folder}/{name}"


def test_the_walk_names_each_file_of_the_big_packages_once():
    files = {
        str(path.relative_to(PACKAGE))
        for package in WALKED
        for path in (PACKAGE / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    counts = Counter(path for path in named(WALK) if path.split("/")[0] in WALKED)
    assert {path for path, count in counts.items() if count > 1} == set()
    assert set(counts) == files


def test_every_file_that_is_named_exists():
    roots = (PACKAGE, ROOT, ROOT / "bpf")
    for path in named(TEXT):
        assert any((root / path).is_file() for root in roots), path
