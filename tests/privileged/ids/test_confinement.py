"""What code in the place of Suricata can do: the launcher locks Perl in instead, which makes any system call by number.

Perl is on every Debian (perl-base) and needs no file but its own libraries and the script.
"""

from __future__ import annotations

import os
import platform
import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from sidestep.aio.packets import sealed_memfd
from sidestep.ids.confinement import NICE, THREADS
from sidestep.ids.launcher import FAILED, Order
from sidestep.node.proxy_uids import ids_uid
from sidestep.sandbox.syscalls import ALLOWED, ARCHITECTURES, CLONE, CLONE3, FATAL
from tests.harness.processes import alive, child
from tests.harness.waiting import until

pytestmark = pytest.mark.privileged
landlock = pytest.mark.landlock

INDEX = ARCHITECTURES[platform.machine()][0]
UID = ids_uid(0x70000123)
LAUNCH = """
import sys
from sidestep.ids import launcher
launcher.find_suricata = lambda: {program!r}
launcher.confinement.landlock_version = {landlock}
sys.exit(launcher.main(sys.argv[1:]))
"""
EPERM, ENOENT, ESRCH, EACCES, EXDEV, EROFS, ENOSYS, ECONNREFUSED = 1, 2, 3, 13, 18, 30, 38, 111


class Launched:
    """A Perl script in the place of Suricata."""

    def __init__(
        self, code, *, program="/usr/bin/perl", memory=96 << 20, landlock="launcher.confinement.landlock_version"
    ):
        files = {"/own": b"mine", "/drill": f"$| = 1; {code}".encode()}
        fd = sealed_memfd("order", msgspec.msgpack.encode(Order(files, ("/drill",), UID, memory)))
        self.control, theirs = socket.socketpair()
        self.control.send(b"\0")
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH.format(program=program, landlock=landlock), str(theirs.fileno()), str(fd)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(theirs.fileno(), fd),
            cwd="/",
        )
        theirs.close()
        os.close(fd)

    def end(self):
        """Its exit status, and what it said."""
        try:
            said = self.process.communicate(timeout=60)[0].decode()
        finally:
            self.process.kill()
            self.process.wait()
            self.control.close()
        return self.process.returncode, said

    def wait_started(self):
        """Wait until Perl runs; its pid."""
        pid = self.process.pid
        until(lambda: b"/drill" in Path(f"/proc/{pid}/cmdline").read_bytes(), within=20, what="it to start")
        return pid


def perl(code):
    """Run Perl; what it prints."""
    status, said = Launched(code).end()
    assert status == 0, said
    return said


def errnos(*calls):
    """The errnos with which Perl expressions fail, 0 for one that does not, in one process."""
    tries = "".join(f'$! = 0; $done = ({call}); print(($done && $done != -1 ? 0 : $! + 0), " "); ' for call in calls)
    return [int(word) for word in perl(tries).split()]


@landlock
def test_it_sees_its_own_files_and_nothing_else():
    listing = r"sub show { my $d = shift; opendir(my $h, $d) or return; for (sort readdir $h) { next if /^\.\.?$/; "
    listing += r'my $p = $d eq "/" ? "/$_" : "$d/$_"; print "$p\n"; show($p) if -d $p; } } show("/");'
    names = perl(listing).split()
    assert {"/-", "/drill", "/own", "/eve.sock", "/log", "/usr/bin/perl"} <= set(names)
    assert {name.split("/")[1] for name in names} <= {"-", "drill", "own", "eve.sock", "log", "usr", "lib", "lib64"}
    files = [name for name in names if name.startswith(("/usr", "/lib")) and Path(name).is_file()]
    assert all(".so" in name or name == "/usr/bin/perl" for name in files)
    assert perl('open(my $f, "<", "/own"); print <$f>;') == "mine"
    hidden = ("/etc/passwd", "/proc/self/status", "/proc/1/environ", "/dev/mem", "/sys/kernel", "/run", "/tmp", "/root")
    assert set(errnos(*(f'open(my $f, "<", "{path}")' for path in hidden))) == {ENOENT}


@landlock
def test_it_writes_nothing():
    calls = [f'unlink("{path}")' for path in ("/own", "/drill", "/eve.sock")]
    for path in ("/own", "/new", "/log/new", "/usr/bin/perl", "/eve.sock.2"):
        calls += [f'open(my $f, ">", "{path}")', f'mkdir("{path}.d")', f'rename("/own", "{path}.x")']
    assert set(errnos(*calls)) <= {EACCES, EROFS, EXDEV}


@landlock
def test_it_has_no_network():
    number = ALLOWED["socket"][INDEX]
    families = (2, 10, 16, 17)  # IPv4, IPv6, netlink, packets
    calls = [f"syscall({number}, {family}, {kind}, 0)" for family in families for kind in (1, 2, 3)]
    assert set(errnos(*calls)) == {EPERM}
    with socket.socket(socket.AF_UNIX) as listener:
        name = f"sidestep-drill-{os.getpid()}"
        listener.bind("\0" + name)
        listener.listen()
        connect = rf'socket($s, 1, 1, 0) && connect($s, pack("S a*", 1, "\0{name}"))'
        assert errnos(connect) == [ECONNREFUSED]


@landlock
def test_it_has_no_right_and_nothing_of_others():
    assert set(perl("print join(' ', $<, $>, $(, $));").split()) == {str(UID)}
    assert perl("print join(' ', sort keys %ENV);").split() == ["LC_ALL", "PATH", "TZ"]
    found = perl('for my $n (0 .. 63) { my $f; print "$n " if open($f, "<&=", $n) && stat($f); }').split()
    assert set(found) - {"3"} == {"0", "1", "2"}  # 3 is the script that Perl reads
    others = [f"kill('KILL', {pid})" for pid in (1, os.getpid(), os.getppid())]
    assert set(errnos(*others)) <= {EPERM, ESRCH}
    assert errnos('exec("/bin/sh", "-c", "id")', 'exec("/bin/ls")') == [ENOENT] * 2


@landlock
def test_calls_that_only_an_attacker_makes_end_it():
    names = [name for name, numbers in FATAL.items() if numbers[INDEX] is not None]
    names = [name for name in names if name not in ("execve", "seccomp")]
    tries = "".join(
        f"my $p = fork; if (!$p) {{ syscall({FATAL[name][INDEX]}, 0, 0, 0, 0, 0); exit 0; }} waitpid($p, 0); "
        'print(($? & 127), " "); '
        for name in names
    )
    ended = dict(zip(names, map(int, perl(tries).split()), strict=True))
    assert ended == dict.fromkeys(names, int(signal.SIGSYS))
    assert len(ended) > 30


@landlock
def test_it_makes_no_namespace():
    new_user, signal_child = 0x10000000, 17
    calls = f"syscall({CLONE[INDEX]}, {new_user | signal_child}, 0, 0, 0, 0)", f"syscall({CLONE3[INDEX]}, 0, 0)"
    assert errnos(*calls) == [EPERM, ENOSYS]


@landlock
def test_its_memory_and_processes_are_bounded():
    status, said = Launched("my @a; push @a, 'x' x (1 << 20) while 1;", memory=64 << 20).end()
    assert status != 0
    assert "Out of memory" in said
    forks = "my $n = 0; my @p; while ($n < 100) { my $p = fork; last unless defined $p; "
    forks += "if (!$p) { sleep 30; exit } push @p, $p; $n++ } print $n; kill('KILL', @p);"
    assert 1 < int(perl(forks)) < THREADS


@landlock
def test_what_the_kernel_says_of_it():
    launched = Launched("sleep 60;")
    try:
        pid = launched.wait_started()
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[name], 16) == 0
        limits = {
            line[:25].strip(): line[25:].split()[:2] for line in Path(f"/proc/{pid}/limits").read_text().splitlines()
        }
        assert limits["Max core file size"] == limits["Max file size"] == ["0", "0"]
        assert os.getpriority(os.PRIO_PROCESS, pid) >= NICE
        for kind in ("net", "mnt", "ipc", "uts"):
            assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    finally:
        launched.process.kill()
        launched.end()


@landlock
def test_it_dies_with_the_daemon():
    code = (
        "import time\n"
        "from tests.privileged.ids.test_confinement import Launched\n"
        "launched = Launched('sleep 600')\n"
        "print(launched.wait_started(), flush=True)\n"
        "time.sleep(600)\n"
    )
    root = Path(__file__).parents[3]
    with child([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root) as daemon:
        try:
            pid = int(daemon.stdout.readline())
            assert alive(pid)
        finally:
            daemon.kill()
        until(lambda: not alive(pid), within=10, what="it to end")


def test_without_landlock_it_is_not_started():
    """On a kernel that has none, and on one that is said to have none."""
    status, said = Launched("print 'ran';", landlock="lambda: 0").end()
    assert status == FAILED
    assert "Landlock, which `ids` needs" in said
    assert "ran" not in said


def test_what_cannot_be_locked_in_is_not_started():
    status, said = Launched("print 'ran';", program="/nonexistent/suricata").end()
    assert status == FAILED
    assert "Suricata cannot be locked in" in said
    assert "ran" not in said
