"""The kustomize base, built by the kubectl of this Kubernetes. No cluster takes part."""

import subprocess

import yaml

from tests.e2e import releases
from tests.e2e.images import DEPLOY


def built(folder):
    command = [releases.release().programs / "kubectl", "kustomize", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(done.stdout)}


def manifest():
    documents = yaml.safe_load_all((DEPLOY / "daemonset.yaml").read_text())
    return {(one["kind"], one["metadata"]["name"]): one for one in documents if one}


def test_the_base_is_the_manifest():
    assert built(DEPLOY) == manifest()


def test_an_overlay_names_the_image(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    for name in ("kustomization.yaml", "daemonset.yaml"):
        (base / name).write_text((DEPLOY / name).read_text())
    # The kustomize in kubectl before 1.21 has another word for folders.
    bases = "resources" if releases.release().minor >= 21 else "bases"
    (tmp_path / "kustomization.yaml").write_text(
        f"{bases}: [base]\nimages:\n- {{name: localhost/sidestep, newName: registry.example/sidestep, newTag: 0.2.0}}\n"
    )
    found, wanted = built(tmp_path), manifest()
    [container] = wanted["DaemonSet", "sidestep-node"]["spec"]["template"]["spec"]["containers"]
    container["image"] = "registry.example/sidestep:0.2.0"
    assert found == wanted
