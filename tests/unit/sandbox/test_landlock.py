"""Landlock, in a process of its own: what it can still do with files afterwards."""

import json
import subprocess
import sys

PROGRAM = """
import errno, json, os
from sidestep.sandbox import landlock, libc
libc.prctl(38, 1, doing="setting no_new_privs")
tree = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
has_it = landlock.deny_files()
told = []
for path, at in (("/etc/passwd", None), ("etc/passwd", tree), ("/etc", None)):
    try:
        os.close(os.open(path, os.O_RDONLY, dir_fd=at))
        told.append(0)
    except OSError as error:
        told.append(error.errno)
print(json.dumps([has_it, told]))
"""


def test_no_file_can_be_opened_any_more_where_there_is_landlock():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True, timeout=60)
    has_it, told = json.loads(result.stdout)
    assert told == ([13, 13, 13] if has_it else [0, 0, 0])


READING = """
import errno, json, os, sys
from sidestep.sandbox import landlock, libc
libc.prctl(38, 1, doing="setting no_new_privs")
folder = sys.argv[1]
opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
has_it = landlock.deny_writing()
told = []
for work in (
    lambda: os.read(os.open("file", os.O_RDONLY, dir_fd=opened), 10).decode(),
    lambda: os.listdir(folder),
    lambda: os.open("file", os.O_WRONLY, dir_fd=opened),
    lambda: os.open("new", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=opened),
    lambda: os.mkdir(folder + "/new"),
    lambda: os.symlink("x", folder + "/new"),
    lambda: os.unlink("file", dir_fd=opened),
    lambda: os.rename(folder + "/file", folder + "/new"),
    lambda: os.execv(folder + "/file", ["file"]),
):
    try:
        told.append(work())
    except OSError as error:
        told.append(error.errno)
print(json.dumps([has_it, told]))
"""


def test_files_can_be_read_and_not_changed_where_there_is_landlock(tmp_path):
    (tmp_path / "file").write_text("content")
    (tmp_path / "file").chmod(0o700)
    result = subprocess.run([sys.executable, "-c", READING, str(tmp_path)], capture_output=True, check=True, timeout=60)
    has_it, told = json.loads(result.stdout)
    if has_it:
        assert told == ["content", ["file"], *([13] * 7)]
        assert (tmp_path / "file").read_text() == "content"
