"""The demo's targets, which clang has built, are what they are taken for."""

from pathlib import Path

from pipeline.builds import elf
from pipeline.builds.linux.initramfs import PROVIDED
from pipeline.builds.linux.packages import Packages
from pipeline.builds.targets import closure
from pipeline.builds.targets.directory import scan
from tests.builds.linux.fuzzing import NAMES


def test_the_demos_targets(demo_parts: Path) -> None:
    glibc = Packages(demo_parts / "demo/packages").version("libc6")
    assert glibc in ("2.36", "2.41"), "Debian 12's and 13's"
    found = scan(demo_parts / "images/demo/targets/files/example-fuzzers", elf.read, glibc=glibc)
    assert [left for left in found.left_out if left.broken] == []
    assert [target.name for target in found.targets] == NAMES
    for target in found.targets:
        assert (target.elf.engine, target.elf.sanitizers) == ("libFuzzer", ("address",)), target.name
        assert (target.elf.interpreter, target.elf.debug) == ("/lib64/ld-linux-x86-64.so.2", True), target.name
        assert target.elf.build_id
    loaded = closure.find(found, elf.read)
    assert set(loaded.by_target) == {target.name for target in found.targets}
    assert loaded.lacking.keys() <= PROVIDED


def test_the_guest_provides_what_it_is_said_to(demo_parts: Path) -> None:
    there = {path.name for path in (demo_parts / "demo/libraries").iterdir()}
    assert there >= PROVIDED
