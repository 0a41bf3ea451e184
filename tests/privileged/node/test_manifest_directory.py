import asyncio
import os
import pickle
from contextlib import asynccontextmanager

import pytest

from sidestep.aio.tasks import Tasks
from sidestep.model.errors import ConfigurationError, PeerError
from sidestep.model.pod import PodKey
from sidestep.node.certificates.reader import Reader
from sidestep.node.manifests import POLL, SETTLE, ManifestDirectory, _unpickled

POD = """
apiVersion: v1
kind: Pod
metadata: {name: NAME, namespace: shop, labels: {app: orders}, annotations: {sidestep.dev/netns: /run/netns/x}}
spec: {containers: [{name: app, image: none, ports: [{containerPort: 8080}]}]}
---
"""
SECRET = """
apiVersion: v1
kind: Secret
metadata: {name: tls, namespace: shop}
data: {tls.key: VALUE}
"""
WITHIN = 5.0


pytestmark = pytest.mark.privileged


def run(coroutine):
    return asyncio.run(coroutine)


def load(folder):
    async def story():
        reader = Reader(manifests=True)
        try:
            return await ManifestDirectory(folder, reader).load()
        finally:
            reader.close()

    return run(story())


def keys(reading):
    return [key.name for key in reading.inventory.pods]


class Watched:
    def __init__(self):
        self.readings = asyncio.Queue()

    async def next(self):
        return await asyncio.wait_for(self.readings.get(), WITHIN)


@asynccontextmanager
async def watching(folder):
    reader = Reader(manifests=True)
    directory = ManifestDirectory(folder, reader)
    try:
        await directory.load()
        watched = Watched()
        async with Tasks("test") as tasks:
            tasks.start(directory.watch(watched.readings.put_nowait), name="watch")
            yield watched
    finally:
        reader.close()


def write(folder, name, text):
    aside = folder / f".{name}"
    aside.write_text(text)
    aside.rename(folder / name)


def test_a_directory_is_read_whole(tmp_path):
    write(tmp_path, "a.yaml", POD.replace("NAME", "a") + POD.replace("NAME", "b"))
    write(tmp_path, "c.yml", POD.replace("NAME", "c"))
    write(tmp_path, "notes.txt", "no manifest")
    reading = load(tmp_path)
    assert sorted(keys(reading)) == ["a", "b", "c"]
    assert reading.errors == ()


def test_a_bad_document_is_an_error_and_the_good_ones_stay(tmp_path):
    write(tmp_path, "a.yaml", POD.replace("NAME", "a") + "{{{\n---\n" + POD.replace("NAME", "b"))
    reading = load(tmp_path)
    assert keys(reading) == ["a", "b"]
    assert [str(error).partition(":")[0] for error in reading.errors] == ["a.yaml, document 2, line 7"]


def test_a_missing_folder_is_an_error_of_the_option(tmp_path):
    with pytest.raises(ConfigurationError, match="--manifests"):
        load(tmp_path / "none")


def test_changes_are_told_at_the_kernel_s_hint(tmp_path, monkeypatch):
    monkeypatch.setattr("sidestep.node.manifests.POLL", 10 * WITHIN)  # the next look would be too late

    async def story():
        async with watching(tmp_path) as watched:
            write(tmp_path, "a.yaml", POD.replace("NAME", "a"))
            assert keys(await watched.next()) == ["a"]
            write(tmp_path, "a.yaml", POD.replace("NAME", "b"))
            assert keys(await watched.next()) == ["b"]
            (tmp_path / "a.yaml").unlink()
            assert keys(await watched.next()) == []

    run(story())


def test_a_swapped_link_is_a_change(tmp_path):
    async def story():
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "p.yaml").write_text(POD.replace("NAME", name))
        folder = tmp_path / "manifests"
        folder.mkdir()
        (folder / "..data").symlink_to(tmp_path / "one")
        (folder / "p.yaml").symlink_to("..data/p.yaml")
        async with watching(folder) as watched:
            (folder / "..new").symlink_to(tmp_path / "two")
            os.replace(folder / "..new", folder / "..data")
            assert keys(await watched.next()) == ["two"]

    run(story())


def test_a_file_written_in_pieces_is_read_once_and_whole(tmp_path):
    async def story():
        async with watching(tmp_path) as watched:
            with (tmp_path / "a.yaml").open("w") as file:
                for name in "abcdef":
                    file.write(POD.replace("NAME", name))
                    file.flush()
                    await asyncio.sleep(SETTLE / 5)
            assert keys(await watched.next()) == list("abcdef")
            assert watched.readings.empty()

    run(story())


def test_a_file_behind_a_link_is_followed_without_a_hint(tmp_path):
    async def story():
        folder = tmp_path / "manifests"
        folder.mkdir()
        (tmp_path / "far.yaml").write_text(POD.replace("NAME", "a"))
        (folder / "a.yaml").symlink_to(tmp_path / "far.yaml")
        async with watching(folder) as watched:
            (tmp_path / "far.yaml").write_text(POD.replace("NAME", "other"))
            assert keys(await watched.next()) == ["other"]

    run(story())


def test_a_folder_that_is_gone_changes_nothing(tmp_path):
    async def story():
        folder = tmp_path / "manifests"
        folder.mkdir()
        write(folder, "a.yaml", POD.replace("NAME", "a"))
        async with watching(folder) as watched:
            folder.rename(tmp_path / "away")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(watched.readings.get(), 2 * POLL)
            (tmp_path / "away").rename(folder)
            write(folder, "b.yaml", POD.replace("NAME", "b"))
            assert keys(await watched.next()) == ["a", "b"]

    run(story())


def test_a_file_that_is_no_file_is_passed_over(tmp_path):
    os.mkfifo(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").mkdir()
    (tmp_path / "c.yaml").symlink_to(tmp_path / "nothing")
    write(tmp_path, "d.yaml", POD.replace("NAME", "d"))
    reading = load(tmp_path)
    assert list(reading.inventory.pods) == [PodKey("shop", "d")]


def test_the_data_of_a_secret_does_not_come_back(tmp_path):
    write(tmp_path, "a.yaml", SECRET.replace("VALUE", "aGVsbG8="))
    first = load(tmp_path)
    write(tmp_path, "a.yaml", SECRET.replace("VALUE", "d29ybGQ="))
    second = load(tmp_path)
    for reading in (first, second):
        assert reading.inventory.secrets["shop", "tls"].file == "a.yaml"
    assert first.inventory.secrets != second.inventory.secrets
    assert "aGVsbG8" not in repr(first)


def test_what_the_child_says_makes_values_of_the_model_only():
    class Call:
        def __reduce__(self):
            return (os.getpid, ())

    class Chain:
        def __reduce__(self):
            return (getattr, (PodKey, "__init__"))

    for bad in (pickle.dumps(Call()), pickle.dumps(Chain()), b"rubbish", b"", pickle.dumps(1)):
        with pytest.raises(PeerError):
            _unpickled(bad)


def test_a_file_that_cannot_be_parsed_any_more_keeps_its_objects_while_it_cannot_be_read(tmp_path):
    class Unwilling:
        async def manifests(self, folder, names):
            raise PeerError("gone")

    async def story():
        reader = Reader(manifests=True)
        directory = ManifestDirectory(tmp_path, reader)
        try:
            assert keys(await directory.load()) == ["a"]
        finally:
            reader.close()
        directory._reader = Unwilling()
        reading = await directory.load()
        assert keys(reading) == ["a"]
        assert "what was read of it last stays" in str(reading.errors[0])

    write(tmp_path, "a.yaml", POD.replace("NAME", "a"))
    run(story())


def test_a_folder_of_very_many_files_with_long_names_is_read(tmp_path):
    """Their names together are longer than one request to the reader may be."""
    for number in range(600):
        name = f"pod-{number:04}"
        (tmp_path / f"{name}-{'x' * 120}.yaml").write_text(POD.replace("NAME", name))
    reading = load(tmp_path)
    assert reading.errors == ()
    assert keys(reading) == [f"pod-{number:04}" for number in range(600)]


def test_of_more_files_than_are_read_the_first_are(tmp_path):
    for number in range(1500):
        (tmp_path / f"{number:04}-{'x' * 30}.yaml").write_text("{}")
    (tmp_path / "0000-pod.yaml").write_text(POD.replace("NAME", "first"))
    reading = load(tmp_path)
    assert keys(reading) == ["first"]
    assert any("more than 1000 files" in error.reason for error in reading.errors)


def test_a_name_that_is_no_text_is_reported(tmp_path):
    (tmp_path / "good.yaml").write_text(POD.replace("NAME", "good"))
    with open(os.fsencode(tmp_path) + b"/bad\xff.yaml", "w") as file:
        file.write(POD.replace("NAME", "bad"))
    reading = load(tmp_path)
    assert keys(reading) == ["good"]
    assert [(error.file, error.reason) for error in reading.errors] == [
        ("bad\\xff.yaml", "has a name that is not UTF-8")
    ]
