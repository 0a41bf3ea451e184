"""Hints that a folder has changed."""

from __future__ import annotations

import asyncio

from sidestep.node.inotify import Hint

LONG = 5.0


def test_a_change_is_hinted(tmp_path):
    async def go() -> None:
        with Hint(tmp_path) as hint:
            assert hint.watching
            (tmp_path / "a.yaml").write_text("x")
            assert await hint.wait(LONG)

    asyncio.run(go())


def test_without_a_change_the_wait_ends_by_itself(tmp_path):
    async def go() -> None:
        with Hint(tmp_path) as hint:
            assert not await hint.wait(0.01)

    asyncio.run(go())


def test_a_folder_that_is_not_there_gives_no_hints_until_it_is_watched_again(tmp_path):
    folder = tmp_path / "later"

    async def go() -> None:
        with Hint(folder) as hint:
            assert not hint.watching
            folder.mkdir()
            hint.watch()
            assert hint.watching
            (folder / "a.yaml").write_text("x")
            assert await hint.wait(LONG)

    asyncio.run(go())


def test_a_folder_that_goes_is_a_hint(tmp_path):
    folder = tmp_path / "going"
    folder.mkdir()

    async def go() -> None:
        with Hint(folder) as hint:
            folder.rmdir()
            assert await hint.wait(LONG)

    asyncio.run(go())
