"""The programs of a single-node Kubernetes and their settings.

Nothing here chooses how Sidestep works; it is the smallest cluster that behaves like others: Node and RBAC
authorization, service accounts, CRI with containerd and runc, a CNI bridge. There is no kube-proxy and no DNS: the
`kubernetes` service's address is the API server's own, other services have none that answers. Users are static tokens.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization

from tests.e2e import images, machine
from tests.e2e.releases import Release
from tests.harness.authority import Authority, new_key, pem_of

SERVER = f"https://{machine.SERVICE_IP}:443"
CONTAINERD = "/run/containerd/containerd.sock"

COMPONENTS = {
    "admin": ("e2e-admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "kubelet": (f"system:node:{machine.NODE_NAME}", "system:nodes"),
}
DEVELOPERS = ("ada", "bob", "eve", "mallory")
"""Users without any right until a test gives them some."""


@dataclass
class Settings:
    """Files that the programs read, below one folder."""

    folder: Path
    snapshotter: str
    release: Release
    tokens: dict[str, str] = field(default_factory=dict)

    def kubeconfig(self, user: str) -> Path:
        """The kubeconfig of a component or a developer."""
        return self.folder / f"{user}.kubeconfig"

    @property
    def audit(self) -> Path:
        """What Sidestep's service account has asked of the API server, a JSON line for each request."""
        return self.folder / "audit.jsonl"

    def write(self) -> None:
        """Make keys, certificates, tokens and configuration files."""
        self.folder.mkdir(parents=True)
        self._keys()
        users = {**COMPONENTS, **{name: (name, "") for name in DEVELOPERS}}
        lines = []
        for name, (user, group) in users.items():
            token = self.tokens[name] = secrets.token_hex(16)
            lines.append(f'{token},{user},{user},"{group}"\n')
            self._kubeconfig(name, token)
        self._put("tokens.csv", "".join(lines))
        self._put("kubelet.yaml", yaml.safe_dump(self._kubelet()))
        self._put("containerd.toml", self._containerd())
        self._put("resolv.conf", "")
        self._put("audit.yaml", yaml.safe_dump(_AUDIT))
        (self.folder / "cni").mkdir()
        self._put("cni/10-bridge.conflist", json.dumps(_NETWORK))

    def _put(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(0o600)
        return path

    def _keys(self) -> None:
        authority = Authority("cluster")
        self._put("ca.crt", authority.pem)
        server = authority.issue(
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            ips=[machine.SERVICE_IP, machine.NODE_IP, "127.0.0.1"],
        )
        client = authority.issue("kube-apiserver-kubelet-client", client=True)
        for name, certificate in (("apiserver", server), ("kubelet-client", client)):
            self._put(f"{name}.crt", certificate.chain)
            self._put(f"{name}.key", certificate.key)
        key = new_key("rsa")
        self._put("accounts.key", pem_of(key))
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self._put("accounts.pub", public)

    def _kubeconfig(self, name: str, token: str) -> None:
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "e2e",
                    "cluster": {"server": SERVER, "certificate-authority": str(self.folder / "ca.crt")},
                }
            ],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": name}}],
            "current-context": "e2e",
        }
        self._put(f"{name}.kubeconfig", yaml.safe_dump(content))

    def _kubelet(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": False},
                "x509": {"clientCAFile": str(self.folder / "ca.crt")},
            },
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": "",
            "failSwapOn": False,
            "makeIPTablesUtilChains": False,
            "oomScoreAdj": 0,
            "resolvConf": str(self.folder / "resolv.conf"),
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            "nodeStatusUpdateFrequency": "4s",
            "syncFrequency": "3s",
            "fileCheckFrequency": "30s",
            "serializeImagePulls": False,
            "readOnlyPort": 0,
            **self.release.kubelet_fields,
        }

    def _containerd(self) -> str:
        return self._containerd_2() if self.release.containerd() >= 2 else self._containerd_1()

    def _containerd_2(self) -> str:
        return f"""version = 3
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
                    "io.containerd.snapshotter.v1.zfs", "io.containerd.nri.v1.nri"]
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "{self.snapshotter}"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{images.PAUSE}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["{self.release.plugins}"]
  conf_dir = "{self.folder / "cni"}"
[plugins."io.containerd.cri.v1.runtime".containerd]
  default_runtime_name = "runc"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
"""

    def _containerd_1(self) -> str:
        return f"""version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
                    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{images.PAUSE}"
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{self.release.plugins}"
  conf_dir = "{self.folder / "cni"}"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "{self.snapshotter}"
  default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
"""


DAEMON_ACCOUNT = "system:serviceaccount:sidestep:sidestep-node"
_AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    # Each request as it is received: a watch that runs would not be told of before its end.
    "omitStages": ["ResponseStarted"],
    "rules": [{"level": "Metadata", "users": [DAEMON_ACCOUNT]}, {"level": "None"}],
}

_NETWORK = {
    "cniVersion": "0.3.1",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": False,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": machine.POD_NETWORK}]],
                "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": "/run/cni",
            },
        }
    ],
}


def etcd() -> list[str]:
    """etcd, in memory: /run is a tmpfs."""
    return [
        "etcd",
        "--data-dir=/run/etcd",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--logger=zap",
        "--log-level=warn",
    ]


def apiserver(settings: Settings) -> list[str]:
    """The API server, on the address of the `kubernetes` service: pods reach it without a kube-proxy."""
    folder = settings.folder
    return [
        str(settings.release.programs / "kube-apiserver"),
        "--etcd-servers=http://127.0.0.1:2379",
        "--bind-address=0.0.0.0",
        "--secure-port=443",
        *settings.release.apiserver_flags,
        f"--advertise-address={machine.NODE_IP}",
        f"--service-cluster-ip-range={machine.SERVICE_NETWORK}",
        f"--tls-cert-file={folder}/apiserver.crt",
        f"--tls-private-key-file={folder}/apiserver.key",
        f"--client-ca-file={folder}/ca.crt",
        f"--token-auth-file={folder}/tokens.csv",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={folder}/accounts.pub",
        f"--service-account-signing-key-file={folder}/accounts.key",
        f"--kubelet-client-certificate={folder}/kubelet-client.crt",
        f"--kubelet-client-key={folder}/kubelet-client.key",
        "--kubelet-preferred-address-types=InternalIP",
        "--authorization-mode=Node,RBAC",
        f"--audit-policy-file={folder}/audit.yaml",
        f"--audit-log-path={settings.audit}",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
    ]


def controller_manager(settings: Settings) -> list[str]:
    """The controllers, without leader election: there is no other."""
    folder = settings.folder
    return [
        str(settings.release.programs / "kube-controller-manager"),
        f"--kubeconfig={settings.kubeconfig('controller-manager')}",
        f"--root-ca-file={folder}/ca.crt",
        f"--service-account-private-key-file={folder}/accounts.key",
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        *settings.release.controller_flags,
    ]


def scheduler(settings: Settings) -> list[str]:
    """The scheduler."""
    return [
        str(settings.release.programs / "kube-scheduler"),
        f"--kubeconfig={settings.kubeconfig('scheduler')}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        *settings.release.controller_flags,
    ]


def containerd(settings: Settings) -> list[str]:
    """containerd with its CRI plugin; state and root lie where they usually do, in folders of the node's own."""
    return ["containerd", "--config", str(settings.folder / "containerd.toml"), "--log-level=warn"]


def kubelet(settings: Settings, *, cgroup: str) -> list[str]:
    """The kubelet; pods' cgroups lie below `cgroup`."""
    return [
        str(settings.release.programs / "kubelet"),
        f"--config={settings.folder}/kubelet.yaml",
        f"--kubeconfig={settings.kubeconfig('kubelet')}",
        f"--cgroup-root={cgroup}",
        *settings.release.kubelet_flags,
        f"--container-runtime-endpoint=unix://{CONTAINERD}",
        f"--hostname-override={machine.NODE_NAME}",
        f"--node-ip={machine.NODE_IP}",
        "--root-dir=/var/lib/kubelet",
        "--cert-dir=/var/lib/kubelet/pki",
    ]
