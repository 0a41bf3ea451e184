"""Kubernetes built from Debian's source package: one folder of static programs in the cache.

Debian ships kubectl alone; its *source* package has all of Kubernetes with every dependency inside, so that Debian's Go
compiler is all that a build needs. Sources and compiler are bookworm's, in a room of their own: what the machine runs
and has installed plays no part.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

from tests.debian import cache, mirror, roots
from tests.debian.room import Bind, Room

VERSION = "1.20.2"
SUITE = "bookworm"
"""The Debian release whose Kubernetes, Go, etcd and containerd belong together."""
RECIPE = 4
"""To be raised when the way it is built changes."""
COMMANDS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kubectl",
    # For clusters made by kind; nearly all of their packages are compiled for the others anyway.
    "kubeadm",
    "kube-proxy",
)
COMPILER = ("golang-go", "dpkg-dev", "make", "rsync", "ca-certificates")

REFLECTION = "golang-github-modern-go-reflect2"
"""Debian's package of a library that Kubernetes brings in an older version."""

_BUILD = 45 * 60.0
"""Seconds that a build may take on a busy machine."""

_BUILT = "_output/local/bin/linux"
"""Where the source's own scripts leave programs."""
_SCRIPT = "hack/make-rules/build.sh"
"""The source's own script that builds programs, and nothing before them."""
_MODULE = "k8s.io/kubernetes"
_SCHEMAS = "pkg/generated/openapi"
"""The package of the API's schemas, the one generated package that Debian's source lacks."""
_APART = ("vendor/k8s.io/code-generator/", "vendor/k8s.io/sample-apiserver/")
"""Packages of examples, which have schemas of their own."""
_HAS_SCHEMA = re.compile(rb"^// *\+k8s:openapi-gen=", re.MULTILINE)


def kubernetes() -> Path:
    """The folder with the programs, built if it is not there. Raises BuildError."""
    return cache.entry(f"kubernetes-{VERSION}", cache.digest(str(RECIPE), *COMMANDS), _build) / "bin"


def _build(home: Path) -> None:
    work, log = home / "work", home / "build.log"
    work.mkdir()
    room = Room(
        roots.root("go", SUITE, COMPILER),
        binds=[Bind(work, "/work")],
        files={"/etc/apt/sources.list": f"deb-src {mirror.mirror()} {SUITE} main\n"},
        directory="/work",
        environment={
            "CGO_ENABLED": "0",
            "GOFLAGS": "-mod=vendor",
            "GOCACHE": "/work/go-cache",
            "GOTOOLCHAIN": "local",
            "HOME": "/work",
            "KUBE_GIT_COMMIT": "faecb196815e248d3ecfb03c680a4507229c2a56",
            "KUBE_GIT_TREE_STATE": "clean",
            "KUBE_GIT_VERSION": f"v{VERSION}",
            "KUBE_GIT_MAJOR": "1",
            "KUBE_GIT_MINOR": VERSION.split(".")[1],
            # Else the kubelet is built apart, with all packages once more, just as static without cgo as the others.
            "KUBE_STATIC_OVERRIDES": "kubelet",
        },
    )
    cache.step(
        "fetching Debian's source of Kubernetes (35 MB)",
        room.run("sh", "-euc", "apt-get -qq --error-on=any update; exec apt-get -qq source kubernetes " + REFLECTION),
        log=log,
        within=300,
        attempts=cache.ATTEMPTS,
    )
    source, reflection = (_only(work, f"{name}-[0-9]*") for name in ("kubernetes", REFLECTION))
    _adapt(source, reflection)
    room = replace(room, directory=f"/work/{source.name}")
    _generate_schemas(source, room, log)
    cache.step(
        f"building Kubernetes {VERSION} from Debian's source, once (about 11 minutes on two idle cores)",
        room.run(_SCRIPT, *(f"./cmd/{name}" for name in COMMANDS)),
        log=log,
        within=_BUILD,
    )
    built = _only(source / _BUILT, "*")
    (home / "bin").mkdir()
    for name in COMMANDS:
        shutil.copy2(built / name, home / "bin" / name)
    shutil.rmtree(work)


def _generate_schemas(source: Path, room: Room, log: Path) -> None:
    """Make the one generated package that is missing.

    `make all` would make it, too, but only after it has made all the others again, which takes longer than the build.
    """
    generator = "./vendor/k8s.io/kube-openapi/cmd/openapi-gen"
    cache.step(
        "building the generator of Kubernetes' API schemas",
        room.run(_SCRIPT, generator),
        log=log,
        within=_BUILD,
    )
    built = _only(source / _BUILT, "*") / Path(generator).name
    cache.step(
        "generating the schemas of Kubernetes' API",
        room.run(
            *("hack/run-in-gopath.sh", f"{room.directory}/{built.relative_to(source)}"),
            *("--input-dirs", ",".join(f"{_MODULE}/{package}" for package in _with_schema(source))),
            *("--output-package", f"{_MODULE}/{_SCHEMAS}"),
            *("--output-file-base", "zz_generated.openapi"),
            *("--go-header-file", "vendor/k8s.io/code-generator/hack/boilerplate.go.txt"),
            *("--report-filename", "/work/violations"),
        ),
        log=log,
        within=_BUILD,
    )


def _with_schema(source: Path) -> list[str]:
    """The packages of which the API server publishes schemas: those that Makefile.generated_files finds."""
    folders = {
        path.parent.relative_to(source).as_posix().replace("staging/src/", "vendor/")
        for below in ("pkg", "staging/src/k8s.io")
        for path in (source / below).rglob("*.go")
        if _HAS_SCHEMA.search(path.read_bytes())
    }
    return sorted(folder for folder in folders if not folder.startswith(_APART))


def _adapt(kubernetes: Path, reflection: Path) -> None:
    """Two places where Kubernetes 1.20 relies on the insides of the Go of its time, and fails with 1.18 and later.

    The API server dies while it encodes a map that reflect2 walks: Debian's own version of reflect2 takes its place.
    And it takes an empty text in a custom resource for null, by comparing addresses; later versions compare none.
    """
    inside = kubernetes / "vendor" / "github.com" / "modern-go" / "reflect2"
    for pattern in ("*.go", "*.s"):
        for path in inside.glob(pattern):
            path.unlink()
        for path in reflection.glob(pattern):
            shutil.copy2(path, inside)
    wrong = "if data == nil || reflect.DeepEqual(reflect.Zero(reflect.TypeOf(data)), reflect.ValueOf(data)) {"
    for library in ("k8s.io/kube-openapi/pkg/validation/validate", "github.com/go-openapi/validate"):
        path = kubernetes / "vendor" / library / "type.go"
        text = path.read_text()
        if wrong not in text:
            raise cache.BuildError(f"{path} is not what it was when this was written")
        path.write_text(text.replace(wrong, "if data == nil {"))


def _only(folder: Path, pattern: str) -> Path:
    found = [path for path in folder.glob(pattern) if path.is_dir()]
    if len(found) != 1:
        raise cache.BuildError(f"expected one folder {folder}/{pattern}, found {found}")
    return found[0]
