"""Bundles: what is written is read, nothing else is, and no key leaves the host."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.builds.ssh_keys import generate
from pipeline.errors import BundleRefused, InputChanged, StoreError
from pipeline.fuzz.crashes import archive, bundle
from pipeline.fuzz.crashes.bundle import Bundle, BundledFile, DigestDifference

SAMPLE = Path(__file__).parent / "bundles/schema-1.bundle"
PROGRAM = b"\x7fELF" + bytes(range(256)) * 3
LIBRARY = b"\x7fELF a library"

MANY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def sample(directory: Path) -> Bundle:
    """The bundle that is frozen; its files are in the directory."""
    (directory / "program").write_bytes(PROGRAM)
    (directory / "library").write_bytes(LIBRARY)
    program, library = (BundledFile.of(directory / name) for name in ("program", "library"))
    return Bundle(
        fuzzer="demo/parser_fuzzer",
        bucket="heap-buffer-overflow-copy_text-3f2a91c04d1e",
        rule="default/1",
        facts={"kind": "heap-buffer-overflow", "frames": ["copy_text", "record"], "count": 3, "first_seen": None},
        argv=("/targets/parser_fuzzer", "-seed=7", "-max_len=4096"),
        environment={"ASAN_OPTIONS": "symbolize=0", "NAME": "é\udcff"},
        seed=7,
        options=("-max_len=4096",),
        digests={"images": {"kernel": "b3:01", "disk": "b3s:02"}, "qemu": {"qemu-system-x86_64": "b3:03"}, "tools": {}},
        input=b"\x00\xffinput",
        minimised=b"\x00",
        output=b"ERROR: AddressSanitizer: heap-buffer-overflow\n",
        serial=b"[1.0] kernel\n",
        files={"/targets/parser_fuzzer": program, "/targets/lib/libz.so": library, "/targets/lib/libz.so.1": library},
    )


SMALLEST = Bundle("demo/f", "SEGV-f-0123456789ab", "default/1", {}, ("f",), {}, 1, (), {}, b"i")


def contents(one: Bundle) -> dict[str, bytes]:
    return {path: b"".join(file.pieces()) for path, file in one.files.items()}


def manifest(path: Path) -> dict[str, Any]:
    with tarfile.open(path) as tar:
        text = tar.extractfile("manifest.json")
        assert text is not None
        found: dict[str, Any] = json.load(text)
        return found


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = sample(tmp_path)
    bundle.write(written, tmp_path / "b")
    found = bundle.read(tmp_path / "b")
    assert found == written
    assert contents(found) == contents(written)
    (tmp_path / "program").unlink()
    assert b"".join(found.files["/targets/parser_fuzzer"].pieces()) == PROGRAM


def test_the_frozen_sample(tmp_path: Path) -> None:
    bundle.write(sample(tmp_path), tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == SAMPLE.read_bytes()
    assert bundle.read(SAMPLE) == sample(tmp_path)


def test_a_bundle_that_is_read_can_be_written_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "b"
    bundle.write(sample(tmp_path), path)
    bundle.write(bundle.read(path), path)
    assert path.read_bytes() == SAMPLE.read_bytes()


def test_members_and_manifest_tell_the_same() -> None:
    told = manifest(SAMPLE)
    with tarfile.open(SAMPLE) as tar:
        names = tar.getnames()
        assert names == ["manifest.json", *sorted(told["members"])]
        for name, member in told["members"].items():
            content = tar.extractfile(name)
            assert content is not None
            assert hashlib.sha256(content.read()).hexdigest() == member["sha256"]
    rest = {key: value for key, value in told.items() if key != "sha256"}
    assert told["sha256"] == hashlib.sha256((json.dumps(rest, indent=2, sort_keys=True) + "\n").encode()).hexdigest()
    assert len([name for name in names if name.startswith("files/")]) == 2


texts = st.text(max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
bundles = st.builds(
    Bundle,
    texts,
    texts,
    texts,
    st.dictionaries(texts, json_values, max_size=3),
    st.lists(texts | st.text("\udc80\udcff\n\0", max_size=3), max_size=3).map(tuple),
    st.dictionaries(texts, texts, max_size=3),
    st.integers(),
    st.lists(texts, max_size=2).map(tuple),
    st.dictionaries(texts, st.dictionaries(texts, texts, max_size=2), max_size=2),
    st.binary(max_size=600),
    st.none() | st.binary(max_size=20),
    st.binary(max_size=20),
    st.binary(max_size=20),
)


@MANY
@given(bundles)
def test_whatever_is_written_is_read(tmp_path: Path, one: Bundle) -> None:
    bundle.write(one, tmp_path / "b")
    assert bundle.read(tmp_path / "b") == one


@pytest.mark.parametrize("with_file", [False, True])
def test_any_byte_that_is_changed_is_noticed(tmp_path: Path, with_file: bool) -> None:
    files = {"/f": BundledFile.of(Path(__file__).with_name("__init__.py"))} if with_file else {}
    path = tmp_path / "b"
    bundle.write(replace(SMALLEST, files=files), path)
    whole = path.read_bytes()
    assert len(whole) < 12 * archive.BLOCK
    with path.open("r+b") as stream:
        for at, byte in enumerate(whole):
            os.pwrite(stream.fileno(), bytes([byte ^ 1 << at % 8]), at)
            with pytest.raises(BundleRefused):
                bundle.read(path)
            os.pwrite(stream.fileno(), bytes([byte]), at)
    assert bundle.read(path).input == b"i"


@MANY
@given(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=600))
def test_parts_that_are_replaced_inserted_or_cut_off_are_noticed(tmp_path: Path, at: int, new: bytes) -> None:
    whole = SAMPLE.read_bytes()
    at %= len(whole)
    for changed in (whole[:at], whole[:at] + new + whole[at:], whole[:at] + new + whole[at + len(new) :], whole + new):
        (tmp_path / "b").write_bytes(changed)
        if changed != whole:
            with pytest.raises(BundleRefused):
                bundle.read(tmp_path / "b")


def members(path: Path = SAMPLE) -> dict[str, bytes]:
    data = path.read_bytes()
    return {one.name: data[one.start : one.start + one.size] for one in archive.members(io.BytesIO(data), len(data))}


def packed(parts: list[tuple[str, bytes]]) -> bytes:
    return (
        b"".join(archive.header(name, len(text)) + text + archive.padding(len(text)) for name, text in parts)
        + archive.END
    )


def sealed(told: Mapping[str, Any]) -> bytes:
    """A manifest whose own digest is right, whatever it tells."""
    rest = {key: value for key, value in told.items() if key != "sha256"}
    digest = hashlib.sha256((json.dumps(rest, indent=2, sort_keys=True) + "\n").encode()).hexdigest()
    return (json.dumps(rest | {"sha256": digest}, indent=2, sort_keys=True) + "\n").encode()


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(BundleRefused) as caught:
        bundle.read(path)
    assert caught.value.hint
    return caught.value.message


FOREIGN = ["../../etc/passwd", "/etc/passwd", "files/../input", "notes.txt", "input/", "INPUT", "manifest.json"]


@pytest.mark.parametrize("name", FOREIGN)
def test_members_that_do_not_belong_there(tmp_path: Path, name: str) -> None:
    at_end = packed([*members().items(), (name, b"x")])
    assert name in refused(tmp_path / "b", at_end)
    instead = packed([(name if one == "serial.txt" else one, text) for one, text in members().items()])
    assert name in refused(tmp_path / "b", instead)


def test_a_member_that_comes_twice(tmp_path: Path) -> None:
    parts = list(members().items())
    assert "a member named input" in refused(tmp_path / "b", packed([*parts[:4], parts[3], *parts[4:]]))


def test_members_in_another_order(tmp_path: Path) -> None:
    parts = list(members().items())
    assert "should be is a member named serial.txt" in refused(tmp_path / "b", packed([*parts[:-2], *parts[:-3:-1]]))
    assert "does not begin with its manifest" in refused(tmp_path / "b", packed(parts[::-1]))


def test_a_member_that_is_missing(tmp_path: Path) -> None:
    assert "where serial.txt should be is nothing" in refused(tmp_path / "b", packed(list(members().items())[:-1]))


def test_a_link_in_the_place_of_the_input(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "b", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, text in members().items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            if name == "input":
                info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/passwd", 0
            tar.addfile(info, io.BytesIO(text))
    assert "its member input is a link" in refused(tmp_path / "b", (tmp_path / "b").read_bytes())


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda told: told.update(schema=2), "its schema is 2"),
        (lambda told: told.update(more=1), "its manifest is not as it was written"),
        (lambda told: told.pop("argv"), "a field is missing or wrong"),
        (lambda told: told.update(seed="7"), "a field is missing or wrong"),
        (lambda told: told["files"].update({"/a/../../x": told["files"]["/targets/lib/libz.so"]}), "can be at"),
        (lambda told: told["files"].update({"../x": told["files"]["/targets/lib/libz.so"]}), "can be at"),
        (lambda told: told["files"].update({"/a\x1b": told["files"]["/targets/lib/libz.so"]}), "can be at"),
        (lambda told: told["files"].update({"": told["files"]["/targets/lib/libz.so"]}), "can be at"),
        (lambda told: told["files"].update({"/targets": told["files"]["/targets/lib/libz.so"]}), "is both a file and"),
        (lambda told: told["files"].update({"targets/lib/libz.so": told["files"]["/targets/lib/libz.so"]}), "two "),
        (lambda told: told["files"].update({"/x": "0" * 64}), "its members are not those"),
        (lambda told: told["files"].clear(), "its members are not those"),
        (lambda told: told["members"].pop("input"), "its members are not those"),
        (lambda told: told["members"].update({"../x": told["members"]["input"]}), "its members are not those"),
        (lambda told: told["members"]["input"].update(size=-1), "input has -1 bytes"),
        (lambda told: told["members"]["input"].update(size=1 << 40), "input has 1099511627776 bytes"),
        (lambda told: told["members"]["input"].update(sha256="0" * 64), "input is not what its manifest says"),
        (lambda told: told["members"]["minimised"].update(size=2), "where minimised should be is"),
        (lambda told: told.update(facts={"a": [[[]]] * 9}), "schema-1"),
    ],
)  # fmt: skip
def test_manifests_that_tell_something_else(tmp_path: Path, change: Change, problem: str) -> None:
    parts = members()
    told = json.loads(parts["manifest.json"])
    change(told)
    parts["manifest.json"] = sealed(told)
    if problem == "schema-1":  # what is sound is read, whoever has made it
        (tmp_path / "b").write_bytes(packed(list(parts.items())))
        assert bundle.read(tmp_path / "b").facts == told["facts"]
        return
    assert problem in refused(tmp_path / "b", packed(list(parts.items())))


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"\xff", b'{"schema": 1}', b'{"schema": 1, "seed": 1e999}'])
def test_manifests_that_make_no_sense(tmp_path: Path, text: bytes) -> None:
    refused(tmp_path / "b", packed(list((members() | {"manifest.json": text}).items())))


@pytest.mark.parametrize("depth", [300, 900, 100_000])
def test_facts_that_are_nested_without_end(tmp_path: Path, depth: int) -> None:
    told = members()["manifest.json"].replace(b'"count": 3', b'"count": ' + b"[" * depth + b"]" * depth)
    refused(tmp_path / "b", packed(list((members() | {"manifest.json": told}).items())))


def test_a_file_that_is_not_named_by_its_content(tmp_path: Path) -> None:
    parts = members()
    told = json.loads(parts["manifest.json"])
    old, new = told["files"]["/targets/lib/libz.so"], "0" * 64
    told["files"] = {path: new if digest == old else digest for path, digest in told["files"].items()}
    told["members"][f"files/{new}"] = told["members"].pop(f"files/{old}")
    parts[f"files/{new}"] = parts.pop(f"files/{old}")
    del parts["manifest.json"]
    data = packed([("manifest.json", sealed(told)), *sorted(parts.items())])
    assert "is not named by its content" in refused(tmp_path / "b", data)


@pytest.mark.parametrize("data", [b"", b"PK\3\4 a zip", b"\x1f\x8b\x08 a gzip", bytes(10240), b"text\n" * 1000])
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    assert "is no sound bundle: " in refused(tmp_path / "b", data)


def test_a_giant_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "b").open("wb") as stream:
        stream.truncate(bundle.MOST_BUNDLE_BYTES + 1)
    with pytest.raises(BundleRefused, match=r"it has 2147483649 bytes, and may have 2\.0 GiB"):
        bundle.read(tmp_path / "b")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path):
        with pytest.raises(BundleRefused, match="is no file"):
            bundle.read(path)
    with pytest.raises(StoreError, match="No such file"):
        bundle.read(tmp_path / "missing")


KEY = generate("ed25519")[0]


@pytest.mark.parametrize(
    ("facts", "where"),
    [
        ({"input": KEY}, "input"),
        ({"minimised": KEY}, "minimised"),
        ({"output": b"log: " + KEY}, "output.txt"),
        ({"serial": KEY}, "serial.txt"),
        ({"environment": {"KEY": KEY.decode()}}, "manifest.json"),
        ({"argv": (KEY.decode(),)}, "manifest.json"),
    ],
)
def test_no_key_leaves_the_host(tmp_path: Path, facts: dict[str, Any], where: str) -> None:
    with pytest.raises(BundleRefused, match=f"a private key may be in {where}"):
        bundle.write(replace(SMALLEST, **facts), tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(("name", "content"), [("/data/sshid", b"x"), ("/targets/f", PROGRAM + KEY), ("/a.txt", KEY)])
def test_no_file_that_is_a_key_leaves_the_host(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(BundleRefused, match="may be a private key"):
        bundle.write(replace(SMALLEST, files={name: BundledFile.of(tmp_path / "file")}), tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("path", ["", "/", "..", "/a/../b", "a//b", "/a/", "/a\n", "/" + "a" * 1000, "."])
def test_paths_that_no_file_has_are_not_written(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(BundleRefused, match="can be at"):
        bundle.write(replace(SMALLEST, files={path: BundledFile.of(tmp_path / "file")}), tmp_path / "b")


def test_what_is_too_large_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleRefused, match=r"serial\.txt has 4194305 bytes, and may have 4 MiB"):
        bundle.write(replace(SMALLEST, serial=bytes((4 << 20) + 1)), tmp_path / "b")
    one = BundledFile.of(SAMPLE)
    monkeypatch.setattr(bundle, "MOST_FILES", 1)
    with pytest.raises(BundleRefused, match="2 files of the target's own, and 1 are the most"):
        bundle.write(replace(SMALLEST, files={"/a": one, "/b": one}), tmp_path / "b")
    monkeypatch.setattr(bundle, "MOST_BUNDLE_BYTES", 9000)
    with pytest.raises(BundleRefused, match="it has 15360 bytes, and may have 9 KiB"):
        bundle.write(replace(SMALLEST, files={"/a": one}), tmp_path / "b")


def test_a_file_that_changes_meanwhile_is_noticed_and_nothing_is_left(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"before")
    one, path = replace(SMALLEST, files={"/f": BundledFile.of(file)}), tmp_path / "out/b"
    path.parent.mkdir()
    bundle.write(one, path)
    before = path.read_bytes()
    file.write_bytes(b"behind")
    with pytest.raises(InputChanged):
        bundle.write(one, path)
    assert path.read_bytes() == before
    assert sorted(found.name for found in path.parent.iterdir()) == ["b"]


def test_a_bundle_that_changes_after_it_was_read_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "b"
    bundle.write(sample(tmp_path), path)
    file = bundle.read(path).files["/targets/parser_fuzzer"]
    data = bytearray(path.read_bytes())
    data[file.offset + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputChanged):
        list(file.pieces())


def test_which_digests_differ() -> None:
    then = {"images": {"kernel": "b3:1", "disk": "b3:2"}, "qemu": {"qemu": "b3:3"}}
    now = {"images": {"kernel": "b3:1", "disk": "b3:4"}, "tools": {"zbi": "b3:5"}}
    assert bundle.compare(then, now) == [
        DigestDifference("images", "disk", "b3:2", "b3:4"),
        DigestDifference("qemu", "qemu", "b3:3", ""),
        DigestDifference("tools", "zbi", "", "b3:5"),
    ]
    assert bundle.compare(then, then) == bundle.compare({}, {"images": {}}) == []
