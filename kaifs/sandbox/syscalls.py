"""Which system calls a sandbox refuses, and which calls amount to the same.

What is always refused reaches parts of the kernel that no agent needs, much of
which has had holes, or undoes another defence. Source: the default profiles of
container runtimes, and sandbox-specific reasons beside the groups.
"""

import errno
import os
import socket
from collections.abc import Iterable
from functools import cache
from typing import Final

from kaifs.base.errors import SnapshotIsolationError
from kaifs.linux.namespaces import Namespace
from kaifs.linux.seccomp import (
    Argument,
    Compare,
    Rule,
    SeccompUnavailable,
    compile_filter,
    system_call_number,
)

_ALWAYS: Final = [
    name
    for group in (
        "mount umount umount2 pivot_root move_mount open_tree open_tree_attr fsopen fsconfig",
        "fsmount fspick mount_setattr statmount listmount chroot",
        "unshare setns",
        # Large, and again and again the way in.
        "bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register",
        # Keyrings are not divided by namespaces.
        "keyctl add_key request_key",
        "ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp",
        # Handles name files without a path.
        "name_to_handle_at open_by_handle_at fanotify_init",
        # What only an administrator needs.
        "kexec_load kexec_file_load init_module finit_module delete_module create_module",
        "reboot swapon swapoff acct quotactl quotactl_fd syslog vhangup nfsservctl",
        "settimeofday clock_settime clock_adjtime adjtimex stime",
        "sethostname setdomainname iopl ioperm migrate_pages move_pages",
        # Relics.
        "modify_ldt vm86 vm86old lookup_dcookie uselib sysfs _sysctl get_kernel_syms query_module",
    )
    for name in group.split()
]

_TIOCSTI: Final = 0x5412
_TIOCLINUX: Final = 0x541C
_LOW_HALF: Final = 0xFFFFFFFF

# A family that is not listed is not in its own network namespace, or is a way into the kernel
# that nobody needs: AF_VSOCK leads to the host of a virtual machine from any namespace.
_SOCKET_FAMILIES: Final = (
    socket.AF_UNIX,
    socket.AF_INET,
    socket.AF_INET6,
    socket.AF_NETLINK,
)

_FAMILIES: Final = [
    family.split()
    for family in """
        accept accept4
        access faccessat faccessat2
        alarm setitimer
        bind
        chmod fchmod fchmodat fchmodat2
        chown lchown fchown fchownat
        clone clone3 fork vfork
        connect
        copy_file_range sendfile splice tee vmsplice
        dup dup2 dup3
        epoll_create epoll_create1
        epoll_wait epoll_pwait epoll_pwait2
        eventfd eventfd2
        execve execveat
        fsync fdatasync sync syncfs sync_file_range msync
        getdents getdents64
        getxattr lgetxattr fgetxattr getxattrat
        inotify_init inotify_init1
        kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal
        link linkat
        listxattr llistxattr flistxattr listxattrat
        mkdir mkdirat
        mknod mknodat
        mmap mmap2 remap_file_pages
        mprotect pkey_mprotect
        open openat openat2 creat
        pipe pipe2
        poll ppoll
        read pread64 readv preadv preadv2
        readlink readlinkat
        recvfrom recvmsg recvmmsg recv
        removexattr lremovexattr fremovexattr removexattrat
        rename renameat renameat2
        sched_setaffinity sched_setattr sched_setparam sched_setscheduler setpriority ioprio_set
        select pselect6 _newselect
        semget semop semtimedop semctl
        sendto sendmsg sendmmsg send
        setgid setgid32 setregid setresgid setfsgid setgroups
        setrlimit prlimit64
        setuid setuid32 setreuid setresuid setfsuid
        setxattr lsetxattr fsetxattr setxattrat
        shmget shmat shmctl shmdt
        signalfd signalfd4
        stat lstat fstat newfstatat statx stat64 lstat64 fstat64 fstatat64
        statfs fstatfs
        symlink symlinkat
        truncate ftruncate
        unlink unlinkat
        utime utimes futimesat utimensat
        wait4 waitid waitpid
        write pwrite64 writev pwritev pwritev2
    """.strip().splitlines()
]
_FAMILY_OF: Final = {name: family for family in _FAMILIES for name in family}
_AT_REMOVEDIR: Final = 0x200
_CLONE_THREAD: Final = 0x10000
_ASKING: Final = 1 << 31


def equivalents(name: str) -> list[str]:
    """Return the calls with which a program can do what the call *name* does, itself included."""
    return _FAMILY_OF.get(name, [name])


@cache
def default_filter() -> bytes:
    """Return the filter that every sandbox has.

    Raises:
        SnapshotIsolationError: libseccomp is missing.
    """
    return _compiled(default_rules())


def default_rules() -> list[Rule]:
    """Return what every sandbox refuses."""
    rules = [Rule(name) for name in _ALWAYS if system_call_number(name) is not None]
    # glibc falls back to clone, whose flags are an argument and not behind a pointer.
    rules.append(Rule("clone3", error=errno.ENOSYS))
    # s390 has the flags second.
    flags = 1 if os.uname().machine.startswith("s390") else 0
    rules += [
        Rule("clone", Argument(flags, Compare.MASKED_EQUAL, kind, kind)) for kind in Namespace
    ]
    # The kernel looks at the low half of the request only.
    rules += [
        Rule("ioctl", Argument(1, Compare.MASKED_EQUAL, _LOW_HALF, request))
        for request in (_TIOCSTI, _TIOCLINUX)
    ]
    rules += _socket_rules()
    rules += _personality_rules()
    return rules


def _socket_rules() -> list[Rule]:
    refused = [
        Argument(0, Compare.EQUAL, family)
        for family in range(max(_SOCKET_FAMILIES))
        if family and family not in _SOCKET_FAMILIES
    ]
    refused.append(Argument(0, Compare.GREATER, max(_SOCKET_FAMILIES)))
    return [
        Rule(name, argument, errno.EAFNOSUPPORT)
        for name in ("socket", "socketpair")
        for argument in refused
    ]


def _personality_rules() -> list[Rule]:
    # Each bit that weakens (no address randomisation …) or is another persona. Asking for the
    # present one passes all ones, which bit 31, that no persona has, tells apart.
    return [
        Rule("personality", Argument(0, Compare.MASKED_EQUAL, _ASKING | bit, bit))
        for bit in (1 << shift for shift in range(31))
    ]


def user_filter(names: Iterable[str]) -> bytes:
    """Return the filter that refuses the calls *names*, with their equivalents.

    Raises:
        SnapshotIsolationError: No system call has such a name.
    """
    return _compiled(user_rules(names))


def user_rules(names: Iterable[str]) -> list[Rule]:
    """Return what refuses the calls *names*, with their equivalents, each rule once.

    Raises:
        SnapshotIsolationError: No system call has such a name.
    """
    rules: list[Rule] = []
    for name in names:
        if system_call_number(name) is None:
            raise SnapshotIsolationError(f"blocked syscall: no system call is named {name}")
        known = [other for other in equivalents(name) if system_call_number(other) is not None]
        if name == "rmdir":
            flag = Argument(2, Compare.MASKED_EQUAL, _AT_REMOVEDIR, _AT_REMOVEDIR)
            rules += [Rule("rmdir"), Rule("unlinkat", flag)]
        elif name in ("fork", "vfork"):
            process = Argument(0, Compare.MASKED_EQUAL, _CLONE_THREAD, 0)
            rules += [Rule("fork"), Rule("vfork"), Rule("clone", process)]
        else:
            rules += [Rule(other) for other in known]
    return list(dict.fromkeys(rules))


def _compiled(rules: list[Rule]) -> bytes:
    try:
        return compile_filter(rules)
    except SeccompUnavailable as error:
        raise SnapshotIsolationError(f"syscall filter: {error}") from error
