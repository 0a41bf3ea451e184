"""Files of a pod on the developer's machine, with the real daemon: sidestep files, and --files for a handler."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys

import pytest

from tests.harness import manifests
from tests.harness.cli import sidestep
from tests.harness.namespaces import pod_namespace
from tests.harness.node import node
from tests.harness.processes import child
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP

MAIN = """
import os, sys
os.chroot(sys.argv[1])
os.chdir("/")
os.setgroups([])
os.setresgid(1234, 1234, 1234)
os.setresuid(1234, 1234, 1234)
print("runs", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def app(space, root):
    """A container whose main process is user 1234, with a volume as Kubernetes mounts a Secret."""
    (root / "etc" / "tls").mkdir(parents=True)
    (root / "srv").mkdir()
    (root / "srv" / "own").write_text("own")
    (root / "srv" / "roots").write_text("roots")
    (root / "srv" / "roots").chmod(0o600)
    secret = root / "etc" / "tls"
    script = f"""
        mount -t tmpfs none {secret}
        mkdir {secret}/..2024
        printf certificate > {secret}/..2024/tls.crt
        ln -s ..2024 {secret}/..data
        ln -s ..data/tls.crt {secret}/tls.crt
        ln -s /etc/shadow {secret}/shadow
        mkfifo {secret}/fifo
        exec "$@"
    """
    words = ["nsenter", f"--net={space.pod.path}", "--", "unshare", "--mount", "--propagation", "private"]
    main = [sys.executable, "-S", "-c", MAIN, str(root)]
    with child([*words, "sh", "-ec", script, "sh", *main], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as found:
        assert found.stdout.readline() == b"runs\n"
        yield found


@pytest.fixture
def pod(tmp_path):
    """A pod with a container of its own, and the daemon of its node."""
    tmp_path.chmod(0o755)
    root = tmp_path / "container"
    with pod_namespace() as space, app(space, root) as process, node(tmp_path) as daemon:
        stated = {"sidestep.dev/pid": str(process.pid)}
        daemon.write("pod.yaml", manifests.pod("orders", space, annotations=stated,
                                               ports=[manifests.container_port(8080, "http")]))  # fmt: skip
        until(lambda: daemon.get("/v1/workloads"), within=10, what="the pod")
        yield root, process, daemon


def test_volumes_are_copied_with_their_links(pod, tmp_path):
    _, _, daemon = pod
    to = tmp_path / "copy"
    done = sidestep("files", "orders", "-n", "shop", "--to", to, socket=daemon.socket)
    assert done.code == 0, done.stderr
    assert f"In {to}: 1 file, 0.0 MiB; 1 left out." in done.stderr
    assert "Left out: /etc/tls/fifo: a device, pipe or socket" in done.stderr
    assert (to / "etc/tls/tls.crt").read_text() == "certificate"
    assert (to / "etc/tls/..data").readlink().as_posix() == "..2024"
    assert (to / "etc/tls/shadow").readlink().as_posix() == "../shadow"
    assert not (to / "etc/tls/shadow").exists()
    assert os.listdir(to) == ["etc"]
    assert stat.S_IMODE(to.stat().st_mode) == 0o700
    status = daemon.status()
    assert status is not None
    assert (status["intercepts"], status["pods"]) == ([], [])


def test_what_the_container_may_not_read_is_left_out_and_a_path_that_is_asked_for_is_an_error(pod, tmp_path):
    _, _, daemon = pod
    done = sidestep("files", "orders", "/srv", "-n", "shop", "--to", tmp_path / "a", socket=daemon.socket)
    assert done.code == 0, done.stderr
    assert "Left out: /srv/roots: permission denied" in done.stderr
    assert os.listdir(tmp_path / "a/srv") == ["own"]
    words = ["/srv/roots", "/absent", "/srv/own"]
    done = sidestep("files", "orders", *words, "-n", "shop", "--to", tmp_path / "b", socket=daemon.socket)
    assert done.code == 1
    assert done.stderr.splitlines() == [
        f"In {tmp_path}/b: 1 file, 0.0 MiB; 2 left out.",
        "sidestep: cannot be copied: /absent: no such file or directory; /srv/roots: permission denied",
    ]
    assert (tmp_path / "b/srv/own").read_text() == "own"


def test_more_than_the_size_is_left_out(pod, tmp_path):
    root, _, daemon = pod
    (root / "srv" / "large").write_bytes(os.urandom(40 << 20))
    small = ["--to", tmp_path / "small", "--max-size", "10"]
    done = sidestep("files", "orders", "/srv", "-n", "shop", *small, socket=daemon.socket)
    assert done.code == 0, done.stderr
    assert "Left out: /srv/large: 41943040 bytes, and 10485760 more may be sent" in done.stderr
    done = sidestep("files", "orders", "/srv", "-n", "shop", "--to", tmp_path / "all", socket=daemon.socket)
    assert done.code == 0, done.stderr
    assert (tmp_path / "all/srv/large").read_bytes() == (root / "srv" / "large").read_bytes()


def test_a_terminal_is_shown_the_progress_and_no_escapes_of_the_container(pod, tmp_path):
    root, _, daemon = pod
    os.mkfifo(root / "srv" / "\x1b[2Jfifo")
    (root / "srv" / "large").write_bytes(bytes(20 << 20))
    terminal, theirs = pty.openpty()
    words = [SIDESTEP, "files", "orders", "/srv", "-n", "shop", "--to", tmp_path / "copy", "--socket", daemon.socket]
    told = b""
    with child(words, stderr=theirs) as running:
        os.close(theirs)
        with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
            while data := os.read(terminal, 65536):
                told += data
        assert running.wait(60) == 0, told
    os.close(terminal)
    assert re.search(rb"\r\d+ files?, \d+\.\d MiB", told), told
    assert told.count(b"Left out: ") == 2
    assert b"Left out: /srv/\\x1b[2Jfifo: a device, pipe or socket\r\n" in told
    assert b"\x1b" not in told
    assert told.rstrip().splitlines()[-1].endswith(b": 2 files, 20.0 MiB; 2 left out.")


def test_a_handler_finds_them_in_a_folder_that_goes_with_it(pod, tmp_path):
    _, _, daemon = pod
    program = (
        "import json, os, pathlib; root = os.environ['SIDESTEP_ROOT'];"
        "print(json.dumps([root, pathlib.Path(root, 'etc/tls/tls.crt').read_text()]))"
    )
    words = ["intercept", "orders", "-n", "shop", "--port", "9999:http", "--http-header", "x-dev=ada"]
    tail = ["--socket", daemon.socket, "--", sys.executable, "-c", program]

    def ran(*options):
        done = subprocess.run(
            [SIDESTEP, *words, *options, *tail],
            capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "TMPDIR": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[")))

    folder, content = ran("--files")
    assert content == "certificate"
    assert os.path.dirname(folder) == str(tmp_path)
    assert not os.path.exists(folder)
    folder, content = ran("--files-path", "/etc/tls", "--files-to", tmp_path / "kept", "--env")
    assert (folder, content) == (str(tmp_path / "kept"), "certificate")
    assert (tmp_path / "kept/etc/tls/tls.crt").read_text() == "certificate"


def test_a_command_never_starts_without_them(pod, tmp_path):
    _, _, daemon = pod
    started = tmp_path / "started"
    words = ["intercept", "orders", "-n", "shop", "--port", "9999:http", "--http-header", "x-dev=ada"]
    done = subprocess.run(
        [SIDESTEP, *words, "--files-path", "/absent", "--socket", daemon.socket, "--", "touch", started],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "/absent: no such file or directory" in done.stderr
    assert not started.exists()
    assert not [name for name in os.listdir(tmp_path) if name.startswith("sidestep-")]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["orders", "-c", "db"], 1, "no container db"),
        (["pod/absent"], 1, "no workload pod/absent"),
        (["orders", "etc"], 2, "is no path in a container"),
        (["orders", "/etc/../.."], 2, "is no path in a container"),
        (["orders", "/" + "p" * 4096], 2, "is longer than 4096 bytes"),
        (["orders", *(f"/{number}" + "p" * 4000 for number in range(9))], 2, "name folders above them"),
    ],
)
def test_refusals_are_one_line_and_make_no_folder(pod, tmp_path, words, code, told):
    _, _, daemon = pod
    done = sidestep("files", *words, "-n", "shop", "--to", tmp_path / "copy", socket=daemon.socket)
    assert done.code == code
    assert told in done.error
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("command", ["files", "connect"])
def test_a_command_that_is_interrupted_leaves_no_file_that_is_not_whole(pod, tmp_path, command, number):
    root, _, daemon = pod
    with open(root / "srv" / "long", "wb") as file:
        file.truncate(250 << 20)
    place = tmp_path / "place"
    place.mkdir()
    words = [SIDESTEP, command, "orders", "-n", "shop", "--socket", daemon.socket]
    if command == "files":
        words += ["/srv/long", "--to", place / "copy"]
    else:
        words += ["--files-path", "/srv/long", "--", "true"]
    with child(words, env={**os.environ, "TMPDIR": str(place)}) as running:
        until(lambda: list(place.rglob("long")), within=30, what="the file to begin")
        running.send_signal(number)
        assert running.wait(60) == 130
    assert not list(place.rglob("long"))
    assert [each.name for each in place.iterdir()] == (["copy"] if command == "files" else [])


def test_a_folder_that_is_used_is_refused_before_anything_is_asked(pod, tmp_path):
    _, _, daemon = pod
    done = sidestep("files", "orders", "-n", "shop", "--to", tmp_path, socket=daemon.socket)
    assert done.code == 1
    assert "is not empty" in done.error


def test_the_end_of_the_daemon_ends_it_with_a_clear_message(pod, tmp_path):
    root, _, daemon = pod
    with (root / "srv" / "large").open("wb") as file:
        file.truncate(3 << 30)
    to = tmp_path / "copy"
    words = [SIDESTEP, "files", "orders", "/srv/large", "-n", "shop", "--max-size", "4000", "--to", to]
    with child([*words, "--socket", daemon.socket], stderr=subprocess.PIPE, text=True) as running:
        until((to / "srv/large").exists, within=20, what="the copy to begin")
        daemon.kill()
        _, told = running.communicate(timeout=60)
        assert running.returncode == 1, told
        assert told.startswith("The access to orders is interrupted: ")
        assert told.splitlines()[-1].startswith("sidestep: ")
        assert "Traceback" not in told
    assert not (to / "srv/large").exists()
