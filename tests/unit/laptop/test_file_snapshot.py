"""A snapshot of files as it is written here: by a good node, and by one that means ill."""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.laptop import file_snapshot, safe_folder
from sidestep.laptop.file_snapshot import MAX_TOLD, FileSnapshot
from sidestep.model.errors import ConfigurationError, PeerError
from sidestep.protocols.file_frames import MAX_PARTS, Entry, Problem, Summary, Whole, encode

END = Summary("")
NOBODY = 0xFFFFFFFF
"""The user of an entry of a list of rights that is for no named one."""


def folder(path):
    return Entry(path, "folder", 0o755)


def link(path, target):
    return Entry(path, "link", target=target)


def file(path, content=b"content", mode=0o644):
    data = [content] if content else []
    return [Entry(path, "file", mode, 1000.5, len(content)), *data, Whole()]


def written(place, *frames, max_bytes=1000, windows=False):
    """A snapshot of these frames. Raises what it raises."""
    snapshot = FileSnapshot(place, max_bytes, windows=windows)
    snapshot.begin()
    try:
        for frame in frames:
            snapshot.feed(encode(frame))
        snapshot.finish()
    finally:
        snapshot.close()
    return snapshot


def tree(place):
    """What is there, by path; nothing is followed."""
    found = {}
    for root, folders, files in os.walk(place):
        for name in folders + files:
            path = os.path.join(root, name)
            key = os.path.relpath(path, place)
            if os.path.islink(path):
                found[key] = ("link", os.readlink(path))
            elif os.path.isdir(path):
                found[key] = "folder"
            else:
                with open(path, "rb") as opened:
                    found[key] = opened.read()
    return found


def test_files_folders_and_links_are_written_for_their_owner_only(tmp_path):
    place = tmp_path / "new"
    snapshot = written(
        place,
        folder(b"/etc"),
        folder(b"/etc/tls"),
        link(b"/etc/tls/tls.crt", b"..data/tls.crt"),
        link(b"/etc/tls/..data", b"..2024"),
        folder(b"/etc/tls/..2024"),
        *file(b"/etc/tls/..2024/tls.crt"),
        *file(b"/etc/empty", b""),
        *file(b"/etc/run", b"#!", mode=0o6755),
        *file(b"/top"),
        link(b"/etc/absolute", b"/top"),
        link(b"/etc/out", b"../../../../../etc/passwd"),
        link(b"/root", b"/"),
        END,
    )
    assert tree(place) == {
        "etc": "folder",
        "etc/tls": "folder",
        "etc/tls/tls.crt": ("link", "..data/tls.crt"),
        "etc/tls/..data": ("link", "..2024"),
        "etc/tls/..2024": "folder",
        "etc/tls/..2024/tls.crt": b"content",
        "etc/empty": b"",
        "etc/run": b"#!",
        "top": b"content",
        "etc/absolute": ("link", "../top"),
        "etc/out": ("link", "passwd"),
        "root": ("link", "."),
    }
    assert (place / "etc/tls/tls.crt").read_bytes() == b"content"
    for path in (place, place / "etc", place / "etc/run"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((place / "top").stat().st_mode) == 0o600
    assert (place / "top").stat().st_mtime == 1000.5
    assert (snapshot.files, snapshot.size, snapshot.left_out, snapshot.news()) == (4, 16, 0, [])


@pytest.mark.skipif(sys.platform != "linux", reason="names of bytes are those of Linux")
def test_names_are_those_of_the_container(tmp_path):
    names = [b"two\nlines", b"\x1b[2J", b"\xff\xfe", b"..data", b"...", b"-rf", b" ", b"C:\\x", b"x" * 255]
    written(tmp_path / "new", *(frame for name in names for frame in file(b"/" + name)), END)
    assert set(os.listdir(bytes(tmp_path / "new"))) == set(names)


def test_what_is_left_out_is_told_as_a_terminal_may_show_it(tmp_path):
    problems = [Problem(b"/%d\x1b[2J\n" % number, "a device\r", asked=number == 3) for number in range(30)]
    snapshot = written(tmp_path / "new", *problems, Summary("late\x1b"))
    told = snapshot.news()
    assert len(told) == MAX_TOLD
    assert told[0] == "Left out: /0\\x1b[2J\\n: a device\\r"
    assert told[-1] == "Left out: more"
    assert (snapshot.left_out, snapshot.stopped) == (30, "late\\x1b")
    assert snapshot.missing == ["/3\\x1b[2J\\n: a device\\r"]


def test_a_file_that_is_not_whole_is_not_there(tmp_path):
    first = Entry(b"/a", "file", 0o600, 0.0, 7)
    snapshot = written(tmp_path / "new", first, b"con", Problem(b"/a", "it became shorter"), *file(b"/b"), END)
    assert tree(tmp_path / "new") == {"b": b"content"}
    assert (snapshot.files, snapshot.left_out) == (1, 1)


OUTSIDE = [
    [Entry(b"relative", "file")],
    [Entry(b"/../a", "file")],
    [folder(b"/a"), Entry(b"/a/../../b", "file")],
    [folder(b"/a"), Entry(b"/a/..", "folder")],
    [Entry(b"/.", "folder")],
    [Entry(b"//a", "file")],
    [folder(b"/a"), Entry(b"/a/", "file")],
    [Entry(b"/a\0b", "file")],
    [Entry(b"/" + b"/".join([b"a"] * (MAX_PARTS + 1)), "folder")],
    [Entry(b"/absent/a", "file")],
    [folder(b"/a"), folder(b"/a/b/c")],
    [*file(b"/a"), Entry(b"/a/b", "file")],
    [link(b"/a", b"/tmp"), Entry(b"/a/b", "file")],
    [link(b"/a", b"."), link(b"/a/b", b"../x")],
    [link(b"/a", b"/tmp"), folder(b"/a")],
    [folder(b"/a"), link(b"/a", b"/tmp")],
    [folder(b"/a"), folder(b"/a")],
    [link(b"/a", b"x"), link(b"/a", b"y")],
]


@pytest.mark.parametrize("frames", OUTSIDE)
def test_what_could_lead_out_ends_it(tmp_path, frames):
    with pytest.raises(PeerError, match=r"leads elsewhere|outside of its folders|a path twice"):
        written(tmp_path / "new", *frames, END)
    assert os.listdir(tmp_path) == ["new"]


BROKEN = [
    [b"data", END],
    [Whole(), END],
    [*file(b"/a"), b"more", END],
    [*file(b"/a"), Whole(), END],
    [Entry(b"/a", "file", size=3), b"four", Whole(), END],
    [Entry(b"/a", "file", size=5), b"four", Whole(), END],
    [Entry(b"/a", "file", size=5), *file(b"/b"), END],
    [Entry(b"/a", "file", size=5), END],
    [Entry(b"/a", "file", size=1 << 62), b"x" * 1001],
    [*[Entry(b"/a", "file", size=600), b"x" * 600, Whole()], Entry(b"/b", "file", size=401), b"x" * 401, Whole(), END],
    [Entry(b"/a", "link", target=b"b"), b"x", END],
    [END, END],
    [END, *file(b"/a")],
    [],
    [*file(b"/a")],
]


@pytest.mark.parametrize("frames", BROKEN)
def test_what_breaks_the_order_or_lies_about_sizes_ends_it(tmp_path, frames):
    with pytest.raises(PeerError):
        written(tmp_path / "new", *frames)


def test_a_file_twice_is_not_written_over(tmp_path):
    snapshot = written(tmp_path / "new", *file(b"/a", b"first"), *file(b"/a", b"second"), link(b"/a", b"b"), END)
    assert tree(tmp_path / "new") == {"a": b"first"}
    assert (snapshot.files, snapshot.left_out) == (1, 2)


def test_a_folder_that_cannot_be_made_has_nothing(tmp_path):
    snapshot = written(
        tmp_path / "new", *file(b"/a"), folder(b"/a"), *file(b"/a/b"), folder(b"/a/c"), *file(b"/a/c/d"), END
    )
    assert tree(tmp_path / "new") == {"a": b"content"}
    assert snapshot.news() == ["Left out: /a: file exists"]


def test_links_lead_nowhere_outside_whatever_other_links_there_are(tmp_path):
    """Each link is made in a real folder, so that its `..` are those of its path."""
    frames = [
        folder(b"/a"),
        folder(b"/a/b"),
        folder(b"/a/b/c"),
        link(b"/a/b/c/up", b"../../../../.."),
        link(b"/a/b/c/over", b"up/../../.."),
        link(b"/a/deep", b"b/c/up/../../x"),
        link(b"/here", b"."),
        link(b"/far", b"here/here/../../../.."),
        link(b"/slashes", b"//etc//passwd"),
        link(b"/nothing", b""),
        END,
    ]
    place = tmp_path / "new"
    written(place, *frames)
    inside = os.path.realpath(place)
    for root, folders, files in os.walk(place):
        for name in folders + files:
            found = os.path.realpath(os.path.join(root, name))
            assert os.path.commonpath([found, inside]) == inside


NAMES = st.sampled_from([b"a", b"b", b"c"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(lambda parts: b"/" + b"/".join(parts))
TARGETS = st.lists(st.sampled_from([b"a", b"b", b"c", b"..", b".", b"", b"/"]), max_size=7).map(b"/".join)
ENTRIES = st.lists(
    st.one_of(
        PATHS.map(lambda path: [folder(path)]),
        PATHS.map(file),
        st.tuples(PATHS, TARGETS).map(lambda each: [link(*each)]),
    ),
    max_size=12,
)


@settings(max_examples=200)
@given(ENTRIES)
def test_no_order_of_entries_writes_or_leads_outside(tmp_path_factory, entries):
    """What a hostile node may try: whatever is accepted of it stays in the folder."""
    above = tmp_path_factory.mktemp("above")
    place = above / "x" / "y"
    place.parent.mkdir()
    snapshot = FileSnapshot(place, 1 << 20)
    snapshot.begin()
    for entry in entries:
        try:
            for frame in entry:
                snapshot.feed(encode(frame))
        except PeerError:
            snapshot.close()
    snapshot.feed(encode(END))
    snapshot.finish()
    assert os.listdir(above) == ["x"]
    assert os.listdir(above / "x") == ["y"]
    for root, folders, files in os.walk(place):
        for name in folders + files:
            path = os.path.join(root, name)
            if not os.path.islink(path) or os.path.exists(path):
                assert os.path.commonpath([os.path.realpath(path), place]) == str(place)


def test_entries_and_names_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(file_snapshot, "MAX_FRAMES", 3)
    with pytest.raises(PeerError, match="more entries"):
        written(tmp_path / "a", *(Problem(b"/a", "x") for _ in range(4)), END)
    monkeypatch.setattr(file_snapshot, "MAX_NAMES", 10)
    with pytest.raises(PeerError, match="more entries"):
        written(tmp_path / "b", folder(b"/aaa"), link(b"/bbb", b"ccc"), END)


def test_a_folder_that_is_used_is_refused(tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    (tmp_path / "file").touch()
    for place, reason in (("used", "is not empty"), ("file", "not a directory"), ("absent/new", "no folder")):
        with pytest.raises(ConfigurationError, match=reason):
            FileSnapshot(tmp_path / place, 1).check()
    (tmp_path / "empty").mkdir(mode=0o777)
    written(tmp_path / "empty", END)
    assert stat.S_IMODE((tmp_path / "empty").stat().st_mode) == 0o700


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 65534, 65534)
    with pytest.raises(ConfigurationError, match="belongs to another user"):
        FileSnapshot(tmp_path / "theirs", 1).check()


@pytest.mark.skipif(sys.platform == "win32", reason="rights of POSIX")
def test_a_folder_that_somebody_else_can_replace_is_refused(tmp_path):
    """Who may write the folder above puts a link there."""
    above = tmp_path / "above"
    (above / "mine").mkdir(parents=True)
    for mode, refused in ((0o755, False), (0o777, True), (0o1777, False), (0o702, True), (0o770, os.geteuid() == 0)):
        above.chmod(mode)
        for place in (above / "mine", above / "new", above / "mine" / "new"):
            if refused:
                with pytest.raises(ConfigurationError, match=f"lies below {above}, where others may write"):
                    FileSnapshot(place, 1).check()
            else:
                FileSnapshot(place, 1).check()
    above.chmod(0o755)
    (above / "link").symlink_to("mine")
    with pytest.raises(ConfigurationError, match="is a link"):
        FileSnapshot(above / "link", 1).begin()
    snapshot = written(above / "link" / "new", *file(b"/f"), END)
    assert (snapshot.files, tree(above / "mine")) == (1, {"new": "folder", "new/f": b"content"})


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_below_that_of_another_user_is_refused(tmp_path):
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 65534, 65534)
    with pytest.raises(ConfigurationError, match="theirs, which belongs to another user"):
        FileSnapshot(tmp_path / "theirs" / "new", 1).check()
    (tmp_path / "link").symlink_to(tmp_path)
    os.chown(tmp_path / "link", 65534, 65534, follow_symlinks=False)
    with pytest.raises(ConfigurationError, match="link, which belongs to another user"):
        FileSnapshot(tmp_path / "link" / "new", 1).check()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can give a folder away")
def test_who_called_sudo_owns_the_folders_above(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 54321, 54321)
    for caller, refused in (("", True), ("54322", True), ("nobody", True), ("54321", False)):
        monkeypatch.setenv("SUDO_UID", caller)
        for mode in (0o755, 0o775):  # the group is that user's alone
            home.chmod(mode)
            assert bool(safe_folder.unsafe_above(home / "new")) is refused
    home.chmod(0o757)
    assert "where others may write" in safe_folder.unsafe_above(home / "new")
    home.chmod(0o775)
    os.chown(home, 54321, 54322)
    assert "where others may write" in safe_folder.unsafe_above(home / "new")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can give a folder away")
def test_owners_outside_of_a_user_namespace_count_as_root(tmp_path, monkeypatch):
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 65534, 65534)
    place = tmp_path / "theirs" / "new"
    for name in ("_UID_MAP", "_OVERFLOW"):
        monkeypatch.setattr(safe_folder, name, tmp_path / name)
    assert "another user" in safe_folder.unsafe_above(place), "no Linux"
    (tmp_path / "_OVERFLOW").write_text("65534\n")
    (tmp_path / "_UID_MAP").write_text("         0          0 4294967295\n")
    assert "another user" in safe_folder.unsafe_above(place)
    (tmp_path / "_UID_MAP").write_text("         0       1000          1\n         1     100000      65536\n")
    assert safe_folder.unsafe_above(place) == ""
    (tmp_path / "theirs").chmod(0o777)
    assert "where others may write" in safe_folder.unsafe_above(place)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such groups")
def test_a_group_is_ones_own_by_its_name_and_its_members(monkeypatch):
    import grp
    import pwd

    users = {1000: "ada", 1001: "bob"}
    groups = {
        1000: ("ada", []),
        100: ("users", []),
        20: ("staff", ["root"]),
        1002: ("ada", ["ada", "bob"]),
        0: ("root", []),
    }
    monkeypatch.setattr(pwd, "getpwuid", lambda user: SimpleNamespace(pw_name=users[user]))
    monkeypatch.setattr(
        grp, "getgrgid", lambda group: SimpleNamespace(gr_name=groups[group][0], gr_mem=groups[group][1])
    )
    own = {
        (group, user)
        for group in (*groups, 5000)
        for user in (0, *users, 5000)
        if safe_folder._is_own_group(group, user)
    }
    assert own == {(1000, 1000), (5000, 5000)}


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="sets a list of rights of Linux")
def test_the_rights_of_a_group_are_others_where_there_is_a_list(tmp_path, monkeypatch):
    """acl(5): the group's bits are the mask, which user 54322 of the list may use."""
    home = tmp_path / "home"
    home.mkdir(mode=0o770)
    os.chown(home, 54321, 54321)
    monkeypatch.setenv("SUDO_UID", "54321")
    home.chmod(0o770)
    assert safe_folder.unsafe_above(home / "new") == ""
    entries = [(1, 7, NOBODY), (2, 7, 54322), (4, 5, NOBODY), (16, 7, NOBODY), (32, 0, NOBODY)]
    os.setxattr(
        home, "system.posix_acl_access", struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in entries)
    )
    assert stat.S_IMODE(home.stat().st_mode) == 0o770
    assert "where others may write" in safe_folder.unsafe_above(home / "new")


def test_names_that_windows_cannot_have_are_left_out(tmp_path):
    bad = [
        b"con",
        b"NUL.txt",
        b"com1",
        b"LPT9.x",
        b"a:b",
        b"a\\b",
        b"x.",
        b"x ",
        b"a?",
        b"\x01",
        b"aux ",
        b"COM\xc2\xb9",
    ]
    good = [b"..data", b"console", b"com10", b"a.b", b"nul-x", b".x"]
    frames = [frame for name in bad + good for frame in file(b"/" + name)]
    frames += [folder(b"/prn"), *file(b"/prn/inside"), link(b"/drive", b"C:\\Windows"), link(b"/device", b"x/../con")]
    snapshot = written(tmp_path / "new", *frames, END, windows=True)
    assert set(os.listdir(bytes(tmp_path / "new"))) == set(good)
    assert snapshot.left_out == len(bad) + 3


def test_where_links_cannot_be_made_those_to_files_are_copies(tmp_path, monkeypatch):
    def refused(*_arguments, **_options):
        raise OSError(errno.EPERM, "A required privilege is not held by the client")

    monkeypatch.setattr(os, "symlink", refused)
    place = tmp_path / "new"
    snapshot = written(
        place,
        folder(b"/tls"),
        folder(b"/tls/..1"),
        *file(b"/tls/..1/tls.crt"),
        link(b"/tls/..data", b"..1"),
        link(b"/tls/tls.crt", b"..data/tls.crt"),
        link(b"/tls/self", b"self"),
        link(b"/tls/out", b"/etc/passwd"),
        link(b"/tls/absent", b"..data/absent"),
        END,
        max_bytes=20,
    )
    assert tree(place) == {
        "tls": "folder",
        "tls/..1": "folder",
        "tls/..1/tls.crt": b"content",
        "tls/tls.crt": b"content",
    }
    assert snapshot.left_out == 4
    again = [link(b"/%d" % number, b"/f") for number in range(9)]
    snapshot = written(tmp_path / "bomb", *file(b"/f"), *again, END, max_bytes=20)
    assert len(os.listdir(tmp_path / "bomb")) == 2
    assert snapshot.left_out == 8


@pytest.fixture
def no_links(monkeypatch):
    """A system on which links cannot be made."""

    def refuse(*_arguments, **_words):
        raise OSError(errno.EPERM, "refused")

    monkeypatch.setattr(os, "symlink", refuse)


@pytest.mark.parametrize(
    "target", [b"/C:/secret", b"/\\\\server\\share\\f", b"con", b"../../secret", b"/etc/../../secret"]
)
def test_a_link_is_copied_from_the_snapshot_and_from_nowhere_else(tmp_path, no_links, monkeypatch, target):
    (tmp_path / "secret").write_text("of this machine")
    looked_at = []
    place = FileSnapshot._place
    monkeypatch.setattr(FileSnapshot, "_place", lambda self, path: looked_at.append(path) or place(self, path))
    snapshot = written(tmp_path / "new", folder(b"/etc"), *file(b"/etc/f"), link(b"/etc/l", target), END, windows=True)
    assert snapshot.left_out == 1
    assert set(looked_at) <= {"/etc", "/etc/f", "/etc/l"}
    assert set(tree(tmp_path / "new")) == {"etc", "etc/f"}


def test_a_copy_that_is_too_large_leaves_room_for_smaller_ones(tmp_path, no_links):
    frames = [*file(b"/large", b"l" * 90), *file(b"/small", b"s"), link(b"/a", b"large"), link(b"/b", b"small")]
    snapshot = written(tmp_path / "new", *frames, END, max_bytes=100)
    assert set(tree(tmp_path / "new")) == {"large", "small", "b"}
    assert (snapshot.size, snapshot.left_out) == (92, 1)


@pytest.mark.timeout(60)
def test_links_that_lead_far_through_each_other_take_no_time(tmp_path, no_links):
    """Forty links, each through the next and two thousand parts more, and two hundred that begin with the first."""
    chain = [link(b"/l%d" % number, b"l%d/" % (number + 1) + b"q/" * 2000) for number in range(40)]
    more = [link(b"/m%d" % number, b"l0") for number in range(200)]
    assert written(tmp_path / "new", *chain, *more, END, windows=True).left_out == 240


@pytest.mark.parametrize("call", ["close", "unlink"])
def test_a_file_whose_end_fails_is_told_once_and_is_not_there(tmp_path, monkeypatch, call):
    closed = []
    close = os.close

    def fail(fd):
        closed.append(fd)
        close(fd)
        raise OSError(errno.ENOSPC, "full")

    snapshot = FileSnapshot(tmp_path / "new", 1000)
    snapshot.begin()
    for frame in file(b"/f")[:2]:
        snapshot.feed(encode(frame))
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", fail)
        if call == "close":
            with pytest.raises(ConfigurationError, match="no space left"):
                snapshot.feed(encode(Whole()))
        else:
            (tmp_path / "new" / "f").unlink()
        snapshot.close()
        snapshot.close()
    assert len(closed) == 1
    assert tree(tmp_path / "new") == {}
