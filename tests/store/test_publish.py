import json
import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.host.locks import locked
from pipeline.host.trust import make_private
from pipeline.settings import Store
from pipeline.store.publish import publish, publish_bytes, publish_json, remove, replacing
from pipeline.upkeep import gc
from tests import neighbours
from tests.children import helper

NAMES = ["plain.bin", "a*b", "[x]", "what?", "-e", "ümläut 字", "a.b.c", ".hidden", "[!a]*?.tmp"]


def contents(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_published_file_is_whole_and_alone(tmp_path: Path, name: str) -> None:
    with publish(tmp_path / name) as made:
        made.write_bytes(b"part")
        (made.parent / "rubbish of the tool").touch()
        assert not (tmp_path / name).exists()
        made.write_bytes(b"whole")
    assert (tmp_path / name).read_bytes() == b"whole"
    assert contents(tmp_path) == [name]


def fail_halfway(target: Path, error: type[BaseException]) -> None:
    with publish(target) as made:
        made.write_bytes(b"half")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [None, b"old"], ids=["nothing before", "a file before"])
def test_when_the_body_fails_all_is_as_before(tmp_path: Path, old: bytes | None, error: type[BaseException]) -> None:
    target = tmp_path / "file"
    if old is not None:
        target.write_bytes(old)
    with pytest.raises(error):
        fail_halfway(target, error)
    assert contents(tmp_path) == ([] if old is None else ["file"])
    assert old is None or target.read_bytes() == old


def test_a_body_that_makes_nothing_is_an_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(StoreError, match=r"^making file: No such file"), publish(tmp_path / "file"):
        pass
    assert contents(tmp_path) == ["file"]


def test_an_open_reader_keeps_the_old_contents(tmp_path: Path) -> None:
    publish_bytes(tmp_path / "file", b"old")
    with (tmp_path / "file").open("rb") as stream:
        publish_bytes(tmp_path / "file", b"new")
        assert stream.read() == b"old"
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize("name", NAMES)
def test_remains_of_a_killed_predecessor_are_swept(tmp_path: Path, name: str) -> None:
    code = "with publish(target) as made:\n    made.write_bytes(b'half')\n    ready()\n"
    others = [f".other{name}.abcdefgh.tmp", f"{name}.abcdefgh.tmp", f".{name}.abcdefgh"]
    if (alike := name.translate({ord("*"): "xyz", ord("?"): "x"})) != name:
        others.append(f".{alike}.abcdefgh.tmp")
    for other in others:
        (tmp_path / other).mkdir()
    (tmp_path / name).write_bytes(b"old")
    with helper(code, tmp_path / name) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / name).read_bytes() == b"old"
    assert len(contents(tmp_path)) == len(others) + 2
    publish_bytes(tmp_path / name, b"new")
    assert (tmp_path / name).read_bytes() == b"new"
    assert contents(tmp_path) == sorted([*others, name])


@pytest.mark.parametrize("moment", ["sync", "replace"])
def test_a_kill_between_the_steps_leaves_the_old_or_the_new(tmp_path: Path, moment: str) -> None:
    """The helper stops before the named step of publish, and is killed there."""
    stop = {
        "sync": "import pipeline.store.publish\npipeline.store.publish.sync = lambda path: ready()\n",
        "replace": "Path.replace = lambda self, to: ready()\n",
    }
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with helper(stop[moment] + "publish_bytes(target, b'new' * 1000)\n", target) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert target.read_bytes() == b"old"
    assert len(contents(tmp_path)) == 2
    publish_bytes(target, b"newer")
    assert contents(tmp_path) == ["file"]
    assert target.read_bytes() == b"newer"


def test_a_kill_after_the_rename_leaves_the_new(tmp_path: Path) -> None:
    code = "import shutil\nshutil.rmtree = lambda *a, **k: ready()\npublish_bytes(target, b'new' * 1000)\n"
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with helper(code, target) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert target.read_bytes() == b"new" * 1000
    publish_bytes(target, b"newer")
    assert contents(tmp_path) == ["file"]


def test_the_work_on_a_target_with_a_longer_name_is_left_alone(tmp_path: Path) -> None:
    with publish(tmp_path / "file.part") as made:
        made.write_bytes(b"at work")
        publish_bytes(tmp_path / "file", b"x")
        assert made.exists()


def test_a_directory_can_be_a_target(tmp_path: Path) -> None:
    with publish(tmp_path / "new/packages") as made:
        made.mkdir()
        (made / "one").write_bytes(b"1")
    assert (tmp_path / "new/packages/one").read_bytes() == b"1"
    assert contents(tmp_path / "new") == ["packages"]


def test_a_full_directory_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/old").touch()
    with (
        pytest.raises(StoreError, match=r"^making packages: Directory not empty"),
        publish(tmp_path / "packages") as made,
    ):
        made.mkdir()
    assert contents(tmp_path) == ["packages"]
    assert contents(tmp_path / "packages") == ["old"]


def full(directory: Path, content: str) -> None:
    """A directory in a directory, and a file in each."""
    (directory / "deep").mkdir(parents=True)
    for name in ("file", "deep/file"):
        (directory / name).write_text(content)


def text_in(directory: Path) -> list[str]:
    return [(directory / name).read_text() for name in ("file", "deep/file")]


OTHERS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda target: None,
    "a full directory": lambda target: full(target, "old"),
    "an empty directory": Path.mkdir,
    "a file": Path.touch,
    "a link to a directory": lambda target: target.symlink_to("elsewhere"),
}


@pytest.mark.parametrize("before", OTHERS)
def test_a_directory_takes_the_place_of_whatever_is_there(tmp_path: Path, before: str) -> None:
    full(tmp_path / "elsewhere", "kept")
    OTHERS[before](tmp_path / "made")
    with replacing((tmp_path / "list", tmp_path / "made")) as (listing, directory):
        listing.touch()
        full(directory, "new")
    assert text_in(tmp_path / "made") == ["new", "new"]
    assert text_in(tmp_path / "elsewhere") == ["kept", "kept"]
    assert contents(tmp_path) == ["elsewhere", "list", "made"]


def make_two_of_three(targets: tuple[Path, ...]) -> None:
    with replacing(targets) as (listing, directory, _):
        listing.write_text("new")
        full(directory, "new")


def test_of_several_none_is_replaced_before_all_are_made(tmp_path: Path) -> None:
    full(tmp_path / "made", "old")
    (tmp_path / "list").write_text("old")
    with pytest.raises(StoreError, match=r"^making list: No such file"):
        make_two_of_three((tmp_path / "list", tmp_path / "made", tmp_path / "more"))
    assert text_in(tmp_path / "made") == ["old", "old"]
    assert (tmp_path / "list").read_text() == "old"
    assert contents(tmp_path) == ["list", "made"]


REPLACE = """
def make():
    with replacing((target / "list", target / "made")) as (listing, directory):
        listing.write_text("new")
        (directory / "deep").mkdir(parents=True)
        for name in ("file", "deep/file"):
            (directory / name).write_text("new")
"""
MOMENTS = {
    "made": "import pipeline.store.publish\npipeline.store.publish.sync = lambda path: ready()\n",
    "the first in place": "real = Path.rename\nPath.rename = lambda self, to: ready()\n",
    "the old one aside": "real = Path.replace\n"
    "Path.replace = lambda self, to: ready() if self.name == 'made' else real(self, to)\n",
    "all in place": "import shutil\nshutil.rmtree = lambda *a, **k: ready()\n",
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("next_one", ["replacing", "gc"])
def test_a_kill_while_a_directory_is_replaced_loses_nothing(tmp_path: Path, moment: str, next_one: str) -> None:
    store = Store(tmp_path)
    full(store.demo / "made", "old")
    with helper(REPLACE + MOMENTS[moment] + "make()\n", store.demo) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len([name for name in contents(store.demo) if name.endswith(".tmp")]) == 1
    if next_one == "gc":
        for item in gc.items(store, 0):
            assert gc.reclaim(item).error is None
    else:
        fail_to_replace(store.demo)
    assert text_in(store.demo / "made") == (["new", "new"] if moment == "all in place" else ["old", "old"])
    assert [name for name in contents(store.demo) if name.endswith(".tmp")] == []


def fail_to_replace(directory: Path) -> None:
    with pytest.raises(ValueError, match="x"), replacing((directory / "list", directory / "made")):
        raise ValueError("x")


@pytest.mark.parametrize("name", ["file/below", "file/far/below"])
def test_a_parent_that_is_a_file_is_a_store_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"^making below: ") as caught:
        publish_bytes(tmp_path / name, b"x")
    assert "a file stands where a directory is wanted" in caught.value.hint
    with pytest.raises(StoreError, match=r"^locking below: "), locked(tmp_path / name):
        pytest.fail("there can be no lock")


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755])
def test_mode_of_published_bytes(tmp_path: Path, mode: int) -> None:
    (tmp_path / "file").touch(0o666)
    publish_bytes(tmp_path / "file", b"x", mode)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) & 0o700 == mode & 0o700
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) & ~mode == 0


def test_a_secret_is_never_readable_for_others_while_it_is_made(tmp_path: Path) -> None:
    with publish(tmp_path / "key") as made:
        assert stat.S_IMODE(made.parent.stat().st_mode) == 0o700
        made.touch()


def test_json_text(tmp_path: Path) -> None:
    publish_json(tmp_path / "file", {"b": [1, None], "a": "ä\n", "c": {}})
    assert (tmp_path / "file").read_text(encoding="utf-8") == (
        '{\n  "a": "ä\\n",\n  "b": [\n    1,\n    null\n  ],\n  "c": {}\n}\n'
    )


def test_remove_takes_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "one").touch()
    remove(tmp_path / "one", tmp_path / "two")
    assert contents(tmp_path) == []


def test_remove_of_a_directory_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"^removing {tmp_path.name}: "):
        remove(tmp_path)


def test_json_of_a_path_that_is_not_utf_8(tmp_path: Path) -> None:
    path = os.fsdecode(b"/a/\xff/\xc3\xa4")
    publish_json(tmp_path / "x.json", {"path": path})
    assert json.loads((tmp_path / "x.json").read_bytes()) == {"path": path}


class TestRights:
    @pytest.fixture(autouse=True)
    def _generous(self) -> Iterator[None]:
        before = os.umask(0o002)
        yield
        os.umask(before)

    def test_a_directory_that_is_made_and_those_above_are_private(self, tmp_path: Path) -> None:
        make_private(tmp_path / "a/b/c")
        assert [oct((tmp_path / name).stat().st_mode & 0o777) for name in ("a", "a/b", "a/b/c")] == ["0o700"] * 3
        (tmp_path / "a").chmod(0o755)
        make_private(tmp_path / "a/b/c")
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755

    def test_what_is_replaced_is_its_owner_s_alone(self, tmp_path: Path) -> None:
        with replacing((tmp_path / "image", tmp_path / "programs")) as (image, programs):
            image.write_bytes(b"key")
            programs.mkdir()
            (programs / "tool").touch(0o777)
            (programs / "link").symlink_to("tool")
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if not path.is_symlink()}
        assert modes == {"image": 0o600, "programs": 0o700, "tool": 0o700}

    @pytest.mark.parametrize("existing", [True, False], ids=["of an older version", "new"])
    @neighbours.needs_root
    def test_nobody_else_can_take_a_lock(self, existing: bool) -> None:
        take = "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB); print('taken')"
        with neighbours.commons() as shared:
            if existing:
                (shared / "a.lock").touch(0o644)
                assert neighbours.run(take, str(shared / "a.lock")) == "taken"
            with locked(shared / "a"):
                pass
            assert neighbours.run(take, str(shared / "a.lock")).startswith("PermissionError")
