# SPDX-License-Identifier: Apache-2.0
"""Namespaces, rights and limits of an isolated run: system calls, made by its launcher.

As root the command gets a uid that nobody else has.  As another user it keeps the uid, in a user
namespace of its own (user_namespaces(7)).  Either way it has mount, PID, IPC, UTS and network
namespaces of its own, no capabilities, and a system call filter; its file system is put together
from what it may see, and everything else is not there.

The standard library only, and little of it: its import is part of the price of every run
(`workers.clients.launcher`).  `workers.clients.isolation` decides what a run may see.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

TYPE_CHECKING = False  # as typing's, which takes long to import
if TYPE_CHECKING:
    from typing import Any

_CLONE_NEWNS = 0x00020000
_CLONE_NEWCGROUP = 0x02000000
_CLONE_NEWUTS = 0x04000000
_CLONE_NEWIPC = 0x08000000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_CLONE_NEWNET = 0x40000000
_NAMESPACES = (
    _CLONE_NEWNS | _CLONE_NEWCGROUP | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWUSER
    | _CLONE_NEWPID | _CLONE_NEWNET
)  # fmt: skip

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 0x2, 0x4, 0x8
_MS_BIND, _MS_REC, _MS_UNBINDABLE, _MS_PRIVATE = 0x1000, 0x4000, 0x20000, 0x40000
_MNT_DETACH = 2

#: mount_setattr(2), whose number is the same on every machine.
_SYS_MOUNT_SETATTR = 442
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4

_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 4, 22, 38
_SECCOMP_MODE_FILTER = 2

#: Devices that every run has, and those of graphics processors, where there are any.
_DEVICES = ("null", "zero", "full", "random", "urandom")
_GRAPHICS = ("nvidia", "dri", "kfd", "dxg")

#: What of /sys a program reads to find processors and devices.
_SYS = ("bus", "class", "dev", "devices", "module")

#: The uids that systemd gives to services of no fixed user; nothing on a disk belongs to them
#: (https://systemd.io/UIDS-GIDS).  Below 65536, so that a container has them too.
_FIRST_UID, _LAST_UID = 61184, 65519

#: Options of the memory file systems that hold nothing but mount points.
_SKELETON = "size=1m,nr_inodes=4096,mode=755"


class SandboxError(Exception):
    """A step of the isolation failed; the text says which, and why."""


@contextmanager
def _step(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SandboxError(f"{what}: {error.strerror}") from None


_libc = ctypes.CDLL(None, use_errno=True)


def _check(answer: int) -> None:
    if answer != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def prctl(option: int, value: Any, other: Any = 0) -> None:
    """Call prctl(2).

    Raises
    ------
    OSError
        If the kernel refuses it.
    """
    _check(_libc.prctl(option, value, other, 0, 0))


def _mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    texts = (text.encode() for text in (source, target, kind))
    _check(_libc.mount(*texts, ctypes.c_ulong(flags), options.encode()))


def _set_attributes(path: str, attributes: int, *, recursive: bool = False) -> None:
    wanted = ctypes.create_string_buffer(struct.pack("=4Q", attributes, 0, 0, 0))
    flags = _AT_RECURSIVE if recursive else 0
    _check(_libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, path.encode(), flags, wanted, 32))


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


class Sandbox:
    """The isolation of one run.

    Parameters
    ----------
    order : dict
        As `workers.clients.isolation` makes it: ``readable`` and ``hidden`` (paths, each of which
        ends the rule of the path above it), ``network``, ``processes``.
    folder : str
        The run's folder, which it may write to.
    protected : sequence of str
        What it may only read there.
    memory : int
        Bytes that its shared memory may take.
    """

    def __init__(
        self, order: dict[str, Any], folder: str, protected: Sequence[str], memory: int
    ) -> None:
        self._order = order
        self._folder = folder
        self._protected = protected
        self._memory = memory
        self._temporary = f"{folder}/tmp"
        self._as_root = os.geteuid() == 0
        self._owner = os.geteuid()
        self._groups: set[int] = set()
        self._filter = system_call_filter()

    # -- in the launcher ---------------------------------------------------------------------

    def prepare(self) -> None:
        """Let the next process that is forked be the first one of a PID namespace.

        Raises
        ------
        SandboxError
            If this machine does not allow it.
        """
        if self._as_root:
            self._owner = _FIRST_UID + os.getpid() % (_LAST_UID - _FIRST_UID + 1)
            with _step("give the run's folder to another user"):
                for name in (self._folder, f"{self._folder}/output", self._temporary):
                    os.chown(name, self._owner, self._owner, follow_symlinks=False)
            with _step("make a PID namespace"):
                _check(_libc.unshare(_CLONE_NEWPID))
            return
        user, group = os.geteuid(), os.getegid()
        with _step("make a user namespace"):
            _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWPID))
        with _step("map the user into its namespace"):
            _write("/proc/self/setgroups", "deny")
            _write("/proc/self/uid_map", f"{user} {user} 1")
            _write("/proc/self/gid_map", f"{group} {group} 1")

    # -- in the first process of the namespace -----------------------------------------------

    def enter(self) -> None:
        """Shut this process in, and give up every right.

        Raises
        ------
        SandboxError
            If this machine does not allow it.
        """
        flags = _CLONE_NEWNS | _CLONE_NEWIPC | _CLONE_NEWUTS | _CLONE_NEWCGROUP
        if not self._order["network"]:
            flags |= _CLONE_NEWNET
        with _step("make namespaces"):
            _check(_libc.unshare(flags))
        self._change_root()
        with _step("name the host"):
            _check(_libc.sethostname(b"pipeline", 8))
        if not self._order["network"]:
            with _step("start the loopback interface"):
                _start_loopback()
        self._give_up_rights()

    def _change_root(self) -> None:
        root = self._temporary  # any folder would do that holds nothing of what is mounted
        os.umask(0o022)
        with _step("make mounts private"):
            _mount("none", "/", flags=_MS_REC | _MS_PRIVATE)
        with _step("mount a root"):
            own = os.open(root, os.O_PATH | os.O_CLOEXEC)
            _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, _SKELETON)
            _mount("none", root, flags=_MS_UNBINDABLE)  # what is above it may be shown in it
        with _step("show a place for temporary files"):
            for name in (f"{root}/tmp", f"{root}/var/tmp"):
                os.makedirs(name)
                _mount(f"/proc/self/fd/{own}", name, flags=_MS_BIND)
                _set_attributes(name, _ATTR_NOSUID | _ATTR_NODEV)
            os.close(own)
        self._show_what_is_readable(root)
        self._show_folder(root)
        self._show_devices(root)
        with _step("mount /proc"):
            os.mkdir(f"{root}/proc")
            _mount("proc", f"{root}/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
        with _step("change the root"):
            os.chdir(root)
            _check(_libc.pivot_root(b".", b"."))
            _check(_libc.umount2(b".", _MNT_DETACH))
            os.chdir("/")
            _set_attributes("/", _ATTR_RDONLY)
        os.umask(0o077)

    def _show_what_is_readable(self, root: str) -> None:
        """Bind what may be read; of two rules that concern a path the more special one holds."""
        rules = dict.fromkeys(self._order["readable"], True)
        rules.update(dict.fromkeys(self._order["hidden"], False))
        passed: list[str] = []
        for path in sorted(rules, key=lambda path: path.split("/")):
            above = [name for name in passed if path.startswith(f"{name}/")]
            visible = bool(above) and rules[above[-1]]
            passed.append(path)
            with _step(f"show or hide {path}"):
                if rules[path] and not visible:
                    _bind(path, root + path, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV)
                elif visible and not rules[path] and os.path.lexists(root + path):
                    _cover(root + path)

    def _show_folder(self, root: str) -> None:
        """Bind the run's folder, in which its input and metadata may only be read."""
        folder = root + self._folder
        with _step("show the run's folder"):
            os.makedirs(folder, exist_ok=True)
            _mount(self._folder, folder, flags=_MS_BIND)
            _set_attributes(folder, _ATTR_NOSUID | _ATTR_NODEV)
            for name in self._protected:
                path = f"{folder}/{name}"
                if os.path.lexists(path):
                    _mount(path, path, flags=_MS_BIND)
                    _set_attributes(path, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV)

    def _show_devices(self, root: str) -> None:
        with _step("show devices"):
            os.mkdir(f"{root}/dev")
            for name in os.listdir("/dev"):
                if name in _DEVICES:
                    _bind(f"/dev/{name}", f"{root}/dev/{name}", _ATTR_NOSUID)
                elif name.startswith(_GRAPHICS):
                    _bind(f"/dev/{name}", f"{root}/dev/{name}", _ATTR_NOSUID)
                    self._groups |= _groups_of(f"/dev/{name}")
            for name, number in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
                os.symlink(f"/proc/self/fd{number}", f"{root}/dev/{name}")
            shared = f"{root}/dev/shm"
            os.mkdir(shared)
            options = f"size={self._memory},nr_inodes=65536,mode=1777"
            _mount("tmpfs", shared, "tmpfs", _MS_NOSUID | _MS_NODEV, options)
            for name in _SYS:
                if os.path.isdir(f"/sys/{name}"):
                    flags = _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV
                    _bind(f"/sys/{name}", f"{root}/sys/{name}", flags)

    def _give_up_rights(self) -> None:
        with _step("become another user"):
            if self._as_root:
                os.setgroups(sorted(self._groups))
                os.setresgid(self._owner, self._owner, self._owner)
                os.setresuid(self._owner, self._owner, self._owner)
        with _step("give up capabilities"):
            header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
            _check(_libc.capset(header, ctypes.create_string_buffer(24)))
            prctl(_PR_SET_DUMPABLE, 0)
            prctl(_PR_SET_NO_NEW_PRIVS, 1)
        with _step("limit system calls"):
            code = ctypes.create_string_buffer(b"".join(self._filter))
            program = struct.pack("@HP", len(self._filter), ctypes.addressof(code))
            prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.create_string_buffer(program))

    def limit_processes(self) -> None:
        """Bound the processes and threads of this run; its uid or its namespace has no others.

        Raises
        ------
        OSError
            If the kernel refuses it.
        """
        most = self._order["processes"]
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))


def _bind(source: str, target: str, attributes: int) -> None:
    """Show a file or a folder, with what is mounted in it, at another place."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
    _mount(source, target, flags=_MS_BIND | _MS_REC)
    _set_attributes(target, attributes, recursive=True)


def _cover(path: str) -> None:
    """Put something empty over a file or a folder."""
    if os.path.isdir(path):
        _mount("tmpfs", path, "tmpfs", _MS_NOSUID | _MS_NODEV, _SKELETON)
    else:
        _mount("/dev/null", path, flags=_MS_BIND)


def _groups_of(path: str) -> set[int]:
    """Return the groups, other than root's, whose members may use the devices at a path."""
    found = set()
    for folder, _, names in os.walk(path):
        found |= {os.stat(f"{folder}/{name}").st_gid for name in names}
    with suppress(OSError):
        status = os.stat(path)
        if not stat.S_ISDIR(status.st_mode):
            found.add(status.st_gid)
    return found - {0}


def _start_loopback() -> None:
    """Set the interface ``lo`` up (netdevice(7)): programs talk to themselves through it."""
    import _socket  # noqa: PLC0415 - socket takes 5 ms longer

    up_and_running, set_flags = 0x1 | 0x40, 0x8914
    handle = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    try:
        fcntl.ioctl(handle.fileno(), set_flags, struct.pack("16sH22x", b"lo", up_and_running))
    finally:
        handle.close()


# -- the filter of system calls ----------------------------------------------------------------

_EPERM, _ENOSYS, _EAFNOSUPPORT = 1, 38, 97
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16

#: For each machine: its AUDIT_ARCH, and the numbers of its system calls.
_MACHINES = {
    "x86_64": (
        0xC000003E,
        {"socket": 41, "clone": 56, "add_key": 248, "request_key": 249, "keyctl": 250,
         "unshare": 272, "perf_event_open": 298, "setns": 308, "bpf": 321, "userfaultfd": 323},
    ),
    "aarch64": (
        0xC00000B7,
        {"socket": 198, "clone": 220, "add_key": 217, "request_key": 218, "keyctl": 219,
         "unshare": 97, "perf_event_open": 241, "setns": 268, "bpf": 280, "userfaultfd": 282},
    ),
}  # fmt: skip

#: io_uring_setup, io_uring_enter, io_uring_register, and clone3: the same on every machine.
_IO_URING = (425, 426, 427)
_CLONE3 = 435

#: Codes of classic BPF, and answers of a filter (seccomp(2)).
_LOAD, _JUMP_EQUAL, _JUMP_SET, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000


def system_call_filter() -> list[bytes]:
    """Return a filter that keeps a run from what it could use to get more than it was given.

    It may make no namespaces (in a user namespace of its own it would be root and could mount), use
    no kernel keyrings, BPF, performance counters, userfaultfd and io_uring, and no other sockets
    than local ones, IP and netlink: AF_VSOCK, e.g., reaches the host of a virtual machine.  Since a
    filter cannot read the flags of clone3, that one is unknown, and libraries use clone.

    Raises
    ------
    SandboxError
        If this machine's system calls are not known.
    """
    machine = os.uname().machine
    if machine not in _MACHINES:
        raise SandboxError(f"the system calls of {machine} are not known")
    arch, numbers = _MACHINES[machine]

    def instruction(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
        return struct.pack("=HBBI", code, then, otherwise, value)

    def answer(number: int) -> bytes:
        return instruction(_RETURN, _ERROR | number)

    first_argument = instruction(_LOAD, 16)  # its lower half, on these machines
    refused = [number for name, number in numbers.items() if name not in {"socket", "clone"}]
    program = [
        instruction(_LOAD, 4),  # the architecture
        instruction(_JUMP_EQUAL, arch, 1),
        instruction(_RETURN, _KILL),
        instruction(_LOAD, 0),  # the number
        instruction(_JUMP_AT_LEAST, 0x40000000, 0, 1),  # x32
        answer(_EPERM),
    ]
    for number in (*refused, *_IO_URING):
        program += [instruction(_JUMP_EQUAL, number, 0, 1), answer(_EPERM)]
    program += [instruction(_JUMP_EQUAL, _CLONE3, 0, 1), answer(_ENOSYS)]
    program += [
        instruction(_JUMP_EQUAL, numbers["clone"], 0, 4),
        first_argument,
        instruction(_JUMP_SET, _NAMESPACES, 0, 1),
        answer(_EPERM),
        instruction(_RETURN, _ALLOW),
        instruction(_JUMP_EQUAL, numbers["socket"], 0, 6),
        first_argument,
        *(
            instruction(_JUMP_EQUAL, family, 4 - position)
            for position, family in enumerate((_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK))
        ),
        answer(_EAFNOSUPPORT),
        instruction(_RETURN, _ALLOW),
    ]
    return program
