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
