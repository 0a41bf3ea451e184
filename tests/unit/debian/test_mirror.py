"""Where packages come from, by apt's own reading of a configuration that the test writes."""

from __future__ import annotations

import platform
import subprocess

import pytest

from tests.debian import cache, mirror

SOURCES = """
deb http://security.test/debian-security bookworm-security main
deb http://backports.test/debian bookworm-backports main
deb [arch=amd64,arm64] http://mirror.test/debian/ bookworm main
deb http://mirror.test/debian bookworm-updates main
deb http://elsewhere.test/debian trixie main
"""


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    """Those of this machine count for nothing."""
    for name in ("SIDESTEP_DEBIAN_MIRROR", *mirror.environment()):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """A function that gives apt sources and settings of the test's, on a machine with this os-release(5)."""

    def configure(sources="", settings="", **release):
        (tmp_path / "sources.list").write_text(sources)
        (tmp_path / "empty").mkdir()
        machine = {
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": tmp_path / "empty",
            "Dir::Etc::sourcelist": tmp_path / "sources.list",
            "Dir::Etc::sourceparts": tmp_path / "empty",
        }
        text = "".join(f'{name} "{value}";\n' for name, value in machine.items())
        (tmp_path / "apt.conf").write_text(text + settings)
        monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
        monkeypatch.setattr(platform, "freedesktop_os_release", lambda: release)

    return configure


def test_the_one_that_is_named_goes_first(apt, monkeypatch):
    apt(SOURCES, ID="debian", VERSION_CODENAME="bookworm")
    monkeypatch.setenv("SIDESTEP_DEBIAN_MIRROR", "http://named.test/debian/")
    assert mirror.mirror() == "http://named.test/debian"


@pytest.mark.parametrize(
    ("codename", "expected"),
    [("bookworm", "http://mirror.test/debian"), ("trixie", "http://elsewhere.test/debian")],
)
def test_it_is_the_one_of_the_machines_own_suite(apt, codename, expected):
    apt(SOURCES, ID="debian", VERSION_CODENAME=codename)
    assert mirror.mirror() == expected


def test_a_suite_may_have_its_name_by_age(apt):
    apt("deb http://mirror.test/debian sid main\n", ID="debian")
    assert mirror.mirror() == "http://mirror.test/debian"


@pytest.mark.parametrize(
    ("sources", "release"),
    [
        ("", {"ID": "debian", "VERSION_CODENAME": "bookworm"}),
        ("deb http://mirror.test/debian bookworm-updates main\n", {"ID": "debian", "VERSION_CODENAME": "bookworm"}),
        ("deb http://mirror.test/ubuntu noble main\n", {"ID": "ubuntu", "VERSION_CODENAME": "noble"}),
    ],
)
def test_a_machine_without_one_is_told_how_to_name_one(apt, sources, release):
    apt(sources, **release)
    with pytest.raises(cache.BuildError, match="SIDESTEP_DEBIAN_MIRROR"):
        mirror.mirror()


def test_apt_elsewhere_fetches_as_here(apt, tmp_path, monkeypatch):
    proxy = 'Acquire::http::Proxy "http://proxy.test:3128/";\nAcquire::https::CaInfo "/ca with space.pem";\n'
    apt(settings=proxy + 'Acquire::Retries "7";\n')
    (tmp_path / "copied.conf").write_text(mirror.apt_settings())
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "copied.conf"))
    script = "apt-config shell a Acquire::http::Proxy b Acquire::https::CaInfo c Acquire::Retries d APT::Sandbox::User"
    shown = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert shown.stdout == "a='http://proxy.test:3128/'\nb='/ca with space.pem'\nc='7'\nd='root'\n"
    assert shown.stderr == ""


def test_programs_find_apts_proxy_unless_a_variable_names_theirs(apt, monkeypatch):
    apt(settings='Acquire::http::Proxy "http://proxy.test:3128/";\nAcquire::https::Proxy "http://other.test:3128/";\n')
    monkeypatch.setenv("https_proxy", "http://mine.test/")
    monkeypatch.setenv("NO_PROXY", "inside.test")
    monkeypatch.setenv("PIP_INDEX_URL", "http://index.test/")
    monkeypatch.setenv("UNRELATED_PROXY_THING", "1")
    assert mirror.environment() == {
        "http_proxy": "http://proxy.test:3128/",
        "https_proxy": "http://mine.test/",
        "NO_PROXY": "inside.test",
        "PIP_INDEX_URL": "http://index.test/",
    }


def test_a_proxy_that_apt_is_told_not_to_use_is_none(apt):
    apt(settings='Acquire::http::Proxy "DIRECT";\n')
    assert mirror.environment() == {}
