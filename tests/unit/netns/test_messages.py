"""pyroute2 is loaded in part, and only in the daemon."""

from __future__ import annotations

import subprocess
import sys
from ipaddress import ip_address

import pytest

from sidestep.model.pod import Family
from sidestep.netns.messages import address_of

LOADED = "import sys, {module}; print(*sorted(each for each in sys.modules if each.startswith('pyroute2')))"


def loaded(module):
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(module=module)], capture_output=True, check=True, text=True
    )
    return done.stdout.split()


def test_the_daemon_loads_no_protocol_that_it_does_not_use():
    modules = loaded("sidestep.node.daemon")
    assert "pyroute2.netlink.diag" in modules
    assert len(modules) < 25
    assert not {"pyroute2.ndb", "pyroute2.iproute", "pyroute2.netlink.generic", "pyroute2.plan9"} & set(modules)


@pytest.mark.parametrize(
    "module",
    ["sidestep.proxy.runtime.zygote", "sidestep.node.certificates.reader_child", "sidestep.cli.main"],
)
def test_small_processes_load_nothing_of_it(module):
    assert loaded(module) == []


def test_it_can_be_imported_whole_before():
    assert "pyroute2.ndb" in loaded("pyroute2, sidestep.netns.messages")


@pytest.mark.parametrize(
    "use",
    [
        "from pyroute2 import IPRoute; IPRoute().close()",
        "import pyroute2; pyroute2.IPRoute().close()",
        "import pyroute2; pyroute2.netlink.nlmsg; pyroute2.ndb; pyroute2.NDB",
        "import pyroute2; assert pyroute2.__version__",
        "from pyroute2 import IPRoute; from sidestep.netns.messages import nlmsg; assert issubclass(nlmsg, object)",
    ],
)
def test_the_rest_of_it_is_there_for_whoever_asks_later(use):
    code = f"import sidestep.netns.messages\n{use}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_it_does_not_have_is_an_attribute_error():
    code = "import sidestep.netns.messages, pyroute2\ntry: pyroute2.nothing\nexcept AttributeError: print('so')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("so\n", "")


@pytest.mark.parametrize(
    ("words", "family", "address"),
    [
        ((0x7F000001, 0, 0, 0), Family.IPV4, "127.0.0.1"),
        ((0, 0, 0, 0), Family.IPV4, "0.0.0.0"),
        ((0xFD990001, 0, 0, 2), Family.IPV6, "fd99:1::2"),
        ((0, 0, 0xFFFF, 0x0A000001), Family.IPV6, "10.0.0.1"),
        ((0, 0, 0, 0), Family.IPV6, "::"),
    ],
)
def test_addresses_of_answers(words, family, address):
    assert address_of(words, family) == ip_address(address)
