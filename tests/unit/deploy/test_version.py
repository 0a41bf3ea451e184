"""The version stands in `sidestep.__version__` only; where else it must be written, it is the same."""

import re
import tomllib
from pathlib import Path

from sidestep import __version__
from tests.unit.deploy.test_manifest import the

ROOT = Path(__file__).resolve().parents[3]


def test_the_package_takes_its_version_from_the_source():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert "version" not in project["project"]
    assert project["tool"]["hatch"]["version"]["path"] == "daemon/sidestep/__init__.py"


def test_the_manifest_asks_for_the_image_of_this_version():
    [container] = the("DaemonSet")["spec"]["template"]["spec"]["containers"]
    assert container["image"].rpartition(":")[2] == __version__


def test_the_documentation_shows_this_version():
    shown = {
        found
        for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
        for found in re.findall(r"sidestep[-/:].*?\b(\d+\.\d+\.\d+)$", path.read_text(), re.MULTILINE)
    }
    assert shown == {__version__}
