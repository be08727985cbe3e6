"""Files into a guest, by tar and by SFTP, on a server of our own."""

import os
from pathlib import Path

import pytest

from pipeline.errors import CommandError, NoMatch, StoreError, UsageError
from pipeline.ssh.connector import Connector
from tests.ssh.conftest import FILES, below, make, tree


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

    def test_directories_without_an_end(self, connector: Connector, root: Path, here: Path) -> None:
        at = here / "deep"
        for _ in range(200):
            at.mkdir()
            at /= "d"
        with pytest.raises(StoreError, match="directories lie in each other over 64 deep"):
            connector.put(str(here / "deep"), "to")
        assert tree(root) == {}

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
        (here / "d" / "to itself").symlink_to("to itself")
        os.mkfifo(here / "d" / "fifo")
        connector.put(str(here / "d"), "to")
        assert tree(root / "to" / "d") == dict(sorted((below("d/", FILES) | {"to file": b"first"}).items()))
        assert [record.message.rpartition("/")[2] for record in caplog.records] == [
            "fifo is left out: it is neither a file nor a directory",
            "to directory is left out: it is a link to a directory",
            "to itself is left out: it is a link to itself",
            "to nothing is left out: it is a link to nothing",
        ]

    def test_a_file_in_the_way_of_the_target(self, connector: Connector, root: Path, here: Path) -> None:
        make(here, FILES)
        (root / "to").touch()
        with pytest.raises(CommandError, match="to"):
            connector.put(str(here / "d"), "to/below")

    @pytest.mark.slow
    def test_what_cannot_be_read(self, connector: Connector, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make(here, FILES)

        def refused(*_: object, **__: object) -> int:
            raise PermissionError(13, "Permission denied", "a")

        monkeypatch.setattr("pipeline.ssh.sources.os.open", refused)
        with pytest.raises(
            StoreError, match=r"reading what is to be put into the guest: Permission denied: a"
        ) as caught:
            connector.put(str(here / "d"), "to")
        assert "store" not in caught.value.hint, "it is none of the store's files"
