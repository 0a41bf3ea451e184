"""How a container looks up names, read below its root by the reader's one-shot child."""

from __future__ import annotations

import os

import pytest

from sidestep.model.errors import ConfigurationError, KernelError
from sidestep.node.certificates.reader import Reader
from tests.unit.tunnel.ends import asynchronous

pytestmark = pytest.mark.privileged


@pytest.fixture
def root(tmp_path):
    (tmp_path / "etc").mkdir()
    return tmp_path


async def names(root):
    reader = Reader()
    try:
        return await reader.names(str(root), None)
    finally:
        reader.close()


@asynchronous
async def test_both_files(root):
    (root / "etc/resolv.conf").write_text("nameserver 10.96.0.10\n")
    (root / "etc/hosts").write_bytes(b"127.0.0.1 localhost\n\xff\n")
    found = await names(root)
    assert found.resolv_conf == "nameserver 10.96.0.10\n"
    assert found.hosts == "127.0.0.1 localhost\n\ufffd\n"


@asynchronous
async def test_what_is_not_there_is_empty(root):
    found = await names(root)
    assert (found.resolv_conf, found.hosts) == ("", "")


@asynchronous
async def test_links_stay_below_the_root(root):
    (root / "etc/resolv.conf").symlink_to("/etc/passwd")
    (root / "etc/hosts").symlink_to("../../../../../../etc/passwd")
    found = await names(root)
    assert (found.resolv_conf, found.hosts) == ("", "")
    (root / "etc/passwd").write_text("of the container")
    assert (await names(root)).hosts == "of the container"


@asynchronous
async def test_what_is_long_is_cut(root):
    (root / "etc/resolv.conf").write_text("a" * 100_000)
    (root / "etc/hosts").write_text("b" * 1_000_000)
    found = await names(root)
    assert (len(found.resolv_conf), len(found.hosts)) == (16 * 1024, 256 * 1024)


@pytest.mark.parametrize("kind", ["fifo", "folder", "huge"])
@asynchronous
async def test_what_is_no_file_that_can_be_read(root, kind):
    path = root / "etc/resolv.conf"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, 1 << 30)
    with pytest.raises(ConfigurationError):
        await names(root)


@asynchronous
async def test_a_root_that_is_gone(root):
    with pytest.raises((ConfigurationError, KernelError)):
        await names(root / "absent")
