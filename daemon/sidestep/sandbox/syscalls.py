"""Which system calls a locked pod proxy may make, with their numbers on x86_64 and aarch64.

    ALLOWED   what an epoll proxy in Python with `ssl` uses, most frequent first; conditions on arguments stand in
              `seccomp.CONDITIONS`
    FATAL     calls that only an attacker would make here: they end the process, and the daemon starts a clean one
    others    refused with EPERM, among them those that make threads and processes, or signal others

The numbers are those of asm/unistd_64.h of x86 and of asm-generic/unistd.h. None: the architecture lacks the call.
"""

from __future__ import annotations

Numbers = tuple[int | None, int | None]
"""(x86_64, aarch64)."""

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""`os.uname().machine` to (index in Numbers, AUDIT_ARCH_*)."""

ALLOWED: dict[str, Numbers] = {
    # the event loop
    "read": (0, 63),
    "write": (1, 64),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "recvfrom": (45, 207),
    "sendto": (44, 206),
    "splice": (275, 76),
    "writev": (20, 66),
    "readv": (19, 65),
    "recvmsg": (47, 212),
    "sendmsg": (46, 211),
    "epoll_ctl": (233, 21),
    "accept4": (288, 242),
    "close": (3, 57),
    "epoll_pwait2": (441, 441),
    "epoll_create1": (291, 20),
    "recvmmsg": (299, 243),
    "sendmmsg": (307, 269),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    "timerfd_create": (283, 85),
    "timerfd_settime": (286, 86),
    "timerfd_gettime": (287, 87),
    "eventfd2": (290, 19),
    # sockets and pipes; listening is the daemon's
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "shutdown": (48, 210),
    "setsockopt": (54, 208),
    "getsockopt": (55, 209),
    "getsockname": (51, 204),
    "getpeername": (52, 205),
    "socketpair": (53, 199),
    "accept": (43, 202),
    "pipe2": (293, 59),
    "tee": (276, 77),
    # descriptors; the only files are /proc/self/fd and the daemon's memfds
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "close_range": (436, 436),
    "openat": (257, 56),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "faccessat2": (439, 439),
    "lseek": (8, 62),
    "pread64": (17, 67),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    # memory, time, random numbers
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "mprotect": (10, 226),
    "madvise": (28, 233),
    "brk": (12, 214),
    "futex": (202, 98),
    "getrandom": (318, 278),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169),
    "time": (201, None),
    # the process itself
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getppid": (110, 173),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "getrusage": (98, 165),
    "getrlimit": (97, 163),
    "prlimit64": (302, 261),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "getcpu": (309, 168),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "set_robust_list": (273, 99),
    "set_tid_address": (218, 96),
    "rseq": (334, 293),
}

FATAL: dict[str, Numbers] = {
    # other programs, other processes
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    # namespaces and mounts
    "setns": (308, 268),
    "unshare": (272, 97),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    # the kernel
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "seccomp": (317, 277),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
}

CLONE: Numbers = (56, 220)
CLONE3: Numbers = (435, 435)
"""Not among those of a pod proxy, which makes no thread; a filter for other programs has conditions on them."""
