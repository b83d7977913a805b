"""Started in a fresh interpreter: gives up what a model's program must not have, then becomes that program.

It runs alone (``python -I -S launch.py``), imports nothing of firstlight and is told what to do in one JSON argument. Each
step that the system does not know is left out and reported, so the caller can say what is in force:

    namespaces     no network but a dead loopback, no shared memory of others; its own small disk in memory
    capabilities   none, also where it is started by root
    landlock       reads the interpreter and the system's libraries, writes its own folder, nothing else
    rlimits        processor time, memory, file size, open files, processes
    seccomp        no new process, no socket, no signal to another process, no tracing, no mounting

Numbers are those of Linux's headers: ``sched.h``, ``prctl.h``, ``landlock.h``, ``seccomp.h``, ``filter.h``, ``audit.h`` and
the system call tables of x86-64 and of arm64.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import struct
import sys
from typing import Any

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x8, 0x4000, 0x40000

PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS = 22, 24, 28, 38
SECBITS_NO_ROOT = 0b101111
"""NOROOT, NO_SETUID_FIXUP and their locks, and the lock of KEEP_CAPS: user 0 is a user like any other from here on."""

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""System calls of Landlock: the same numbers on every architecture."""
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1, 1 << 1, 1 << 2, 1 << 3, 1 << 14
READ = EXECUTE | READ_FILE | READ_DIR
ON_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | 1 << 15

SYSTEM_FOLDERS = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc/ld.so.cache", "/nix/store")
"""Where the interpreter's libraries may be. Nothing of /home, /root, /proc, /var or the rest of /etc."""

# What the filter refuses: (number on x86-64, number on arm64), None where there is none.
FORBIDDEN: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None), "vfork": (58, None), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "kcmp": (312, 272), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "socket": (41, 198), "io_uring_setup": (425, 425), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "setns": (308, 268), "unshare": (272, 97), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsmount": (432, 432), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180), "setpriority": (141, 140), "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274), "ioprio_set": (251, 30),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "reboot": (169, 142), "kexec_load": (246, 104),
    "init_module": (175, 105), "finit_module": (313, 273), "swapon": (167, 224), "sethostname": (170, 161),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "process_madvise": (440, 440), "fanotify_init": (300, 262),
    "inotify_init1": (294, 26), "personality": (135, 92),
}  # fmt: skip
OWN_PROCESS_ONLY: dict[str, tuple[int, int]] = {"kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261)}
"""Their first argument is a process; only the caller's own is let through (for prlimit64 also 0, which means the same)."""
CLONE, CLONE3 = (56, 220), 435
CLONE_THREAD = 0x00010000

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Place in the tables above, and the architecture as the kernel's audit calls it."""


def main(spec: dict[str, Any]) -> None:
    """Apply what the system has, report it, and become the program. Returns only where that fails."""
    in_force: list[str] = []
    missing: dict[str, str] = {}
    work = str(spec["work"])

    def step(name: str, function: Any, *arguments: Any) -> None:
        try:
            function(*arguments)
            in_force.append(name)
        except (OSError, ValueError, AttributeError, KeyError) as error:
            missing[name] = f"{type(error).__name__}: {error}"

    skipped = set(spec.get("without", ()))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if "namespaces" not in skipped:
            step("namespaces", own_namespaces, libc)
        if "namespaces" in in_force:
            step("disk", own_disk, libc, work, spec["disk_bytes"])
        os.chdir(work)
        step("capabilities", drop_capabilities, libc)
        step("no_new_privileges", prctl, libc, PR_SET_NO_NEW_PRIVS, 1)
        if "landlock" not in skipped:
            step("landlock", landlock, libc, [*SYSTEM_FOLDERS, *spec["readable"]], [work])
    else:
        os.chdir(work)
    will_filter = sys.platform == "linux" and os.uname().machine in MACHINES and "seccomp" not in skipped
    # Linux counts threads as processes. In a namespace of its own a program has a few; else all of its user's count.
    num_processes = spec["max_threads"] if will_filter and "namespaces" in in_force else 1
    for name, value in [*spec["rlimits"].items(), ("NPROC", num_processes)]:
        step(f"rlimit_{name.lower()}", limit, name, int(value))
    if will_filter:
        step("seccomp", seccomp, libc)
    report_fd = spec["report_fd"]
    if os.geteuid() == 0 and "seccomp" not in in_force:
        words = "nothing limits the processes of root here, for want of seccomp; run as another user"
        os.write(report_fd, json.dumps({"failed": words}).encode() + b"\n")
        return
    os.write(report_fd, json.dumps({"in_force": in_force, "missing": missing}).encode() + b"\n")
    os.set_inheritable(report_fd, False)
    try:
        os.execve(spec["argv"][0], spec["argv"], spec["env"])
    except OSError as error:
        os.write(report_fd, json.dumps({"failed": f"{spec['argv'][0]}: {error.strerror}"}).encode() + b"\n")


def checked(result: int, what: str) -> int:
    """The result of a C call; OSError with errno where it is -1."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def prctl(libc: Any, option: int, value: int, more: Any = 0) -> None:
    """One prctl call; raises OSError."""
    zero = ctypes.c_ulong(0)
    more = more if not isinstance(more, int) else ctypes.c_ulong(more)
    checked(libc.prctl(option, ctypes.c_ulong(value), more, zero, zero), f"prctl {option}")


def own_namespaces(libc: Any) -> None:
    """Own users, network, mounts and shared memory. The user's number stays what it is. Raises OSError."""
    user, group = os.getuid(), os.getgid()
    checked(libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWIPC), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def own_disk(libc: Any, work: str, num_bytes: int) -> None:
    """A disk in memory of a fixed size over the program's folder. Raises OSError."""
    checked(libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None), "mount private")
    flags = ctypes.c_ulong(MS_NOSUID | MS_NODEV | MS_NOEXEC)
    options = f"size={num_bytes},nr_inodes=1000,mode=700".encode()
    checked(libc.mount(b"tmpfs", os.fsencode(work), b"tmpfs", flags, options), "mount tmpfs")


def drop_capabilities(libc: Any) -> None:
    """Nothing that only root may do, now and after the next program starts. Raises OSError."""
    if os.geteuid() == 0 or _has_capabilities():
        prctl(libc, PR_SET_SECUREBITS, SECBITS_NO_ROOT)
        for number in range(64):
            try:
                prctl(libc, PR_CAPBSET_DROP, number)
            except OSError as error:
                if error.errno != errno.EINVAL:  # beyond the last capability that this kernel knows
                    raise
    header = struct.pack("Ii", 0x20080522, 0)
    checked(libc.capset(header, struct.pack("6I", *[0] * 6)), "capset")


def _has_capabilities() -> bool:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        return any(line.startswith("CapEff:") and int(line.split()[1], 16) for line in file)


def landlock(libc: Any, readable: list[str], writable: list[str]) -> None:
    """Only these folders from here on, and no TCP. Folders that do not exist are passed over. Raises OSError."""
    abi = checked(libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1), "landlock")
    everything = (1 << (13 if abi < 2 else 14 if abi < 3 else 15 if abi < 5 else 16)) - 1
    fields = [everything, *([0b11] if abi >= 4 else []), *([0b11] if abi >= 6 else [])]
    attributes = struct.pack(f"{len(fields)}Q", *fields)
    ruleset = checked(
        libc.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0), "landlock_create_ruleset"
    )
    devices = {
        "/dev/null": READ_FILE | WRITE_FILE,
        "/dev/zero": READ_FILE,
        "/dev/urandom": READ_FILE,
        "/dev/random": READ_FILE,
    }
    allowed = {**dict.fromkeys(readable, READ), **devices, **dict.fromkeys(writable, everything & ~EXECUTE)}
    for path, access in allowed.items():
        try:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        if not os.path.isdir(path):
            access &= ON_FILES
        rule = struct.pack("=Qi", access & everything, opened)
        checked(libc.syscall(ADD_RULE, ruleset, 1, rule, 0), f"landlock_add_rule {path}")
        os.close(opened)
    checked(libc.syscall(RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def limit(name: str, value: int) -> None:
    """Set a resource limit, soft and hard, never above the hard one that it had. Raises OSError or ValueError."""
    import resource

    kind = getattr(resource, f"RLIMIT_{name}")
    hard = resource.getrlimit(kind)[1]
    # Processor time: SIGXCPU at the soft limit says what has happened; SIGKILL a second later cannot be ignored.
    grace = 1 if name == "CPU" else 0
    soft, hard = (
        (value, value + grace) if hard == resource.RLIM_INFINITY else (min(value, hard), min(value + grace, hard))
    )
    resource.setrlimit(kind, (soft, hard))


def seccomp(libc: Any) -> None:
    """Refuse system calls from here on: EPERM for most, ENOSYS for clone3 so that libraries use clone. Raises OSError."""
    table, architecture = MACHINES[os.uname().machine]
    own = os.getpid()
    load, jump_eq, jump_set, answer = 0x20, 0x15, 0x45, 0x06
    allow, kill = 0x7FFF0000, 0x80000000
    refuse, unknown = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
    number, arch, low = 0, 4, 16
    code: list[tuple[int, int, int, int]] = [
        (load, 0, 0, arch), (jump_eq, 1, 0, architecture), (answer, 0, 0, kill),
        (load, 0, 0, number), (jump_set, 0, 1, 0x40000000), (answer, 0, 0, kill),
    ]  # fmt: skip
    for each in FORBIDDEN.values():
        if (call := each[table]) is not None:
            code += [(jump_eq, 0, 1, call), (answer, 0, 0, refuse)]
    code += [(jump_eq, 0, 1, CLONE3), (answer, 0, 0, unknown)]
    code += [(jump_eq, 0, 4, CLONE[table]), (load, 0, 0, low), (jump_set, 1, 0, CLONE_THREAD),
             (answer, 0, 0, refuse), (answer, 0, 0, allow)]  # fmt: skip
    for name, calls in OWN_PROCESS_ONLY.items():
        also = 0 if name == "prlimit64" else own
        # A process number is 32 bits, so the kernel takes the low half of the argument, and so does this.
        code += [(jump_eq, 0, 5, calls[table]), (load, 0, 0, low), (jump_eq, 2, 0, own), (jump_eq, 1, 0, also),
                 (answer, 0, 0, refuse), (answer, 0, 0, allow)]  # fmt: skip
    code.append((answer, 0, 0, allow))
    filters = b"".join(struct.pack("HBBI", *line) for line in code)
    buffer = ctypes.create_string_buffer(filters)
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(buffer)))
    prctl(libc, PR_SET_SECCOMP, 2, ctypes.byref(program))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
