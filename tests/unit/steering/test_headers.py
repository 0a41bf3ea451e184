"""Which kernel headers are chosen; the trees are folders made by the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidestep.model.errors import ConfigurationError
from sidestep.steering.compiler import first_problem
from sidestep.steering.headers import VARIABLE, Headers, candidates

RELEASE = "6.18.44-cloud"


def merged(folder: Path) -> Path:
    (folder / "include/linux").mkdir(parents=True)
    (folder / "include/linux/kconfig.h").touch()
    return folder


def split(modules: Path, release: str, sources: Path) -> Headers:
    build, source = sources / f"{release}-flavour", merged(sources / f"{release}-common")
    build.mkdir()
    (modules / release).mkdir(parents=True)
    (modules / release / "build").symlink_to(build)
    (modules / release / "source").symlink_to(source)
    return Headers(build=build, source=source)


def test_nothing_installed_is_one_line_that_says_what_to_install(tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        candidates(environment={}, release=RELEASE, modules=tmp_path)
    assert "linux-headers-amd64" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_named_tree_comes_alone(tmp_path):
    split(tmp_path / "modules", RELEASE, tmp_path)
    tree = merged(tmp_path / "tree")
    found = candidates(environment={VARIABLE: str(tree)}, release=RELEASE, modules=tmp_path / "modules")
    assert found == (Headers(build=tree),)


def test_a_named_tree_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=VARIABLE):
        candidates(environment={VARIABLE: str(tmp_path)}, release=RELEASE, modules=tmp_path)


def test_the_running_kernels_own_come_first_then_the_newest(tmp_path):
    modules = tmp_path / "modules"
    older = split(modules, "6.1.0-9-amd64", tmp_path)
    newer = split(modules, "6.1.0-56-amd64", tmp_path)
    own = split(modules, RELEASE, tmp_path)
    newest = split(modules, "7.0.0-amd64", tmp_path)
    found = candidates(environment={}, release=RELEASE, modules=modules)
    assert found == (own, newest, newer, older)


def test_modules_without_headers_and_dangling_links_are_passed_over(tmp_path):
    modules = tmp_path / "modules"
    (modules / RELEASE / "kernel").mkdir(parents=True)
    (modules / "6.2.0").mkdir()
    (modules / "6.2.0/build").symlink_to(tmp_path / "gone")
    (modules / "6.3.0/build").mkdir(parents=True)  # neither merged nor with a source
    installed = split(modules, "6.1.0", tmp_path)
    assert candidates(environment={}, release=RELEASE, modules=modules) == (installed,)


def test_a_merged_build_folder_needs_no_source(tmp_path):
    modules = tmp_path / "modules"
    tree = merged(tmp_path / "tree")
    (modules / RELEASE).mkdir(parents=True)
    (modules / RELEASE / "build").symlink_to(tree)
    assert candidates(environment={}, release=RELEASE, modules=modules) == (Headers(build=tree),)


def test_the_first_error_of_clang_is_what_is_shown():
    text = (
        "warning: x\n/virtual/main.c:3:10: fatal error: 'layout.h' file not found\n1 error generated.\nerror: second\n"
    )
    assert first_problem(text) == "/virtual/main.c:3:10: fatal error: 'layout.h' file not found"
    assert first_problem("nothing to see") == ""
