"""`topcoat image` and its `diff`, as they are typed: what they print, their exit codes, and what they refuse."""

import json
import os
import re
import subprocess
from dataclasses import replace

import pytest

from pipeline.cli.images import tree
from pipeline.images import cpio
from pipeline.images.part import Part
from tests.conftest import Workspace
from tests.needs import openpty

ENTRIES = [
    cpio.directory("bin"),
    cpio.file("bin/sh", b"#!/bin/busybox sh\n", 0o755),
    cpio.symlink("sh", "bin/sh"),
    cpio.character_device("dev/console", 5, 1),
]
OLD = cpio.encode(ENTRIES)
NEW = cpio.inject(OLD, [("data/ssh/authorized_keys", b"ssh-ed25519 AAAA"), ("bin/sh", b"other")], replace=True)


@pytest.fixture
def images(workspace: Workspace) -> Workspace:
    """A workspace with a few initramfs."""
    (workspace.directory / "old.cpio").write_bytes(OLD)
    (workspace.directory / "new.cpio").write_bytes(NEW)
    (workspace.directory / "cut.cpio").write_bytes(OLD[:300])
    return workspace


class TestTree:
    """The lines, of trees put together by hand."""

    def test_a_boot_image(self) -> None:
        files = (Part("file", "bin/init", 5 << 20), Part("file", "data/ssh/authorized_keys", 80))
        bootfs = Part("item", "BOOTFS", 98 << 20, facts={"compression": "zstd", "stored_size": 3 << 20}, parts=files)
        image = Part("ZBI", size=99 << 20, facts={"bootable": True}, parts=(Part("item", "CMDLINE", 12), bootfs))
        assert list(tree("fuchsia.zbi", image, 40)) == [
            "fuchsia.zbi: ZBI, 99 MiB, sound",
            "├─ bootable: yes",
            "├─ item CMDLINE  12 B",
            "└─ item BOOTFS  98 MiB, compression zstd, stored size 3 MiB",
            "   ├─ bin/init  5 MiB",
            "   └─ data/ssh/authorized_keys  80 B",
        ]

    def test_problems_stand_where_they_belong(self) -> None:
        lost = Part("partition", "data", 0, problems=("slice 7 is cut off", "its name has a NUL"))
        image = Part("FVM", size=1 << 30, problems=("copy A is damaged",), parts=(Part("partition", "blob"), lost))
        assert list(tree("fvm.blk", image, 40)) == [
            "fvm.blk: FVM, 1.0 GiB, NOT sound: 3 problems",
            "├─ ! copy A is damaged",
            "├─ partition blob",
            "└─ partition data",
            "   ├─ ! slice 7 is cut off",
            "   └─ ! its name has a NUL",
        ]

    def test_of_thousands_the_first_and_the_unsound_are_shown(self) -> None:
        files = [Part("file", f"pkg/{number}", number) for number in range(3000)]
        files[2000] = replace(files[2000], problems=("it is cut off",))
        lines = list(tree("big.zbi", Part("ZBI", parts=tuple(files)), 40))
        assert len(lines) == 1 + 40 + 2 + 1
        assert lines[-3:] == [
            "├─ pkg/2000  2 KiB",
            "│  └─ ! it is cut off",
            "└─ … and 2,959 more (all of them: --all, or --json)",
        ]
        assert len(list(tree("big.zbi", Part("ZBI", parts=tuple(files)), None))) == 1 + 3000 + 1

    def test_of_thousands_that_are_not_sound_the_first_are_shown(self) -> None:
        lost = tuple(Part("file", str(number), problems=("it is cut off",)) for number in range(1000))
        lines = list(tree("bad.zbi", Part("ZBI", parts=lost), 40))
        assert len(lines) == 1 + 2 * 80 + 1
        assert lines[-1] == "└─ … and 920 more (all of them: --all, or --json)"

    def test_nothing_in_an_image_reaches_the_terminal_as_it_came(self) -> None:
        nasty = "\x1b]0;x\x07a\nb\tc\r[bold]d\x9b31m\u202e"
        part = Part(nasty, nasty, 1, facts={nasty: nasty}, problems=(nasty,))
        lines = list(tree(nasty, replace(part, parts=(part, replace(part, kind="file"))), 40))
        shown = "a\\nb\\tc[bold]d31m"
        assert lines == [
            f"{shown}: {shown}, 1 B, NOT sound: 3 problems",
            f"├─ ! {shown}",
            f"├─ {shown}: {shown}",
            f"├─ {shown} {shown}  1 B, {shown} {shown}",
            f"│  └─ ! {shown}",
            f"└─ {shown}  1 B, {shown} {shown}",
            f"   └─ ! {shown}",
        ]


class TestImage:
    def test_a_sound_one(self, images: Workspace) -> None:
        done = images.topcoat("image", "new.cpio")
        assert (done.status, done.stderr) == (0, b"")
        assert done.stdout.decode().splitlines() == [
            "new.cpio: cpio, 2 KiB, sound",
            "├─ archives: 2",
            "├─ bin/  mode 0755",
            "├─ bin/sh  18 B, mode 0755, replaced yes",
            "├─ symlink sh  6 B, mode 0777, target bin/sh",
            "├─ character device dev/console  mode 0600, device 5:1",
            "├─ data/  mode 0700, archive 2",
            "├─ data/ssh/  mode 0700, archive 2",
            "├─ data/ssh/authorized_keys  16 B, mode 0600, archive 2",
            "└─ bin/sh  5 B, mode 0600, archive 2",
        ]

    def test_a_damaged_one(self, images: Workspace) -> None:
        done = images.topcoat("image", "cut.cpio")
        assert (done.status, done.stderr) == (30, b"")
        assert done.stdout.decode().splitlines() == [
            "cut.cpio: cpio, 300 B, NOT sound: 1 problem",
            "├─ ! no sound uncompressed cpio archive: the header is cut off at byte 256",
            "├─ archives: 1",
            "├─ bin/  mode 0755",
            "└─ bin/sh  18 B, mode 0755",
        ]
        assert json.loads(images.topcoat("image", "cut.cpio", "--json").stdout)["sound"] is False

    def test_json(self, images: Workspace) -> None:
        done = images.topcoat("image", "--json", "./cut.cpio")
        assert done.status == 30
        assert done.stdout.decode() == SAMPLE
        bare = images.topcoat("image", "./cut.cpio", "--json", "--no-digests").stdout.decode()
        assert bare == re.sub(r' +"digest": .*\n', "", SAMPLE)

    def test_on_a_terminal_it_is_the_same(self, images: Workspace) -> None:
        main, terminal = openpty()
        command = images.command("topcoat", "image", "new.cpio")
        subprocess.run(command, cwd=images.directory, env=images.environment, stdout=terminal, check=True)
        os.close(terminal)
        shown = os.read(main, 65536).replace(b"\r\n", b"\n")
        os.close(main)
        assert shown == images.topcoat("image", "new.cpio").stdout

    def test_all(self, images: Workspace) -> None:
        (images.directory / "big").write_bytes(cpio.encode(cpio.file(f"f{number}", b"") for number in range(50)))
        assert images.topcoat("image", "big").stdout.endswith(
            "└─ … and 10 more (all of them: --all, or --json)\n".encode()
        )
        assert len(images.topcoat("image", "big", "--all").stdout.splitlines()) == 52

    def test_the_demo_guest(self, demo: Workspace) -> None:
        initramfs = demo.topcoat("image", "out/images/demo/ssh-initramfs.cpio", "--all")
        assert initramfs.status == 0
        assert b"data/ssh/authorized_keys  " in initramfs.stdout
        kernel = demo.topcoat("image", "out/demo/vmlinux")
        assert kernel.status == 30
        assert "an ELF file, into which Topcoat does not look\n  hint: look into it with: readelf" in kernel.text
        disk = demo.topcoat("image", "out/images/demo/extended-fvm.blk")
        assert disk.status == 0
        assert b"partition data" in disk.stdout


NOTHING = "b3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"

SAMPLE = """\
{
  "file": "./cut.cpio",
  "image": {
    "facts": {
      "archives": 1
    },
    "kind": "cpio",
    "offset": 0,
    "parts": [
      {
        "facts": {
          "mode": "0755"
        },
        "kind": "directory",
        "name": "bin",
        "offset": 116,
        "size": 0
      },
      {
        "digest": "b3:f33419729bd8241d750adc3a08b1fff7b56921afdb88a7b2274c3740f58984d4",
        "facts": {
          "mode": "0755"
        },
        "kind": "file",
        "name": "bin/sh",
        "offset": 236,
        "size": 18
      }
    ],
    "problems": [
      "no sound uncompressed cpio archive: the header is cut off at byte 256"
    ],
    "size": 300
  },
  "kind": "cpio",
  "schema": 1,
  "sound": false
}
"""


class TestDiff:
    def test_what_differs(self, images: Workspace) -> None:
        done = images.topcoat("image", "diff", "old.cpio", "new.cpio")
        assert (done.status, done.stderr) == (1, b"")
        assert done.stdout.decode().splitlines() == [
            "6 differences (- only in A, + only in B, ~ in both)",
            "~ the image itself",
            "    size 1 KiB → 2 KiB",
            "    archives 1 → 2",
            "~ bin/sh  replaced none → yes",
            "+ data  directory",
            "+ data/ssh  directory",
            "+ data/ssh/authorized_keys  file, 16 B",
            "+ bin/sh#2  file, 5 B",
        ]

    def test_nothing_differs(self, images: Workspace) -> None:
        (images.directory / "diff").write_bytes(OLD)
        done = images.topcoat("image", "diff", "old.cpio", "diff")
        assert (done.status, done.stdout) == (0, b"no differences\n")
        bare = images.topcoat("image", "diff", "old.cpio", "diff", "--no-digests")
        assert bare.stdout == b"no differences in sizes and facts; contents were not compared\n"
        told = images.topcoat("image", "diff", "old.cpio", "diff", "--json")
        assert json.loads(told.stdout) == {"schema": 1, "equal": True, "differences": []}
        assert images.topcoat("image", "./diff").stdout.startswith(b"./diff: cpio, ")

    def test_json(self, images: Workspace) -> None:
        changed = [cpio.file("a", b"1", 0o600), cpio.file("b", b"")]
        (images.directory / "old.cpio").write_bytes(cpio.encode([cpio.file("a", b"0"), cpio.symlink("c", "a")]))
        (images.directory / "new.cpio").write_bytes(cpio.encode(changed))
        done = images.topcoat("image", "--json", "diff", "old.cpio", "new.cpio")
        assert done.status == 1
        assert json.loads(done.stdout) == {
            "schema": 1,
            "equal": False,
            "differences": [
                {
                    "path": "a",
                    "what": "changed",
                    "before": {
                        "digest": "b3:4d067153ac729a4a7e8220c97935ffba67487860d58298ceeb23864369867d9f",
                        "facts": {"mode": "0644"},
                    },
                    "after": {
                        "digest": "b3:d63bd9a826af91c1fea371965a64e11ee20f13e46b5f52c59901136605b3a487",
                        "facts": {"mode": "0600"},
                    },
                },
                {
                    "path": "c",
                    "what": "only in A",
                    "before": {"kind": "symlink", "size": 1, "facts": {"mode": "0777", "target": "a"}, "holds": 0},
                    "after": {},
                },
                {
                    "path": "b",
                    "what": "only in B",
                    "before": {},
                    "after": {"kind": "file", "size": 0, "digest": NOTHING, "facts": {"mode": "0644"}, "holds": 0},
                },
            ],
        }
        without = images.topcoat("image", "diff", "old.cpio", "new.cpio", "--json", "--no-digests")
        assert b"digest" not in without.stdout.replace(b'"digest": null', b"")

    def test_an_unsound_one_is_compared_and_told_of(self, images: Workspace) -> None:
        done = images.topcoat("image", "diff", "old.cpio", "cut.cpio")
        assert done.status == 1
        assert done.stderr == b"cut.cpio is not sound: topcoat image cut.cpio\n"
        assert (
            "problems none → no sound uncompressed cpio archive: the header is cut off at byte 256"
            in done.stdout.decode()
        )

    def test_of_many_differences_the_first_are_shown(self, images: Workspace) -> None:
        (images.directory / "big").write_bytes(cpio.encode(cpio.file(f"f{number:03}", b"") for number in range(50)))
        lines = images.topcoat("image", "diff", "old.cpio", "big").stdout.decode().splitlines()
        assert lines[0].startswith("55 differences ")
        assert lines[-1] == "… and 15 more (all of them: --all, or --json)"
        every = images.topcoat("image", "diff", "--all", "old.cpio", "big").stdout.decode().splitlines()
        assert every[-1] == "+ f049  file"


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ([], "the following arguments are required: FILE"),
            (["diff"], "diff needs two images, not 0"),
            (["diff", "old.cpio"], "diff needs two images, not 1"),
            (["diff", "old.cpio", "new.cpio", "cut.cpio"], "diff needs two images, not 3"),
            (["old.cpio", "new.cpio"], "topcoat image diff A B"),
            (["old.cpio", "--nonsense"], "unrecognized arguments: --nonsense"),
            (["diff", "--json", "old.cpio", "--nonsense", "new.cpio"], "unrecognized arguments: --nonsense"),
            (["missing"], "missing: No such file or directory"),
            (["."], ". is a directory, not a file"),
            (["pipe"], "pipe is a named pipe, not a file"),
            (["/dev/zero"], "/dev/zero is a character device, not a file"),
            (["old.cpio/below"], "Not a directory"),
            (["diff", "old.cpio", "missing"], "missing: No such file or directory"),
        ],
    )
    def test_wrong_usage(self, images: Workspace, words: list[str], said: str) -> None:
        os.mkfifo(images.directory / "pipe")
        done = images.topcoat("image", *words)
        assert (done.status, done.stdout) == (2, b"")
        assert said in done.text
        assert "Traceback" not in done.text

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "not an image: the file is empty"),
            (
                b"hello, world, hello",
                "it begins with 68 65 6c 6c 6f 2c 20 77 6f 72 6c 64 2c 20 68 65 (hello, world, he)",
            ),
            (b"\x1f\x8b\x08\0", "a file compressed by gzip, into which Topcoat does not look"),
            (b"QFI\xfb\0\0\0\x03", "a qcow2 disk, into which Topcoat does not look"),
            (b"FVM SPRS", "the file is cut off: 8 bytes, expected 40"),
            (b"FVM PART", "bad: "),
            (b"BOOT", "bad: "),
        ],
    )
    def test_what_cannot_be_read_at_all(self, images: Workspace, content: bytes, said: str) -> None:
        (images.directory / "bad").write_bytes(content)
        for words in (["bad"], ["--json", "bad"], ["diff", "bad", "old.cpio"]):
            done = images.topcoat("image", *words)
            assert (done.status, done.stdout) == (30, b""), done.text
            assert done.stderr.startswith(b"error: bad: ")
            assert said in done.text
            assert "hint: " in done.text

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_file_that_may_not_be_read(self, images: Workspace) -> None:
        (images.directory / "old.cpio").chmod(0)
        done = images.topcoat("image", "old.cpio")
        assert (done.status, b"Permission denied" in done.stderr) == (2, True)

    def test_a_reader_that_has_seen_enough(self, images: Workspace) -> None:
        (images.directory / "big").write_bytes(cpio.encode(cpio.file(f"f{number}", b"") for number in range(20000)))
        command = " ".join(images.command("topcoat", "image", "--all", "big")) + " | head -n 1"
        done = subprocess.run(
            command, shell=True, cwd=images.directory, env=images.environment, capture_output=True, check=True
        )
        assert (done.stdout, done.stderr) == (b"big: cpio, 2 MiB, sound\n", b"")

    def test_nothing_heavy_is_imported(self, images: Workspace) -> None:
        program = "import sys; from pipeline.cli.main import main; main(['image', 'old.cpio']); print(*sys.modules)"
        done = subprocess.run(
            images.command("python", "-c", program),
            cwd=images.directory,
            env=images.environment,
            capture_output=True,
            check=True,
        )
        heavy = {"luigi", "paramiko", "sh", "asyncio", "qemu", "cryptography", "psutil", "rich", "zstandard", "lz4"}
        assert not heavy & set(done.stdout.decode().splitlines()[-1].split())


def test_the_help_explains_both_forms(workspace: Workspace) -> None:
    told = workspace.topcoat("image", "--help").stdout.decode()
    for words in ("FILE", "diff A B", "./diff", "--no-digests", "30 if not"):
        assert words in " ".join(told.split())
