"""Looking into a directory of the guest, and fetching the files that are named."""

import logging
from pathlib import Path

import pytest

from pipeline.errors import CommandError, TransferRefused
from pipeline.ssh import jobs
from pipeline.ssh.connector import Connector
from pipeline.ssh.landing import TransferLimits
from tests.ssh.conftest import PATIENT, PROMPT, make, tree

UNITS: dict[str, bytes | None] = {f"corpus/{number:040x}": b"x" * number for number in range(300)}


def test_sizes_are_those_of_files(connector: Connector, root: Path) -> None:
    make(root, {"corpus/a": b"abc", "corpus/.hidden": b"", "corpus/directory/inner": b"x"})
    (root / "corpus/link").symlink_to("a")
    assert connector.sizes("corpus") == {"a": 3, ".hidden": 0}
    assert connector.sizes("corpus/") == {"a": 3, ".hidden": 0}


def test_a_directory_that_is_not_there_has_no_files(connector: Connector) -> None:
    assert connector.sizes("corpus") == {}


@pytest.mark.usefixtures("way")
class TestFetch:
    def test_what_is_named_comes_and_nothing_else(self, connector: Connector, root: Path, here: Path) -> None:
        make(root, UNITS)
        wanted = sorted(connector.sizes("corpus"))[10:250]
        connector.fetch("corpus", wanted, here)
        assert tree(here) == {name: UNITS[f"corpus/{name}"] for name in wanted}

    def test_names_are_no_patterns_and_no_options(self, connector: Connector, root: Path, here: Path) -> None:
        names = ["*", "[a]", "-x", "--help", "a b", "'", "$HOME"]
        make(root, {f"corpus/{name}": name.encode() for name in [*names, "a"]})
        connector.fetch("corpus", names, here)
        assert tree(here) == {name: name.encode() for name in sorted(names)}

    @pytest.mark.parametrize("count", [1, 100])
    def test_one_that_has_gone_is_left_out_and_not_told(
        self, connector: Connector, root: Path, here: Path, count: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        """libFuzzer replaces units between the listing and the fetch: nobody can do anything about it."""
        make(root, UNITS)
        there = sorted(connector.sizes("corpus"))[:count]
        connector.fetch("corpus", ["gone", *there], here)
        assert sorted(tree(here)) == there
        assert [record.message for record in caplog.records if record.levelno > logging.DEBUG] == []

    @pytest.mark.parametrize("count", [1, 100])
    def test_a_link_to_nothing_is_told(
        self, connector: Connector, root: Path, here: Path, count: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        make(root, UNITS)
        (root / "corpus/link").symlink_to("nowhere")
        there = sorted(connector.sizes("corpus"))[:count]
        connector.fetch("corpus", ["link", *there], here)
        assert sorted(tree(here)) == there
        assert "corpus/link in the guest is left out: it links to nothing" in caplog.text

    def test_one_that_goes_before_it_is_opened_does_not_keep_the_others_away(
        self, connector: Connector, root: Path, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make(root, UNITS)
        there = sorted(connector.sizes("corpus"))[:4]
        opening = jobs.opening

        def opened_late(path: bytes, *, write: bool) -> jobs.SftpRequest:
            (root / "corpus" / there[1]).unlink(missing_ok=True)
            return opening(path, write=write)

        monkeypatch.setattr(jobs, "opening", opened_late)
        connector.fetch("corpus", there, here)
        assert set(tree(here)) >= set(there) - {there[1]}

    def test_no_name_leads_out(self, connector: Connector, root: Path, here: Path) -> None:
        make(root, {"corpus/a": b"", "secret": b"x"})
        with pytest.raises((TransferRefused, CommandError)):
            connector.fetch("corpus", ["../secret"], here)
        assert tree(here) == {}
        assert not (here.parent / "secret").exists()

    def test_what_is_fetched_is_limited(self, connector: Connector, root: Path, here: Path) -> None:
        make(root, UNITS)
        limited = Connector(connector.address, PATIENT, PROMPT, TransferLimits(bytes=1000))
        try:
            with pytest.raises(TransferRefused, match="more than 1000 bytes"):
                limited.fetch("corpus", [name.removeprefix("corpus/") for name in sorted(UNITS)], here)
        finally:
            limited.close()
