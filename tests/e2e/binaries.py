"""Kubernetes built from Debian's source package: one folder of static programs in the cache.

Debian ships kubectl alone; its *source* package has all of Kubernetes with every dependency inside, so that Debian's Go
compiler is all that a build needs. The sources are named in an apt configuration of our own: the machine's is not
touched. Nine minutes on two cores, once.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.debian import cache, mirror

VERSION = "1.20.2"
SUITE = "bookworm"
"""The Debian release whose Kubernetes, Go, etcd and containerd belong together."""
RECIPE = 2
"""To be raised when the way it is built changes."""
COMMANDS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl")

REFLECTION = "golang-github-modern-go-reflect2"
"""Debian's package of a library that Kubernetes brings in an older version."""

_BUILD = 45 * 60.0
"""Seconds that a build may take on a busy machine."""


def kubernetes() -> Path:
    """The folder with the programs, built if it is not there. Raises BuildError."""
    home = cache.folder() / f"kubernetes-{VERSION}-{RECIPE}"
    done = home / "bin"
    if not done.is_dir():
        with cache.locked("kubernetes"):
            if not done.is_dir():
                _build(home, done)
                cache.forget("kubernetes-*", but=home)
    return done


def _build(home: Path, done: Path) -> None:
    work, log = home / "work", home / "build.log"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    log.unlink(missing_ok=True)
    source = _source(work, log)
    minor = VERSION.split(".")[1]
    environment = {
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=vendor",
        "GOCACHE": str(work / "go-cache"),
        "GOTOOLCHAIN": "local",
        "HOME": str(work),
        "KUBE_GIT_COMMIT": "faecb196815e248d3ecfb03c680a4507229c2a56",
        "KUBE_GIT_TREE_STATE": "clean",
        "KUBE_GIT_VERSION": f"v{VERSION}",
        "KUBE_GIT_MAJOR": "1",
        "KUBE_GIT_MINOR": minor,
        # Else the kubelet is built apart, with all packages once more, just as static without cgo as the others.
        "KUBE_STATIC_OVERRIDES": "kubelet",
    }
    what = " ".join(f"cmd/{name}" for name in COMMANDS)
    cache.step(
        f"building Kubernetes {VERSION} from Debian's source, once (about 10 minutes on two idle cores)",
        ["make", f"WHAT={what}"],
        log=log,
        within=_BUILD,
        cwd=source,
        environment=environment,
    )
    partial = home / "bin.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name in COMMANDS:
        shutil.copy2(source / "_output" / "bin" / name, partial / name)
    partial.rename(done)
    shutil.rmtree(work)


def _source(work: Path, log: Path) -> Path:
    """Fetch and unpack the source package with an apt configuration that lives in `work` alone."""
    apt = work / "apt"
    (apt / "lists" / "partial").mkdir(parents=True)
    (apt / "archives" / "partial").mkdir(parents=True)
    sources = apt / "debian.sources"
    sources.write_text(
        f"Types: deb-src\nURIs: {mirror.mirror()}\nSuites: {SUITE}\nComponents: main\nSigned-By: {mirror.KEYRING}\n"
    )
    settings = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": apt / "lists",
        "Dir::Cache": apt,
        "APT::Sandbox::User": "root",
        "Acquire::http::Timeout": "30",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    cache.step(
        "fetching Debian's list of sources",
        ["apt-get", *options, "-qq", "--error-on=any", "update"],
        log=log,
        within=120,
        attempts=cache.ATTEMPTS,
    )
    cache.step(
        "fetching Debian's source of Kubernetes (35 MB)",
        ["apt-get", *options, "-qq", "source", "kubernetes", REFLECTION],
        log=log,
        within=300,
        attempts=cache.ATTEMPTS,
        cwd=work,
    )
    kubernetes, reflection = (_only(work, f"{name}-[0-9]*") for name in ("kubernetes", REFLECTION))
    _adapt(kubernetes, reflection)
    return kubernetes


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
