"""What may happen to a bundle and its store between two runs."""

import os
import subprocess
import time
from collections.abc import Callable

from tests.conftest import Workspace

ZBI = "bundle/target/x64/fuchsia.zbi"
BLK = "bundle/target/x64/fvm.blk"
KERNEL = "bundle/target/x64/multiboot.bin"
ZBI_TOOL = "bundle/build/out/default.zircon/tools/zbi"
FVM_TOOL = "bundle/build/out/default.zircon/tools/fvm"
QEMU = "bundle/qemu-for-fuchsia/bin/qemu-system-x86_64"
KEY = "out/keys/sshid"
INITRD = "out/images/clusterfuzz/ssh-fuchsia.zbi"
DISK = "out/images/clusterfuzz/extended-fvm.blk"
HANDLE = "out/instances/i0/handle.json"
RECORDS = tuple(f"{path}.made.json" for path in (KEY, INITRD, DISK))
EVERYTHING = (ZBI, BLK, KERNEL, ZBI_TOOL, FVM_TOOL, QEMU, KEY, f"{KEY}.pub", INITRD, DISK, *RECORDS)

Edit = Callable[[Workspace], object]


def append(path: str) -> Edit:
    def edit(workspace: Workspace) -> None:
        with (workspace.directory / path).open("ab") as stream:
            stream.write(b"#more\n")

    return edit


def write(path: str, text: str) -> Edit:
    def edit(workspace: Workspace) -> None:
        target = workspace.directory / path
        target.parent.mkdir(exist_ok=True)
        target.write_text(text)

    return edit


def unlink(*paths: str) -> Edit:
    def edit(workspace: Workspace) -> None:
        for path in paths:
            (workspace.directory / path).unlink()

    return edit


def rewrite(path: str) -> Edit:
    """The same bytes in a new file."""

    def edit(workspace: Workspace) -> None:
        target = workspace.directory / path
        copy = target.with_name("copy")
        subprocess.run(["cp", "--sparse=always", "--preserve=mode", target, copy], check=True)  # a disk has 3 GiB
        copy.replace(target)

    return edit


def touch(*paths: str, seconds: float) -> Edit:
    """Set the times of modification so far from now."""

    def edit(workspace: Workspace) -> None:
        moment = time.time() + seconds
        for path in paths:
            os.utime(workspace.directory / path, (moment, moment))

    return edit


def replace_in(path: str, old: str, new: str) -> Edit:
    def edit(workspace: Workspace) -> None:
        target = workspace.directory / path
        text = target.read_text()
        assert old in text
        target.write_text(text.replace(old, new))

    return edit


def same_size(path: str) -> Edit:
    """Other bytes, the same size, and the time of modification put back."""

    def edit(workspace: Workspace) -> None:
        target = workspace.directory / path
        facts = target.stat()
        with target.open("r+b") as stream:
            stream.seek(-1, os.SEEK_END)  # what kind of file it is, the first bytes say
            last = stream.read(1)[0]
            stream.seek(-1, os.SEEK_END)
            stream.write(bytes([last ^ 1]))
        os.utime(target, ns=(facts.st_atime_ns, facts.st_mtime_ns))

    return edit


def configure(section: str, line: str) -> Edit:
    """Add a line to luigi.cfg."""

    def edit(workspace: Workspace) -> None:
        config = workspace.directory / "luigi.cfg"
        text = config.read_text()
        head = f"[{section}]\n"
        workspace.configure(text.replace(head, f"{head}{line}\n") if head in text else f"{text}{head}{line}\n")

    return edit


def move_store(workspace: Workspace) -> None:
    workspace.store.root.rename(workspace.directory / "elsewhere")
    workspace.environment["TOPCOAT_ROOT"] = str(workspace.directory / "elsewhere")


def in_turn(*edits: Edit) -> Edit:
    def edit(workspace: Workspace) -> None:
        for one in edits:
            one(workspace)

    return edit


def bump(task: str) -> Edit:
    return lambda workspace: workspace.environment.update(BUMP=task)
