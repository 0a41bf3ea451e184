"""1 GiB each way through both sides: every byte arrives, and no process of ours grows with it."""

from __future__ import annotations

import subprocess

import pytest

from tests.harness import scene
from tests.harness.nginx import write_big_file
from tests.harness.peers import digest_of
from tests.harness.processes import peak, reset_peak

SIZE = 1 << 30
GROWTH = 20 << 20
"""Bytes of resident memory by which no process of ours may grow (issue budget)."""

pytestmark = [pytest.mark.timeout(300), pytest.mark.long, pytest.mark.cold]


@pytest.fixture(scope="module")
def big(nginx_shop):
    nginx_shop.handler.record = False
    path = nginx_shop.nginx.root / "big"
    digest = write_big_file(path, SIZE)
    return path, digest


@pytest.fixture
def bounded(nginx_shop):
    """An active intercept whose processes must not grow in the test."""
    with nginx_shop.intercept() as running:
        assert nginx_shop.get("/", scene.DEV).served_by == "handler"
        assert nginx_shop.get("/").served_by == "app"
        watched = {"proxy": nginx_shop.proxy(), "daemon": nginx_shop.node.pid, "cli": running.pid}
        before = {name: reset_peak(pid) for name, pid in watched.items()}
        yield
        growth = {name: peak(pid) - before[name] for name, pid in watched.items()}
        assert max(growth.values()) < GROWTH, growth


def test_upload_to_the_app(nginx_shop, big, bounded):
    path, digest = big
    answer = nginx_shop.get("/upload/big", options=["-T", path], within=120)
    assert answer.status == 201, answer.errors
    assert _file_digest(nginx_shop.nginx.root / "upload/big") == digest


def test_download_from_the_app(nginx_shop, big, bounded, tmp_path):
    answer = nginx_shop.get("/files/big", options=["-o", tmp_path / "got"], within=120)
    assert answer.status == 200, answer.errors
    assert _file_digest(tmp_path / "got") == big[1]
    (tmp_path / "got").unlink()


def test_upload_to_the_handler(nginx_shop, big, bounded):
    path, digest = big
    answer = nginx_shop.get("/digest", scene.DEV, options=["-T", path], within=120)
    assert (answer.served_by, answer.text) == ("handler", f"{digest} {SIZE}\n"), answer.errors


def test_download_from_the_handler(nginx_shop, big, bounded, tmp_path):
    answer = nginx_shop.get(f"/bytes/{SIZE}", scene.DEV, options=["-o", tmp_path / "got"], within=120)
    assert answer.served_by == "handler", answer.errors
    assert _file_digest(tmp_path / "got") == digest_of(SIZE)
    (tmp_path / "got").unlink()


def test_a_client_that_does_not_read_stops_the_handler(nginx_shop, bounded):
    """Back-pressure reaches the far end: what nobody reads is not stored anywhere beyond a few buffers."""
    nginx_shop.handler.record = False
    with nginx_shop.client() as client:
        client.send(f"GET /bytes/{SIZE} HTTP/1.1\r\nHost: a\r\n{scene.DEV}\r\n\r\n".encode())
        head = client.reader.until(b"\r\n\r\n")
        assert b"200" in head
        connection = nginx_shop.handler.connections[-1]
        assert not connection.finished.wait(3)


def _file_digest(path):
    return subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
