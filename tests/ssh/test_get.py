"""Files out of a guest, by tar and by SFTP, on a server of our own."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.errors import NoMatch, StoreError, TransferRefused, UsageError
from pipeline.ssh import jobs
from pipeline.ssh.connector import Connector
from pipeline.ssh.landing import TransferLimits
from tests.fakes import sshd
from tests.ssh.conftest import FILES, PATIENT, PROMPT, address, below, make, tree


@contextmanager
def small_disk(directory: Path) -> Iterator[None]:
    """A tmpfs of 1 MiB on the directory."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", directory], check=False)
    if done.returncode:
        pytest.skip("no right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


def test_one_that_goes_before_it_is_fetched_is_told_and_the_others_come(
    connector: Connector, root: Path, here: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(root, {"d/a": b"first", "d/b": b"second"})
    opening = jobs.opening

    def opened_late(path: bytes, *, write: bool) -> jobs.SftpRequest:
        (root / "d/a").unlink(missing_ok=True)
        return opening(path, write=write)

    monkeypatch.setattr(jobs, "opening", opened_late)
    connector.get("d/*", here)
    assert tree(here) == {"b": b"second"}
    assert [record.message.rpartition("/")[2] for record in caplog.records] == ["a in the guest has gone meanwhile"]


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
        [
            (TransferLimits(bytes=1000), "1000 bytes"),
            (TransferLimits(entries=5), "5 files"),
            (TransferLimits(depth=2), "2 nested"),
        ],
    )
    def test_more_than_allowed(
        self, server: sshd.Server, key: Path, root: Path, here: Path, limits: TransferLimits, what: str
    ) -> None:
        make(root, FILES)
        strict = Connector(address(server, key), PATIENT, PROMPT, limits)
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
