"""No module of the command line mentions a name that macOS or Windows lacks, in whatever branch it stands.

The emulated commands of `test_commands` run only what they run. This reads the sources of all modules that the command
line imports anywhere; the daemon's own (`sidestep.node` and what only it imports) are not among them.
"""

from __future__ import annotations

import ast
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.integration.other_systems.known_names import ABSENT, LOOP, MODULES, SYSTEMS, missing
from tests.unit.test_imports import imported, sources

ROOT = Path(__file__).parents[3]
OTHERS = [system for system in SYSTEMS if system != "linux"]
GUARDED = {
    "aio/interrupts.py": {"add_signal_handler": "NotImplementedError is caught"},
    "cli/backend.py": {"AF_UNIX": "behind has_local_mode()"},
    "cli/doctor.py": {"geteuid": "behind a look at sys.platform"},
    "cli/firewall_child.py": {"AF_UNIX": "behind a look at sys.platform"},
    "laptop/capture.py": {"add_writer": "NotImplementedError is caught"},
    "laptop/local_client.py": dict.fromkeys(
        ("AF_UNIX", "SO_PEERCRED", "create_unix_connection", "getuid"), "behind has_local_mode()"
    ),
    "laptop/file_snapshot.py": {"geteuid": "behind hasattr(os, 'geteuid')"},
    "laptop/safe_folder.py": {
        **dict.fromkeys(("geteuid", "grp", "pwd"), "behind hasattr(os, 'geteuid')"),
        "getxattr": "behind hasattr(os, 'getxattr')",
    },
    "laptop/outbound/descriptors.py": {"resource": "ImportError is caught"},
    "laptop/outbound/local_user.py": dict.fromkeys(("AF_NETLINK", "geteuid"), "behind a look at sys.platform"),
    "tunnel/channel.py": dict.fromkeys(("POLLHUP", "POLLIN", "poll"), "behind hasattr(select, 'poll')"),
    "tunnel/node_tls.py": dict.fromkeys(("MFD_CLOEXEC", "memfd_create"), "the daemon's certificate"),
}
"""Mentions that do no harm, by file and name, with the reason."""


def modules_of_the_command_line() -> dict[str, Path]:
    """The modules that the command line can load, `sidestep.node` and what only it imports left out."""
    every = sources()
    found: dict[str, Path] = {}
    waiting = [name for name in every if name == "sidestep.cli" or name.startswith("sidestep.cli.")]
    while waiting:
        name = waiting.pop()
        if name in found or name.startswith("sidestep.node"):
            continue
        found[name] = every[name]
        parents = [name.rpartition(".")[0]] if "." in name else []
        waiting += [*imported(_without_types(every[name].read_text()), every), *parents]
    return found


def _without_types(source: str) -> str:
    """A source without what it imports for type checking only."""
    tree = ast.parse(source)
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    return ast.unparse(tree)


def mentions(source: str, system: str) -> set[str]:
    """The names in a source that a system lacks."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id=module), attr=name) if module in MODULES:
                found |= {name} & missing(module, system)
            case ast.Attribute(attr=name):
                found |= {name} & LOOP[system]
            case ast.ImportFrom(module=module, names=aliases) if module in MODULES:
                found |= {alias.name for alias in aliases} & missing(module, system)
            case ast.Import(names=aliases):
                found |= {alias.name for alias in aliases} & ABSENT[system]
            case ast.ImportFrom(module=module):
                found |= {module} & ABSENT[system]
    return found


@pytest.mark.parametrize("system", OTHERS)
def test_no_name_is_mentioned_that_a_system_lacks(system):
    root = sources()["sidestep"].parent
    found = {}
    for path in modules_of_the_command_line().values():
        file = str(path.relative_to(root))
        unknown = mentions(path.read_text(), system) - GUARDED.get(file, {}).keys()
        if unknown:
            found[file] = unknown
    assert found == {}


def test_every_guard_is_needed():
    root = sources()["sidestep"].parent
    for file, names in GUARDED.items():
        source = (root / file).read_text()
        assert names.keys() <= set().union(*(mentions(source, system) for system in OTHERS)), file


def test_the_command_line_is_more_than_its_own_package():
    found = modules_of_the_command_line()
    assert {"sidestep.laptop.handler", "sidestep.kube.transport", "sidestep.kube.portforward"} <= found.keys()
    assert not any(name.startswith("sidestep.node") for name in found)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import socket\nsocket.socket(type=socket.SOCK_NONBLOCK)", {"SOCK_NONBLOCK"}),
        ("from socket import AF_UNIX", {"AF_UNIX"}),
        ("loop.add_signal_handler(2, f)", {"add_signal_handler"}),
        ("def f():\n    import fcntl", {"fcntl"}),
        ("import signal\nfor each in (signal.SIGINT, signal.SIGHUP): pass", {"SIGHUP"}),
        ("import socket\nsocket.AF_INET", set()),
    ],
)
def test_every_way_to_mention_a_name_counts(source, found):
    assert mentions(source, "win32") == found


@pytest.mark.parametrize("system", OTHERS)
def test_the_wheel_requires_there_what_the_command_line_imports_and_nothing_else(system):
    """Each of these has wheels for macOS and Windows, so that installing it needs no compiler."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {
        canonicalize_name(each.name)
        for each in map(Requirement, project["dependencies"])
        if each.marker is None or each.marker.evaluate({"sys_platform": system})
    }
    distributions = packages_distributions()
    imports = {
        name.partition(".")[0]
        for path in modules_of_the_command_line().values()
        for name in _top_level(_without_types(path.read_text()))
    }
    used = {canonicalize_name(distributions[name][0]) for name in imports if name in distributions}
    assert used - {"sidestep"} <= required | COMES_WITH.keys()
    assert required <= used | COMES_WITH.keys()


COMES_WITH = {"aiohttp": "kubernetes", "yarl": "kubernetes", "urllib3": "only the daemon imports it"}
"""Libraries that are imported and come with others, or are required and used elsewhere."""


def _top_level(source: str) -> set[str]:
    """The modules that a source imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module)
    return found
