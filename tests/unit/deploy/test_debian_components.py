"""The Debian packages of an image as components of an SBOM, from this machine's own packages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[3] / "deploy" / "debian-components"
DIGEST = "sha256:" + "0" * 64


def run(sbom: Path, admindir: Path):
    command = [sys.executable, SCRIPT, sbom, admindir, "docker.io/library/debian:trixie-slim", DIGEST]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def database(folder: Path) -> Path:
    """The state of dpkg (dpkg(1), deb-src-control(5)): an installed package, one of another source, one removed."""
    folder.mkdir()
    (folder / "status").write_text(
        "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nSource: glibc\nVersion: 2.41-12+deb13u1\n"
        "Maintainer: a <a@b.test>\nDescription: x\n\n"
        "Package: netbase\nStatus: install ok installed\nArchitecture: all\nVersion: 1:6.5~rc1\n"
        "Maintainer: a <a@b.test>\nDescription: x\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 1\n"
        "Maintainer: a <a@b.test>\nDescription: x\n\n"
    )
    (folder / "info").mkdir()
    (folder / "updates").mkdir()
    return folder


def test_packages_and_base_become_components(tmp_path):
    sbom = tmp_path / "sbom.json"
    sbom.write_text(json.dumps({"bomFormat": "CycloneDX", "components": [{"name": "h2", "purl": "pkg:pypi/h2@4.4.1"}]}))
    done = run(sbom, database(tmp_path / "dpkg"))
    assert done.returncode == 0, done.stderr
    components = json.loads(sbom.read_text())["components"]
    assert [each["purl"] for each in components] == [
        "pkg:pypi/h2@4.4.1",
        f"pkg:oci/debian@{DIGEST.replace(':', '%3A')}?tag=trixie-slim",
        "pkg:deb/debian/libc6@2.41-12%2Bdeb13u1?arch=amd64",
        "pkg:deb/debian/netbase@1:6.5~rc1?arch=all",
    ]
    assert components[1]["version"] == f"trixie-slim@{DIGEST}"
    assert components[2]["properties"] == [{"name": "sidestep:debian:source", "value": "glibc 2.41-12+deb13u1"}]


def test_images_for_two_architectures_share_packages_and_base(tmp_path):
    """A bom-ref is unique in an SBOM (CycloneDX 1.6, "components")."""
    sbom = tmp_path / "sbom.json"
    sbom.write_text(json.dumps({"bomFormat": "CycloneDX"}))
    first, second = database(tmp_path / "amd64"), database(tmp_path / "arm64")
    (second / "status").write_text(
        (second / "status").read_text().replace("Architecture: amd64", "Architecture: arm64")
    )
    for folder in (first, second):
        assert run(sbom, folder).returncode == 0
    assert [each["bom-ref"].partition("/")[2] for each in json.loads(sbom.read_text())["components"]] == [
        f"debian@{DIGEST.replace(':', '%3A')}?tag=trixie-slim",
        "debian/libc6@2.41-12%2Bdeb13u1?arch=amd64",
        "debian/netbase@1:6.5~rc1?arch=all",
        "debian/libc6@2.41-12%2Bdeb13u1?arch=arm64",
    ]


def test_an_image_without_packages_is_an_error(tmp_path):
    sbom = tmp_path / "sbom.json"
    sbom.write_text("{}")
    empty = database(tmp_path / "dpkg")
    (empty / "status").write_text("")
    done = run(sbom, empty)
    assert done.returncode == 1
    assert "no package is installed" in done.stderr
    assert sbom.read_text() == "{}"
