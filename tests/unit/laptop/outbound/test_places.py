"""Places in the proxy: of this user, and of those who have not shown that they may use it."""

import asyncio
import resource
import subprocess
import sys

import pytest

from sidestep.laptop.outbound import descriptors
from sidestep.laptop.outbound.places import Places
from tests.unit.tunnel.ends import asynchronous


def test_the_oldest_stranger_goes_and_nobody_who_has_shown_that_he_may():
    ended = []
    places = Places(2, unproven=2)
    for number in range(3):
        places.take(number, lambda number=number: ended.append(number), proven=False)
    assert ended == [0]
    places.prove(0)  # too late
    assert not places.is_proven(0)
    places.prove(1)
    assert places.is_proven(1)
    for number in (3, 4):
        places.take(number, lambda number=number: ended.append(number), proven=False)
    assert ended == [0, 2]
    assert not places.full


@asynchronous
async def test_the_oldest_stranger_has_a_while_where_users_cannot_be_told():
    ended = []
    places = Places(2, unproven=1, patience=0.05)
    places.take(0, lambda: ended.append(0), proven=False)
    waiting = asyncio.ensure_future(places.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    places.prove(0)
    await waiting
    places.take(1, lambda: ended.append(1), proven=False)
    await places.room()  # when its time is over
    places.take(2, lambda: ended.append(2), proven=False)
    assert ended == [1]


def test_with_all_places_taken_nobody_is_accepted():
    places = Places(2, unproven=0)
    for number in range(2):
        places.take(number, lambda: pytest.fail("it was ended"), proven=True)
    assert places.full
    places.leave(0)
    assert not places.full
    places.leave(0)
    places.leave("unknown")
    places.take(2, lambda: pytest.fail("it was ended"), proven=True)
    assert places.full


@pytest.mark.parametrize(
    ("soft", "hard", "most", "limit"), [(64, 4096, 1024, 2496), (1024, 1024, 352, 1024), (100, 100, 1, 100)]
)
def test_the_limit_of_open_files_is_raised_or_told(soft, hard, most, limit):
    """In a process of its own, whose hard limit stays as low."""
    program = (
        "import resource; from sidestep.laptop.outbound.descriptors import clients; found = clients(1024, 256);"
        "print(found.most, resource.getrlimit(resource.RLIMIT_NOFILE)[0]); print(found.told)"
    )
    done = subprocess.run(
        ["prlimit", f"--nofile={soft}:{hard}", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found, told = done.stdout.split("\n", 1)
    assert found == f"{most} {limit}"
    assert (f"At most {most} clients use the proxy at once" in told) is (most < 1024)


def test_no_limit_is_none(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert descriptors.clients(1024, 256) == descriptors.Clients(1024, 256)
