"""The disk with targets, as a real guest has it."""

import pytest

from tests.conftest import Workspace

pytestmark = pytest.mark.timeout(400)
DISK = "out/images/demo/targets.squashfs"
ATTACKS = {
    "a file in it": "echo x >/targets/files/x",
    "a file that is there": "echo x >>/targets/files/example-fuzzers/crash_fuzzer",
    "by another way": "rm -f /data/fuzz/example-fuzzers/crash_fuzzer/pkg/crash_fuzzer",
    "mounted anew": "mount -o remount,rw /targets && echo x >/targets/files/x",
    "the disk itself": "dd if=/dev/zero of=/dev/vdb bs=512 count=1",
    "the disk, set writable": "blockdev --setrw /dev/vdb; dd if=/dev/zero of=/dev/vdb bs=512 count=1 conv=fsync",
}


@pytest.mark.parametrize("line", ATTACKS.values(), ids=ATTACKS)
def test_a_guest_cannot_write_to_it(booted: Workspace, line: str) -> None:
    disk = booted.directory / DISK
    before = disk.read_bytes()
    outcome = booted.topcoat("ssh", "i0", "--", f"id -u; {line}")
    assert outcome.stdout.startswith(b"0\n"), "the guest was not even root"
    assert outcome.status != 0, outcome.text
    assert disk.read_bytes() == before


def test_a_guest_can_write_where_its_targets_run(booted: Workspace) -> None:
    line = "cd /data/fuzz/example-fuzzers/crash_fuzzer && echo x >data/x && echo x >tmp/x && rm data/x tmp/x"
    outcome = booted.topcoat("ssh", "i0", "--", line)
    assert outcome.status == 0, outcome.text
