"""The compiler child with real bcc and real headers, and everything that can be wrong with either."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidestep.model.errors import BugError, ConfigurationError
from sidestep.steering import compile_program
from sidestep.steering.compiler import CHILD, MAX_OUTPUT
from sidestep.steering.headers import VARIABLE
from tests.harness.processes import children
from tests.harness.waiting import until

pytestmark = pytest.mark.privileged


def compile_in(preparation: str, *, deadline: float = 60.0):
    """Compile in a private mount namespace in which the shell commands `preparation` ran first."""
    command = ("unshare", "--mount", "sh", "-c", f'set -e; {preparation}; exec "$0" "$@"', *CHILD)
    return asyncio.run(compile_program(command=command, deadline=deadline))


def installed() -> tuple[Path, Path]:
    """Debian's two halves."""
    folder = next(each for each in sorted(Path("/lib/modules").iterdir()) if (each / "source").exists())
    return (folder / "build").resolve(), (folder / "source").resolve()


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    before = children(os.getpid())
    yield
    assert children(os.getpid()) == before


def modules() -> set[str]:
    return {str(path) for path in Path("/lib/modules").glob("*/*")} | {
        line for line in Path("/proc/mounts").read_text().splitlines() if "/lib/modules" in line
    }


def test_compiling_leaves_no_trace(program):
    before, temporary = modules(), set(os.listdir("/tmp"))
    again = asyncio.run(compile_program())
    assert again == program
    assert modules() == before
    assert not {name for name in set(os.listdir("/tmp")) - temporary if "kheaders" in name or "bcc" in name}


def test_the_compiler_has_no_capability_when_llvm_is_loaded(tmp_path, monkeypatch):
    """A stand-in for bcc says what the process may do at the moment in which it is imported."""
    told = tmp_path / "told"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "bcc.py").write_text(
        f"import pathlib\npathlib.Path({str(told)!r}).write_text(pathlib.Path('/proc/self/status').read_text())\n"
    )
    with pytest.raises(ConfigurationError, match="python3-bpfcc"):
        asyncio.run(compile_program())
    status = dict(line.split(":\t") for line in told.read_text().splitlines() if line.startswith(("Cap", "NoNew")))
    assert status.pop("NoNewPrivs") == "1"
    assert {int(value, 16) for value in status.values()} == {0}, status
    assert len(status) == 5


def test_the_folder_that_the_daemon_is_started_in_gives_no_module(program, tmp_path, monkeypatch):
    """The child is root until it has mounted the headers, and anybody may own that folder."""
    (tmp_path / "msgspec.py").write_text("raise SystemExit('imported from the working directory')\n")
    monkeypatch.chdir(tmp_path)
    assert asyncio.run(compile_program()) == program


def test_compiling_makes_nothing_in_the_kernel(tmp_path):
    """No map is asked for; what bcc tries by itself (BTF, a probe of the kernel) is refused and not missed."""
    trace = tmp_path / "trace"
    command = ("strace", "-f", "-qq", "-e", "trace=bpf", "-o", str(trace), *CHILD)
    asyncio.run(compile_program(command=command))
    calls = trace.read_text().splitlines()
    assert not [line for line in calls if "BPF_MAP_CREATE" in line or "EPERM" not in line]


def test_a_merged_tree_serves(program, tmp_path, monkeypatch):
    build, source = installed()
    tree = tmp_path / "headers"
    tree.mkdir()
    monkeypatch.setenv(VARIABLE, str(tree))
    merged = compile_in(f"mount -t overlay none -o lowerdir={build}:{source} {tree}; mount -t tmpfs none /lib/modules")
    assert merged == program


def test_headers_that_do_not_compile_are_passed_over_for_the_next(program):
    build, source = installed()
    broken = f"/lib/modules/{os.uname().release}"
    assert program == compile_in(
        "mount -t tmpfs none /lib/modules; "
        f"mkdir -p {broken}/build/include/linux /lib/modules/6.1.0; touch {broken}/build/include/linux/kconfig.h; "
        f"ln -s {build} /lib/modules/6.1.0/build; ln -s {source} /lib/modules/6.1.0/source"
    )


def test_the_running_kernels_own_split_tree_serves_as_it_is(program):
    build, source = installed()
    own = f"/lib/modules/{os.uname().release}"
    prepare = f"mount -t tmpfs none /lib/modules; mkdir {own}; ln -s {build} {own}/build; ln -s {source} {own}/source"
    assert program == compile_in(prepare)


def test_a_named_tree_that_is_none_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(ConfigurationError, match=f"{VARIABLE}.*kconfig.h") as caught:
        asyncio.run(compile_program())
    assert "\n" not in str(caught.value)


def test_missing_headers_are_one_line():
    with pytest.raises(ConfigurationError, match="linux-headers-amd64") as caught:
        compile_in("mount -t tmpfs none /lib/modules")
    assert "\n" not in str(caught.value)


def test_unusable_headers_are_one_line_with_the_compilers_reason():
    broken = f"/lib/modules/{os.uname().release}/build/include/linux"
    with pytest.raises(ConfigurationError, match=r"cannot compile.*error:") as caught:
        compile_in(f"mount -t tmpfs none /lib/modules; mkdir -p {broken}; touch {broken}/kconfig.h")
    assert "\n" not in str(caught.value)


def test_missing_bcc_is_one_line():
    with pytest.raises(ConfigurationError, match="python3-bpfcc") as caught:
        compile_in("mount -t tmpfs none /usr/lib/python3/dist-packages")
    assert "\n" not in str(caught.value)


def test_a_missing_compiler_library_is_one_line():
    with pytest.raises(ConfigurationError, match="python3-bpfcc"):
        compile_in("for l in $(ls /usr/lib/*/libbcc.so.0); do mount --bind /dev/null $l; done")


@pytest.mark.parametrize(
    ("child", "reason"),
    [
        (("sh", "-c", "echo hello"), "status 0"),
        (("sh", "-c", "echo oops >&2; exit 7"), "status 7: oops"),
        (("sh", "-c", "kill -9 $$"), "status -9"),
        (("true",), "no output"),
        ((sys.executable, "-c", f"print('x' * {MAX_OUTPUT + 2})"), "more than"),
        (("yes",), "more than"),
    ],
    ids=["garbage", "crash", "killed", "silent", "too much", "endless"],
)
def test_a_child_that_breaks_its_contract_is_a_bug(child, reason):
    with pytest.raises(BugError, match=reason):
        asyncio.run(compile_program(command=child))


def test_a_child_that_hangs_is_killed():
    start = time.monotonic()
    with pytest.raises(ConfigurationError, match=r"did not end within 0\.3 s"):
        asyncio.run(compile_program(command=("sh", "-c", "exec sleep 600"), deadline=0.3))
    assert time.monotonic() - start < 5


def test_endless_diagnostics_are_dropped_and_end_with_the_deadline():
    with pytest.raises(ConfigurationError, match="did not end"):
        asyncio.run(compile_program(command=("sh", "-c", "exec yes >&2"), deadline=1))


def test_a_cancelled_compilation_leaves_no_child():
    before = children(os.getpid())

    async def cancelled() -> None:
        task = asyncio.create_task(compile_program(command=("sh", "-c", "exec sleep 600")))
        await asyncio.to_thread(until, lambda: children(os.getpid()) != before, within=5, what="the child to start")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())


def test_a_child_that_cannot_be_started_is_one_line():
    with pytest.raises(ConfigurationError, match="cannot start the compiler"):
        asyncio.run(compile_program(command=("/nonexistent/python",)))
