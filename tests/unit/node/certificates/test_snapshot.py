"""What a snapshot walks, and as whom: read from texts of /proc."""

from __future__ import annotations

import pytest

from sidestep.model.errors import ConfigurationError, KernelError
from sidestep.node.certificates.container_root import MAX_GROUPS, Reading, reading_as
from sidestep.node.certificates.snapshot import MAX_VOLUMES, paths_within, volumes, wanted_paths

MOUNTS = b"""\
600 500 0:60 / / rw,relatime master:1 - overlay overlay rw,lowerdir=/a
601 600 0:61 / /proc rw,nosuid - proc proc rw
602 600 0:62 / /dev rw,nosuid - tmpfs tmpfs rw
603 602 0:63 / /dev/shm rw - tmpfs shm rw
604 600 0:64 / /sys ro - sysfs sysfs ro
605 604 0:65 / /sys/fs/cgroup ro - cgroup2 cgroup ro
606 600 8:1 /pods/1 /etc/hosts rw - ext4 /dev/sda1 rw
607 600 0:66 / /etc/tls ro - tmpfs tmpfs rw
608 600 0:67 / /var/two\\040words\\012and\\134more rw - tmpfs tmpfs rw
609 600 0:67 / /etc/tls rw - tmpfs tmpfs rw
610 600 0:68 / /process rw - tmpfs tmpfs rw
broken line
"""


def test_volumes_are_what_is_mounted_and_no_interface_of_the_kernel():
    assert volumes(MOUNTS) == (b"/etc/hosts", b"/etc/tls", b"/var/two words\nand\\more", b"/process")
    assert volumes(b"") == ()
    assert volumes(b"1 2 3 4 relative x - y\n1 2 3 4 /\\777 x - y") == (b"/\xff",)
    many = b"".join(b"1 2 3 4 /%d rw - tmpfs\n" % number for number in range(MAX_VOLUMES + 1))
    assert len(volumes(many)) == MAX_VOLUMES


@pytest.mark.parametrize(
    ("paths", "mounted", "walked"),
    [
        ((), (b"/b", b"/a"), (b"/a", b"/b")),
        (("/a/b/", "//a/./c", "/a/b"), (), (b"/a/b", b"/a/c")),
        (("/a/b", "/a", "/ab"), (), (b"/a", b"/ab")),
        (("/etc", "/"), (b"/etc/tls",), (b"/",)),
        (("/a", "/z/tls/x", "/b"), (b"/z/tls",), (b"/z/tls/x", b"/a", b"/b")),
        (("/a/../b",), (), None),
        (("a",), (), None),
        (("/a\0",), (), None),
        (("/\ud800",), (), None),
        ((), (), None),
    ],
)
def test_paths_that_are_walked(paths, mounted, walked):
    if walked is None:
        with pytest.raises(ConfigurationError):
            wanted_paths(paths, mounted)
    else:
        assert wanted_paths(paths, mounted) == walked


def test_paths_below_others_are_known():
    asked = ("/a/b", "/a", "/ab", "/a//c", "/")
    assert paths_within(asked[:4], wanted_paths(asked[:4], ())) == {b"/a": (b"/a/b", b"/a/c")}
    assert paths_within(asked, wanted_paths(asked, ())) == {b"/": (b"/a", b"/a/b", b"/a/c", b"/ab")}
    assert paths_within((), (b"/a",)) == {}


def test_names_that_are_no_text_come_as_they_were_written():
    assert wanted_paths(("/\udcff",), ()) == (b"/\xff",)


def status(uid="1 2 3 4", gid="5 6 7 8", groups="8 9", capabilities="0000000000000000"):
    lines = ("Name:\tapp", f"Uid:\t{uid}", f"Gid:\t{gid}", f"Groups:\t{groups} ", f"CapEff:\t{capabilities}")
    return "\n".join(lines).replace(" ", "\t").encode() + b"\n"


@pytest.mark.parametrize(
    ("text", "own", "reading"),
    [
        (status(), True, Reading(4, 8, (8, 9), False)),
        (status(groups=""), True, Reading(4, 8, (), False)),
        (status(capabilities="00000000a80425fb"), True, Reading(4, 8, (8, 9), True)),
        (status(capabilities="00000000a80425fb"), False, Reading(4, 8, (8, 9), False)),
        (status(capabilities="0000000000000004"), True, Reading(4, 8, (8, 9), True)),
        (status(capabilities="ffffffffffffff9" + "9"), True, Reading(4, 8, (8, 9), False)),
    ],
)
def test_files_are_read_as_the_process_reads_them(text, own, reading):
    assert reading_as(text, own_users=own) == reading


def test_groups_are_bounded():
    found = reading_as(status(groups=" ".join(map(str, range(MAX_GROUPS + 5)))), own_users=True)
    assert len(found.groups) == MAX_GROUPS


@pytest.mark.parametrize("text", [b"", b"Uid:\t1\n", status(uid="1 2 3"), status(capabilities="x"), status(groups="x")])
def test_a_status_that_cannot_be_read_is_an_error(text):
    with pytest.raises(KernelError):
        reading_as(text, own_users=True)
