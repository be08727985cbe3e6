"""Files into a guest and out of it, by tar and by SFTP, on a server of our own."""

import io
import os
import signal
import subprocess
import tarfile
import threading
import time
from functools import partial
from pathlib import Path

import paramiko
import pytest

from pipeline.errors import (
    CommandError,
    CommandExited,
    CommandTimeout,
    NoMatch,
    StoreError,
    TransferRefused,
    UsageError,
)
from pipeline.settings import Timeouts
from pipeline.ssh import Connector, Limits
from tests.fakes import sshd
from tests.ssh.conftest import PROMPT, address, make, program, tree

FILES: dict[str, bytes | None] = {
    "d/a": b"first",
    "d/b": b"",
    "d/.hidden": b"dot",
    "d/with blank": b"blank",
    "d/new\nline": b"newline",
    "d/'quotes\"$(x)`": b"quotes",
    "d/-dash": b"dash",
    "d/*": b"star",
    "d/umläut": b"\xc3",
    "d/inner/deep/file": bytes(range(256)) * 1000,
    "d/inner/other": b"other",
    "d/empty": None,
    "d/" + "l" * 200: b"long name",
    "d/inner/" + "m" * 120 + "/" + "n" * 120: b"long path",
    "outside": b"outside",
}


def below(prefix: str, files: dict[str, bytes | None]) -> dict[str, bytes | None]:
    """What `tree` finds in a directory with these files, as far as they begin so, without the prefix."""
    found: dict[str, bytes | None] = {}
    for name, data in files.items():
        if name.startswith(prefix):
            rest = name[len(prefix) :]
            found |= {str(parent): None for parent in Path(rest).parents if str(parent) != "."}
            found[rest] = data
    return dict(sorted(found.items()))


@pytest.mark.usefixtures("way")
class TestPut:
    def test_c13_a_file_into_a_directory_that_is_there(self, connector: Connector, root: Path, here: Path) -> None:
        make(here, FILES)
        (root / "to").mkdir()
        connector.put(str(here / "outside"), "to")
        connector.put(str(here / "outside"), "to")
        assert tree(root / "to") == {"outside": b"outside"}

    def test_c14_all_that_is_in_a_directory(self, connector: Connector, root: Path, here: Path) -> None:
        make(here, FILES)
        connector.put(f"{here}/d/*", "to/new dir/-x")
        assert tree(root / "to/new dir/-x") == below("d/", FILES)

    def test_c15_a_tree_under_its_own_name(self, connector: Connector, root: Path, here: Path) -> None:
        make(here, FILES)
        connector.put(str(here / "d"), str(root / "to"))
        assert tree(root / "to") == below("", {name: data for name, data in FILES.items() if name != "outside"})

    def test_c16_an_inner_directory_only(self, connector: Connector, root: Path, here: Path) -> None:
        make(here, FILES)
        connector.put(str(here / "d" / "inner"), "to")
        assert tree(root / "to") == below("d/", {n: d for n, d in FILES.items() if n.startswith("d/inner")})

    def test_a_slash_at_the_end_puts_what_is_inside(self, connector: Connector, root: Path, here: Path) -> None:
        make(here, FILES)
        connector.put(f"{here}/d/", "to")
        assert tree(root / "to") == below("d/", FILES)

    def test_a_relative_target_with_a_dash(self, connector: Connector, root: Path, here: Path) -> None:
        make(here, FILES)
        connector.put(f"{here}/d/", "-to")
        assert tree(root / "-to") == below("d/", FILES)

    def test_what_is_there_is_merged(self, connector: Connector, root: Path, here: Path) -> None:
        make(here, FILES)
        make(root / "to", {"d/a": b"old and longer than the new one", "d/kept": b"kept", "d/empty/full": b"full"})
        connector.put(str(here / "d"), "to")
        assert tree(root / "to" / "d") == dict(
            sorted((below("d/", FILES) | {"kept": b"kept", "empty/full": b"full"}).items())
        )

    def test_nothing_that_matches(self, connector: Connector, here: Path) -> None:
        with pytest.raises(NoMatch, match=r"no files matching glob: '.*/x\*'"):
            connector.put(f"{here}/x*", "to")

    def test_a_bad_pattern(self, connector: Connector) -> None:
        with pytest.raises(UsageError, match="syntax error in pattern"):
            connector.put("[", "to")

    def test_links_to_files_arrive_as_files_and_others_are_left_out(
        self, connector: Connector, root: Path, here: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        make(here, FILES)
        (here / "d" / "to file").symlink_to("a")
        (here / "d" / "to directory").symlink_to("..")
        (here / "d" / "to nothing").symlink_to("nowhere")
        os.mkfifo(here / "d" / "fifo")
        connector.put(str(here / "d"), "to")
        assert tree(root / "to" / "d") == dict(sorted((below("d/", FILES) | {"to file": b"first"}).items()))
        assert [record.message.rpartition("/")[2] for record in caplog.records] == [
            "fifo is left out: it is neither a file nor a directory",
            "to directory is left out: it is a link to a directory",
            "to nothing is left out: it is a link to nothing",
        ]

    def test_a_file_in_the_way_of_the_target(self, connector: Connector, root: Path, here: Path) -> None:
        make(here, FILES)
        (root / "to").touch()
        with pytest.raises(CommandError, match="to"):
            connector.put(str(here / "d"), "to/below")

    def test_what_cannot_be_read(self, connector: Connector, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make(here, FILES)

        def refused(*_: object, **__: object) -> int:
            raise PermissionError(13, "Permission denied", "a")

        monkeypatch.setattr("pipeline.ssh.sources.os.open", refused)
        with pytest.raises(StoreError, match=r"reading what is to be put into the guest: Permission denied: a"):
            connector.put(str(here / "d"), "to")


@pytest.mark.usefixtures("way")
class TestGet:
    def test_c7_a_file_and_again(self, connector: Connector, root: Path, here: Path) -> None:
        make(root, FILES)
        (here / "outside").write_bytes(b"old and longer than the new one")
        connector.get("outside", here)
        assert tree(here) == {"outside": b"outside"}

    def test_c8_a_source_that_is_not_there(self, connector: Connector, here: Path) -> None:
        with pytest.raises(NoMatch, match=r"no files matching glob: 'no/x\*'"):
            connector.get("no/x*", here)

    def test_c9_into_a_directory_that_is_not_there(self, connector: Connector, root: Path, here: Path) -> None:
        make(root, FILES)
        for name in ("no", "file"):
            (here / "file").touch()
            with pytest.raises(UsageError, match="there is no directory"):
                connector.get("outside", here / name)

    def test_c10_all_that_is_in_a_directory(self, connector: Connector, root: Path, here: Path) -> None:
        make(root, FILES)
        connector.get("d/*", here)
        assert tree(here) == below("d/", FILES)

    def test_c11_a_tree_under_its_own_name(self, connector: Connector, root: Path, here: Path) -> None:
        make(root, FILES)
        connector.get(str(root / "d"), here)
        assert tree(here) == below("", {name: data for name, data in FILES.items() if name != "outside"})

    def test_c12_an_inner_directory_only(self, connector: Connector, root: Path, here: Path) -> None:
        make(root, FILES)
        connector.get("d/inner", here)
        assert tree(here) == below("d/", {n: d for n, d in FILES.items() if n.startswith("d/inner")})

    @pytest.mark.parametrize("pattern", ["d/", "d/inner/../../d", "d/."])
    def test_other_ways_to_name_it(self, connector: Connector, root: Path, here: Path, pattern: str) -> None:
        make(root, FILES)
        connector.get(pattern, here)
        assert tree(here if pattern == "d/." else here / "d") == below("d/", FILES)

    @pytest.mark.parametrize("pattern", ["..", "d/..", "/"])
    def test_what_has_no_name_is_refused(self, connector: Connector, root: Path, here: Path, pattern: str) -> None:
        make(root, FILES)
        with pytest.raises(UsageError, match="has no name"):
            connector.get(pattern, here)

    def test_markers_of_live_corpora_are_left_out(self, connector: Connector, root: Path, here: Path) -> None:
        make(root, {".live_corpus": b"", "c/.live_corpus": b"", "c/x": b"x", "c/d/.live_corpus": b""})
        connector.get("*", here)
        connector.get(".live_corpus", here)
        assert tree(here) == {"c": None, "c/x": b"x", "c/d": None}

    def test_what_is_there_is_merged(self, connector: Connector, root: Path, here: Path) -> None:
        make(root, FILES)
        make(here, {"d/kept": b"kept", "d/a": b"old"})
        connector.get("d", here)
        assert tree(here / "d") == dict(sorted((below("d/", FILES) | {"kept": b"kept"}).items()))

    def test_links_to_files_arrive_as_files_and_others_are_left_out(
        self, connector: Connector, root: Path, here: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        make(root, {"d/a": b"first", "d/e/f": b""})
        (root / "d" / "to file").symlink_to("a")
        (root / "d" / "hard").hardlink_to(root / "d" / "a")
        (root / "d" / "to directory").symlink_to("..")
        (root / "d" / "to nothing").symlink_to("nowhere")
        os.mkfifo(root / "d" / "fifo")
        connector.get("d", here)
        wanted = {"a": b"first", "e": None, "e/f": b"", "hard": b"first", "to file": b"first"}
        assert tree(here / "d") == wanted
        assert sorted(record.message.rpartition("/")[2] for record in caplog.records) == [
            "fifo in the guest is left out: it is no file, and no link to one",
            "to directory in the guest is left out: it is no file, and no link to one",
            "to nothing in the guest is left out: it links to nothing",
        ]

    def test_links_in_the_destination_are_not_followed(self, connector: Connector, root: Path, here: Path) -> None:
        make(root, FILES)
        outside = make(here.parent / "elsewhere", {"victim": b"safe"})
        (here / "d").mkdir()
        (here / "d" / "a").symlink_to(outside / "victim")
        connector.get("d/a", here / "d")
        assert (outside / "victim").read_bytes() == b"safe"
        assert (here / "d" / "a").read_bytes() == b"first"
        assert not (here / "d" / "a").is_symlink()
        (here / "d" / "inner").symlink_to(outside)
        with pytest.raises(UsageError, match="'inner' is there and is no directory"):
            connector.get("d", here)
        assert tree(outside) == {"victim": b"safe"}

    def test_a_directory_in_the_way_of_a_file(self, connector: Connector, root: Path, here: Path) -> None:
        make(root, FILES)
        (here / "outside").mkdir()
        with pytest.raises(UsageError, match="'outside' cannot be stored: a directory is there"):
            connector.get("outside", here)
        assert list(here.iterdir()) == [here / "outside"]

    @pytest.mark.parametrize(
        ("limits", "what"),
        [(Limits(bytes=1000), "1000 bytes"), (Limits(entries=5), "5 files"), (Limits(depth=2), "2 nested")],
    )
    def test_more_than_allowed(
        self, server: sshd.Server, key: Path, root: Path, here: Path, limits: Limits, what: str
    ) -> None:
        make(root, FILES)
        strict = Connector(address(server, key), Timeouts(), PROMPT, limits)
        with pytest.raises(TransferRefused, match=f"the guest sends more than {what}"):
            strict.get("d", here)
        strict.close()
        assert [name for name in tree(here) if ".part" in name] == []
        assert sum(len(data) for data in tree(here).values() if data) <= 1000 or limits.bytes > 1000

    def test_a_full_disk_leaves_no_half_file(self, connector: Connector, root: Path, here: Path) -> None:
        make(root, {"d/small": b"small", "d/tall": os.urandom(3_000_000)})
        with small_disk(here):
            with pytest.raises(StoreError, match="No space left") as failure:
                connector.get("d", here)
            assert "free some space" in failure.value.hint
            assert set(tree(here)) <= {"d", "d/small"}


def small_disk(directory: Path) -> "Mounted":
    return Mounted(directory)


class Mounted:
    """A tmpfs of 1 MiB."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __enter__(self) -> None:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", self.directory], check=False)
        if done.returncode:
            pytest.skip("no right to mount")

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", self.directory], check=True)


def archive(*members: tuple[str, bytes, bytes]) -> bytes:
    """A tar stream with members (name, type, content)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as written:
        for name, kind, data in members:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, len(data), "/etc/passwd"
            written.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def sending(server: sshd.Server, tmp_path: Path, stream: bytes, more: str = "") -> None:
    """The guest's tar sends this."""
    (tmp_path / "stream").write_bytes(stream)
    script = f'[ "$1" = --version ] && echo "tar (GNU tar)" && exit\ncat {tmp_path}/stream\n{more}'
    program(server, tmp_path, "tar", script)


FILE, DIRECTORY = tarfile.REGTYPE, tarfile.DIRTYPE


@pytest.mark.parametrize(
    "stream",
    [
        archive(("../escaped", FILE, b"x")),
        archive(("d/../../escaped", FILE, b"x")),
        archive(("/escaped", FILE, b"x"), ("d/..", FILE, b"x")),
        archive(("other", FILE, b"x")),
        archive(("d/" + "x" * 256, FILE, b"x")),
        archive(("d/" + "x/" * 100 + "y", FILE, b"x")),
        archive(("d//../x", DIRECTORY, b"")),
        archive(("d", FILE, b"x" * 2000))[:1000],
        archive(("d/" + "y" * 300_000, FILE, b"x")),
        b"no archive at all" * 1000,
        b"",
        archive(("d/x", FILE, b"x"))[:124] + b"-1\0        " + archive(("d/x", FILE, b"x"))[135:],
    ],
)
def test_hostile_streams_change_nothing_outside(
    server: sshd.Server, connector: Connector, root: Path, here: Path, tmp_path: Path, stream: bytes
) -> None:
    (root / "d").mkdir()
    sending(server, tmp_path, stream)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(TransferRefused) as failure:
        connector.get("d", here)
    assert failure.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert not Path("/escaped").exists()
    assert [name for name in tree(here) if name != "d"] == []


def test_an_absolute_name_in_a_stream_lands_inside_or_not_at_all(
    server: sshd.Server, connector: Connector, root: Path, here: Path, tmp_path: Path
) -> None:
    (root / "d").mkdir()
    sending(server, tmp_path, archive((f"{tmp_path}/escaped", FILE, b"x")))
    with pytest.raises(TransferRefused):
        connector.get("d", here)
    assert not (tmp_path / "escaped").exists()


def test_a_link_in_a_stream_and_then_a_file_through_it(
    server: sshd.Server, connector: Connector, root: Path, here: Path, tmp_path: Path
) -> None:
    (root / "d").mkdir()
    sending(server, tmp_path, archive(("d/l", tarfile.SYMTYPE, b""), ("d/l/passwd", FILE, b"x"), ("d/n", FILE, b"n")))
    connector.get("d", here)
    assert tree(here) == {"d": None, "d/l": None, "d/l/passwd": b"x", "d/n": b"n"}


def test_an_endless_stream_ends_at_the_limit(
    server: sshd.Server, key: Path, root: Path, here: Path, tmp_path: Path
) -> None:
    (root / "d").mkdir()
    member = tarfile.TarInfo("d/x")
    member.size = 1 << 32
    sending(server, tmp_path, member.tobuf(tarfile.GNU_FORMAT), "exec cat /dev/zero")
    strict = Connector(address(server, key), Timeouts(), PROMPT, Limits(bytes=1_000_000))
    with pytest.raises(TransferRefused, match="more than 1000000 bytes"):
        strict.get("d", here)
    strict.close()
    assert tree(here) == {"d": None}


@pytest.mark.parametrize(
    "start",
    [
        archive(("d/" + "y" * 120, FILE, b""))[:1024],  # the name of a name of a name
        archive(("d/x", FILE, b"x"))[:2048] + bytes(10240),  # something behind the end
        archive(("d/x", FILE, b"x"))[:1024] * 3,
        archive(("d/x", DIRECTORY, b""))[:512],
    ],
)
def test_a_stream_that_goes_on_for_ever_does_not(
    server: sshd.Server, key: Path, root: Path, here: Path, tmp_path: Path, start: bytes
) -> None:
    (root / "d").mkdir()
    sending(server, tmp_path, start, f"while cat {tmp_path}/stream; do :; done")
    strict = Connector(address(server, key), Timeouts(), PROMPT, Limits(entries=100))
    with pytest.raises(TransferRefused):
        strict.get("d", here)
    strict.close()


def test_a_marker_of_endless_size(server: sshd.Server, key: Path, root: Path, here: Path, tmp_path: Path) -> None:
    (root / "d").mkdir()
    member = tarfile.TarInfo("d/.live_corpus")
    member.size = 1 << 32
    sending(server, tmp_path, member.tobuf(tarfile.GNU_FORMAT), "exec cat /dev/zero")
    strict = Connector(address(server, key), Timeouts(), PROMPT, Limits(bytes=1_000_000))
    with pytest.raises(TransferRefused, match="more than 1000000 bytes"):
        strict.get("d", here)
    strict.close()


def test_a_stream_that_stops_is_given_up(
    server: sshd.Server, key: Path, root: Path, here: Path, tmp_path: Path
) -> None:
    (root / "d").mkdir()
    sending(server, tmp_path, archive(("d/x", FILE, b"x" * 2000))[:1000], "exec sleep 1020")
    hasty = Connector(address(server, key), Timeouts(), PROMPT, Limits(stall=0.5))
    began = time.monotonic()
    with pytest.raises(CommandTimeout) as failure:
        hasty.get("d", here)
    hasty.close()
    assert failure.value.ended
    assert time.monotonic() - began < 3
    assert tree(here) == {"d": None}


def test_tar_that_fails_at_the_end_is_told(
    server: sshd.Server, connector: Connector, root: Path, here: Path, tmp_path: Path
) -> None:
    (root / "d").mkdir()
    sending(server, tmp_path, archive(("d/x", FILE, b"x")), "echo d/y: vanished >&2; exit 1")
    with pytest.raises(CommandExited, match="vanished"):
        connector.get("d", here)
    assert tree(here) == {"d": None, "d/x": b"x"}


def test_a_tar_that_cannot_store_is_told_with_its_words(
    server: sshd.Server, connector: Connector, here: Path, tmp_path: Path
) -> None:
    make(here, FILES | {"d/large": os.urandom(9_000_000)})
    sending(server, tmp_path, b"", "echo no space left >&2; exit 1")
    with pytest.raises(CommandExited, match="no space left"):
        connector.put(str(here / "d"), "to")


def got(connector: Connector, source: str, directory: str) -> None:
    connector.get(source, Path(directory))


@pytest.mark.parametrize("direction", ["put", "get"])
@pytest.mark.usefixtures("way")
def test_a_server_that_dies_in_the_middle(
    server: sshd.Server, connector: Connector, root: Path, here: Path, direction: str
) -> None:
    large: dict[str, bytes | None] = {f"d/{number}": bytes(9_000_000) for number in range(8)}
    make(root if direction == "get" else here, large)
    connector.connected()
    threading.Timer(0.2, server.drop).start()
    transfer = connector.put if direction == "put" else partial(got, connector)
    with pytest.raises(CommandError):
        transfer(str(here / "d") if direction == "put" else "d", str(here if direction == "get" else "to"))
    if direction == "get":
        assert [name for name in tree(here) if ".part" in name] == []
        assert all(data in (None, large["d/0"]) for data in tree(here).values())


@pytest.mark.usefixtures("way")
def test_ctrl_c_in_the_middle_of_a_get(connector: Connector, root: Path, here: Path) -> None:
    make(root, {f"d/{number}": bytes(9_000_000) for number in range(20)})
    connector.connected()
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        connector.get("d", here)
    assert [name for name in tree(here) if ".part" in name] == []
    assert connector.run("echo usable", 5).stdout == b"usable\n"


class Liar(sshd.Files):
    """Names that are none."""

    names = ("../escaped", "/escaped", "a/b", "", "x\0y")
    name = ""

    def list_folder(self, path: str) -> list[paramiko.SFTPAttributes] | int:
        found = paramiko.SFTPAttributes()
        found.filename, found.st_mode = self.name, 0o100644
        return [found]


@pytest.mark.parametrize("name", Liar.names)
@pytest.mark.parametrize("pattern", ["d", "d/*", "d/[^x]*"])
def test_hostile_names_by_sftp(
    server: sshd.Server, connector: Connector, root: Path, here: Path, tmp_path: Path, name: str, pattern: str
) -> None:
    program(server, tmp_path, "tar", "exit 127")
    (root / "d").mkdir()
    server.sftp = type("Named", (Liar,), {"name": name})
    with pytest.raises((TransferRefused, NoMatch)):
        connector.get(pattern, here)
    assert set(tree(here)) <= {"d"}
    assert not (tmp_path / "escaped").exists()


class Wrong(paramiko.SFTPHandle):
    """Answers reads with what nobody asked for."""

    how = ""

    def read(self, offset: int, length: int) -> bytes | int:
        if self.how == "more":
            return bytes(length + 1)
        if self.how == "endless":
            return bytes(length)
        return paramiko.SFTPServer.convert_errno(5)


class Sizes(sshd.Files):
    how = ""

    def stat(self, path: str) -> paramiko.SFTPAttributes | int:
        found = super().stat(path)
        if isinstance(found, paramiko.SFTPAttributes):
            found.st_size = 1 << 50
        return found

    def open(self, path: str, flags: int, attr: paramiko.SFTPAttributes) -> paramiko.SFTPHandle | int:
        if self.how == "true":
            return super().open(path, flags, attr)
        handle: paramiko.SFTPHandle = type("How", (Wrong,), {"how": self.how})(flags)
        return handle


@pytest.mark.parametrize("how", ["more", "endless", "error"])
def test_lies_about_content_by_sftp(server: sshd.Server, key: Path, root: Path, here: Path, how: str) -> None:
    make(root, {"f": b"f"})
    server.sftp = type("How", (Sizes,), {"how": how})
    strict = Connector(address(server, key), Timeouts(), PROMPT, Limits(bytes=1_000_000))
    with pytest.raises(CommandError):
        strict.get("f", here)
    strict.close()
    assert tree(here) == {}


def test_what_a_server_says_of_sizes_does_not_matter(
    server: sshd.Server, connector: Connector, root: Path, here: Path
) -> None:
    make(root, {"f": b"f" * 100_000, "g": b"f" * 32768, "h": b"f" * 65536, "i": b"f" * 32769})
    server.sftp = type("How", (Sizes,), {"how": "true"})
    connector.get("[fghi]", here)
    assert tree(here) == tree(root)


def test_thousands_of_files_there_and_back(way: str, connector: Connector, root: Path, here: Path) -> None:
    count = {"tar": 2000, "sftp": 500}[way]
    files: dict[str, bytes | None] = {f"c/{number:04d}": b"%d" % number for number in range(count)}
    make(here, files)
    connector.put(str(here / "c"), ".")
    assert tree(root / "c") == tree(here / "c")
    back = here / "back"
    back.mkdir()
    connector.get("c/*", back)
    assert tree(back) == tree(here / "c")
