"""The walk through a /proc that is only a folder."""

import os

import pytest

from sidestep.kube.processes import PodToLocate, locate_pods, started

UID = "0a1b2c3d-1111-2222-3333-444455556666"
OTHER = "ffffffff-1111-2222-3333-444455556666"
PAUSE, APP, SIDE = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture
def proc(tmp_path):
    root = tmp_path / "proc"
    root.mkdir()
    (root / "self").mkdir()
    (root / "uptime").write_text("1 1")

    def process(pid, cgroup, *, began):
        folder = root / str(pid)
        folder.mkdir()
        (folder / "cgroup").write_text(cgroup)
        # A name may hold spaces and parentheses (proc_pid_stat(5)).
        fields = ["S"] + ["0"] * 18 + [str(began)] + ["0"] * 30
        (folder / "stat").write_text(f"{pid} (a ) b) {' '.join(fields)}")

    process.root = str(root)  # type: ignore[attr-defined]
    return process


def cgroup(uid, container):
    return f"0::/kubepods/burstable/pod{uid}/{container}\n"


def test_the_sandbox_gives_the_namespace_and_each_container_its_first_process(proc):
    proc(500, cgroup(UID, APP), began=1200)
    proc(90, cgroup(UID, APP), began=5000)  # an exec; its pid came round again
    proc(499, cgroup(UID, PAUSE), began=1000)
    proc(501, cgroup(UID, SIDE), began=1300)
    proc(1, "0::/init.scope\n", began=1)
    found = locate_pods({UID: PodToLocate(UID, {APP: "app", SIDE: "side"})}, proc=proc.root, cgroup_roots=())
    assert list(found) == [UID]
    assert found[UID].netns == f"{proc.root}/499/ns/net"
    assert found[UID].pids == {"app": 500, "side": 501}
    assert found[UID].births == {499: 1000, 500: 1200, 501: 1300}
    assert found[UID].cgroup is None


def test_one_walk_serves_all_pods_and_none_that_is_not_wanted(proc):
    proc(10, cgroup(UID, PAUSE), began=1)
    proc(20, cgroup(OTHER, APP), began=1)
    found = locate_pods({OTHER: PodToLocate(OTHER, {APP: "app"})}, proc=proc.root, cgroup_roots=())
    assert {uid: location.pids for uid, location in found.items()} == {OTHER: {"app": 20}}


def test_a_cgroup_with_the_name_of_another_pod_inside_a_container_changes_nothing(proc):
    proc(10, cgroup(UID, PAUSE), began=100)
    proc(11, f"0::/kubepods/burstable/pod{OTHER}/{SIDE}/kubepods/pod{UID}/{APP}\n", began=1)
    both = {UID: PodToLocate(UID, {APP: "app"}), OTHER: PodToLocate(OTHER, {SIDE: "side"})}
    found = locate_pods(both, proc=proc.root, cgroup_roots=())
    assert found[UID].netns == f"{proc.root}/10/ns/net"
    assert found[UID].pids == {}
    assert found[OTHER].pids == {"side": 11}


def test_processes_that_end_during_the_walk_are_passed_over(proc):
    proc(10, cgroup(UID, PAUSE), began=100)
    os.unlink(f"{proc.root}/10/stat")
    assert locate_pods({UID: PodToLocate(UID)}, proc=proc.root, cgroup_roots=()) == {}
    assert started(10, proc=proc.root) == -1
    assert started(4711, proc=proc.root) == -1


def test_the_cgroup_folder_is_found_also_where_a_namespace_hides_its_beginning(proc, tmp_path):
    root = tmp_path / "cgroup"
    for folder in ("", "kubelet", "kubelet/kubepods", "kubelet/kubepods/burstable"):
        (root / folder).mkdir(exist_ok=True, parents=True)
    (root / "cgroup.controllers").write_text("")
    (root / f"kubelet/kubepods/burstable/pod{UID}").mkdir()
    proc(10, f"0::/../../pod{UID}/{PAUSE}\n", began=100)
    roots = (str(tmp_path / "nothing"), str(root))
    found = locate_pods({UID: PodToLocate(UID)}, proc=proc.root, cgroup_roots=roots)
    assert found[UID].cgroup == f"{root}/kubelet/kubepods/burstable/pod{UID}"


FLAT = UID.replace("-", "_")

LAYOUTS = {
    # name: (what the process's cgroup file says, the pod's folder in version 2, where version 2 is mounted)
    "v2 only, cgroupfs": (f"0::/kubepods/burstable/pod{UID}/{PAUSE}\n", f"kubepods/burstable/pod{UID}", ""),
    "v2 only, systemd": (
        f"0::/kubepods.slice/kubepods-pod{FLAT}.slice/cri-containerd-{PAUSE}.scope\n",
        f"kubepods.slice/kubepods-pod{FLAT}.slice",
        "",
    ),
    "v2 only, systemd, from a namespace": (
        f"0::/../../kubepods-burstable-pod{FLAT}.slice/cri-containerd-{PAUSE}.scope\n",
        f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{FLAT}.slice",
        "",
    ),
    "v2 only, kind, from a namespace": (
        f"0::/../../../kubelet-kubepods-burstable-pod{FLAT}.slice/cri-containerd-{PAUSE}.scope\n",
        f"kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{FLAT}.slice",
        "",
    ),
    "hybrid": (
        f"4:memory:/kubepods/burstable/pod{UID}/{PAUSE}\n0::/kubepods/burstable/pod{UID}/{PAUSE}\n",
        f"kubepods/burstable/pod{UID}",
        "unified",
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_cgroup_folder_is_found_in_every_layout(proc, tmp_path, name):
    text, path, mounted = LAYOUTS[name]
    top = tmp_path / "cgroup"
    root = top / mounted
    (root / path).mkdir(parents=True)
    (root / "cgroup.controllers").write_text("")
    proc(10, text, began=100)
    found = locate_pods({UID: PodToLocate(UID)}, proc=proc.root, cgroup_roots=(f"{top}/unified", str(top)))
    assert found[UID].cgroup == f"{root}/{path}"


@pytest.mark.parametrize(
    "text",
    [f"4:memory:/kubepods/burstable/pod{UID}/{PAUSE}\n", f"4:memory:/kubepods/pod{UID}/{PAUSE}\n0::/\n"],
    ids=["v1 only", "hybrid, version 2 without pods"],
)
def test_a_pod_that_only_version_1_names_is_located_without_a_cgroup_folder(proc, tmp_path, text):
    """A folder of version 1 takes no getpeername program, so it must not be given for one."""
    (tmp_path / "cgroup/memory/kubepods/burstable" / f"pod{UID}").mkdir(parents=True)
    proc(10, text, began=100)
    found = locate_pods({UID: PodToLocate(UID)}, proc=proc.root, cgroup_roots=(str(tmp_path / "cgroup"),))
    assert found[UID].netns == f"{proc.root}/10/ns/net"
    assert found[UID].cgroup is None


def test_the_real_proc_is_walked():
    assert locate_pods({UID: PodToLocate(UID)}) == {}
    assert started(os.getpid()) > 0
