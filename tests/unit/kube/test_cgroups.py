"""Cgroup files of the runtimes and drivers there are, line by line as they look on real nodes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.kube.cgroups import PodCgroup, pod_cgroups

UID = "0a1b2c3d-1111-2222-3333-444455556666"
OTHER = "ffffffff-1111-2222-3333-444455556666"
FLAT = UID.replace("-", "_")
CID = "b3f1" * 16
OTHER_CID = "c4e2" * 16

ROWS = {
    "containerd, cgroupfs, v2": (f"0::/kubepods/burstable/pod{UID}/{CID}\n", (UID, CID)),
    "containerd, cgroupfs, v2, guaranteed": (f"0::/kubepods/pod{UID}/{CID}", (UID, CID)),
    "containerd, systemd, v2": (
        (
            "0::/kubepods.slice/kubepods-besteffort.slice/"
            f"kubepods-besteffort-pod{FLAT}.slice/cri-containerd-{CID}.scope\n"
        ),
        (UID, CID),
    ),
    "containerd, systemd, v2, guaranteed": (
        f"0::/kubepods.slice/kubepods-pod{FLAT}.slice/cri-containerd-{CID}.scope",
        (UID, CID),
    ),
    "containerd, v1": (
        (
            f"12:pids:/kubepods/besteffort/pod{UID}/{CID}\n"
            f"11:memory:/kubepods/besteffort/pod{UID}/{CID}\n1:name=systemd:/kubepods/besteffort/pod{UID}/{CID}\n"
        ),
        (UID, CID),
    ),
    "containerd, hybrid: version 2 says nothing": (
        f"11:memory:/kubepods/besteffort/pod{UID}/{CID}\n0::/system.slice/containerd.service\n",
        (UID, CID),
    ),
    "containerd with cgroupfs under a kubelet with systemd": (
        f"0::/system.slice/containerd.service/kubepods-burstable-pod{FLAT}.slice:cri-containerd:{CID}\n",
        (UID, CID),
    ),
    "CRI-O, systemd": (
        f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{FLAT}.slice/crio-{CID}.scope\n",
        (UID, CID),
    ),
    "CRI-O, systemd, container below its scope": (
        f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{FLAT}.slice/crio-{CID}.scope/container\n",
        (UID, CID),
    ),
    "CRI-O, cgroupfs, v1": (f"4:memory:/kubepods/burstable/pod{UID}/crio-{CID}\n", (UID, CID)),
    "docker, systemd": (
        f"1:name=systemd:/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{FLAT}.slice/docker-{CID}.scope",
        (UID, CID),
    ),
    "kind, seen from the node": (
        (
            "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/"
            f"kubelet-kubepods-besteffort-pod{FLAT}.slice/cri-containerd-{CID}.scope\n"
        ),
        (UID, CID),
    ),
    "kind, seen from a pod with a cgroup namespace": (f"0::/../../pod{UID}/{CID}\n", (UID, CID)),
    "kind, systemd, seen from a pod with a cgroup namespace": (
        f"0::/../../kubelet-kubepods-burstable-pod{FLAT}.slice/cri-containerd-{CID}.scope\n",
        (UID, CID),
    ),
    "CRI-O, cgroupfs, v2": (f"0::/kubepods/besteffort/pod{UID}/crio-{CID}\n", (UID, CID)),
    "docker, cgroupfs, v1": (
        f"12:pids:/kubepods/burstable/pod{UID}/{CID}\n4:memory:/kubepods/burstable/pod{UID}/{CID}\n",
        (UID, CID),
    ),
    "hybrid with systemd: every hierarchy and version 2 name the pod": (
        (
            f"4:memory:/kubepods.slice/kubepods-pod{FLAT}.slice/cri-containerd-{CID}.scope\n"
            f"1:name=systemd:/kubepods.slice/kubepods-pod{FLAT}.slice/cri-containerd-{CID}.scope\n"
            f"0::/kubepods.slice/kubepods-pod{FLAT}.slice/cri-containerd-{CID}.scope\n"
        ),
        (UID, CID),
    ),
    "kind on Docker without a cgroup namespace": (
        (
            f"0::/docker/{OTHER_CID}/kubelet.slice/kubelet-kubepods.slice/"
            f"kubelet-kubepods-pod{FLAT}.slice/cri-containerd-{CID}.scope\n"
        ),
        (UID, CID),
    ),
    "kind on podman without a cgroup namespace": (
        (
            f"0::/machine.slice/libpod-{OTHER_CID}.scope/kubelet.slice/kubelet-kubepods.slice/"
            f"kubelet-kubepods-pod{FLAT}.slice/cri-containerd-{CID}.scope\n"
        ),
        (UID, CID),
    ),
    "a cgroup made inside the container": (f"0::/kubepods/burstable/pod{UID}/{CID}/init.scope\n", (UID, CID)),
    "a process beside the containers": (f"0::/kubepods/burstable/pod{UID}\n", (UID, "")),
    "a cgroup that was removed": (f"0::/kubepods/burstable/pod{UID}/{CID} (deleted)\n", (UID, CID)),
}

NONE = {
    "a service": "0::/system.slice/ssh.service\n",
    "the root": "0::/\n",
    "a cgroup namespace's own root": "0::/../..\n",
    "nothing": "",
    "conmon": f"0::/kubepods.slice/kubepods-burstable-pod{FLAT}.slice/crio-conmon-{CID}.scope\n",
    "a name that only looks like it": f"0::/kubepods/burstable/xpod{UID}x/{CID}\n",
    "a UID that is none": f"0::/kubepods/burstable/pod1234/{CID}\n",
    "not a cgroup file": "\x00\xff:::::\n/pod\n",
}


@pytest.mark.parametrize("name", ROWS)
def test_the_pod_and_container_of_a_process(name):
    text, expected = ROWS[name]
    found = pod_cgroups(text)
    assert [(each.uid, each.container) for each in found] == [expected]


@pytest.mark.parametrize("name", NONE)
def test_processes_of_no_pod(name):
    assert pod_cgroups(NONE[name]) == ()


def test_a_pod_inside_a_pod_gives_both_from_the_outside_in():
    text = f"0::/kubepods/pod{UID}/{CID}/docker/{OTHER_CID}/kubelet/kubepods/burstable/pod{OTHER}/{OTHER_CID}\n"
    assert [(each.uid, each.container) for each in pod_cgroups(text)] == [(UID, CID), (OTHER, OTHER_CID)]


def test_a_name_further_in_never_comes_first():
    text = f"0::/kubepods/besteffort/pod{UID}/{CID}/kubepods/pod{OTHER}/{OTHER_CID}\n"
    assert pod_cgroups(text)[0].uid == UID


def test_the_path_is_that_of_version_2():
    both = f"5:memory:/kubepods/burstable/pod{UID}/{CID}\n0::/kubepods/burstable/pod{UID}/{CID}\n"
    assert pod_cgroups(both) == (PodCgroup(UID, CID, f"/kubepods/burstable/pod{UID}"),)
    assert pod_cgroups(f"5:memory:/kubepods/burstable/pod{UID}/{CID}\n")[0].path == ""


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (
            ROWS["containerd, systemd, v2"][0],
            f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{FLAT}.slice",
        ),
        (ROWS["CRI-O, cgroupfs, v2"][0], f"/kubepods/besteffort/pod{UID}"),
        (
            ROWS["hybrid with systemd: every hierarchy and version 2 name the pod"][0],
            f"/kubepods.slice/kubepods-pod{FLAT}.slice",
        ),
        (
            ROWS["kind, systemd, seen from a pod with a cgroup namespace"][0],
            f"/../../kubelet-kubepods-burstable-pod{FLAT}.slice",
        ),
        (ROWS["containerd with cgroupfs under a kubelet with systemd"][0], ""),
        (ROWS["docker, cgroupfs, v1"][0], ""),
        (ROWS["containerd, hybrid: version 2 says nothing"][0], ""),
    ],
)
def test_the_folder_of_a_pod_is_that_of_version_2_in_every_layout(text, path):
    assert [each.path for each in pod_cgroups(text)] == [path]


@given(st.text(max_size=400))
def test_any_text_is_survived(text):
    for place in pod_cgroups(text + f"\n0::/pod{UID}/{CID}\n"):
        assert len(place.uid) == 36
