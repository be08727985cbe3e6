import stat
from importlib import resources
from pathlib import Path

import pytest

from pipeline.builds.linux.initramfs import MODULES, build, loading_order
from pipeline.builds.linux.packages import Packages
from pipeline.errors import PackageError
from pipeline.images import cpio
from pipeline.images.cpio import CpioEntry
from tests.builds.linux import debs
from tests.builds.linux.debs import CONTENTS, elf, module


@pytest.mark.parametrize(
    ("modules", "order"),
    [
        ({"a": ["b"], "b": ["c"], "c": []}, ["c", "b", "a"]),
        ({"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []}, ["d", "b", "c", "a"]),
        ({"a": ["built_in"]}, ["a"]),
        ({"a": [], "z": []}, ["a"]),
        ({"a": ["x-y"], "x_y": []}, ["x_y", "a"]),
        ({}, []),
    ],
    ids=["chain", "diamond", "built in", "not wanted", "hyphen", "unknown"],
)
def test_each_module_comes_after_its_dependencies(modules: dict[str, list[str]], order: list[str]) -> None:
    assert loading_order({name: module(*needs) for name, needs in modules.items()}, ["a"]) == order


def test_wanted_modules_keep_their_order_and_come_once() -> None:
    modules = {"a": module("c"), "b": module("c"), "c": module()}
    assert loading_order(modules, ["b", "a", "c", "b"]) == ["c", "b", "a"]


def test_a_module_without_information_depends_on_nothing() -> None:
    assert loading_order({"a": b"\x7fELF without modinfo"}, ["a"]) == ["a"]


@pytest.mark.parametrize(
    "modules", [{"a": ["a"]}, {"a": ["b"], "b": ["c"], "c": ["a"]}, {"a": ["b"], "b": ["c"], "c": ["b"]}]
)
def test_a_circle_is_refused(modules: dict[str, list[str]]) -> None:
    with pytest.raises(PackageError, match="modules depend on each other in a circle"):
        loading_order({name: module(*needs) for name, needs in modules.items()}, ["a"])


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CpioEntry]:
    """The whole file system by name, made from small packages."""
    directory = tmp_path_factory.mktemp("debs")
    debs.write_all(directory)
    entries = list(cpio.decode(build(Packages(directory), b"the host key", directory / "libraries")))
    names = [entry.name for entry in entries]
    assert len(set(names)) == len(names)
    return {entry.name: entry for entry in entries}


def test_every_entry_has_its_directory_before_it(image: dict[str, CpioEntry]) -> None:
    seen = {"."}
    for name, entry in image.items():
        assert str(Path(name).parent) in seen
        if stat.S_ISDIR(entry.mode):
            seen.add(name)


@pytest.mark.parametrize(
    ("name", "mode", "data"),
    [
        ("init", 0o100755, resources.files("pipeline.builds.linux").joinpath("init").read_bytes()),
        ("bin/busybox", 0o100755, b"the busybox"),
        ("bin/dropbear", 0o100755, CONTENTS["dropbear-bin"]["usr/sbin/dropbear"]),
        ("usr/lib/sftp-server", 0o100755, elf("libc.so.6")),
        ("etc/dropbear/host_key", 0o100600, b"the host key"),
        ("data/ssh", 0o040700, b""),
        ("data/.ssh", 0o120777, b"ssh"),
        ("dev/console", 0o020600, b""),
        ("lib/libc.so.6", 0o100755, elf("ld-linux-x86-64.so.2")),
        ("lib/libnss_files.so.2", 0o100755, b"loaded by libc when it likes"),
        ("lib/libgcc_s.so.1", 0o100755, elf("libc.so.6")),
        ("lib/ld-linux-x86-64.so.2", 0o100755, b"the loader"),
        ("lib64/ld-linux-x86-64.so.2", 0o120777, b"/lib/ld-linux-x86-64.so.2"),
        ("lib/libz.so.1", 0o100755, elf("libc.so.6", text=b"zlib")),
        ("lib/libgmp.so.10", 0o100755, elf("libc.so.6")),
        ("modules/virtio_ring.ko", 0o100644, module()),
        ("modules/virtio_pci.ko", 0o100644, module("virtio", "virtio-ring")),
    ],
)
def test_what_the_guest_finds(image: dict[str, CpioEntry], name: str, mode: int, data: bytes) -> None:
    assert (image[name].mode, image[name].data) == (mode, data)


def test_the_console_is_a_real_device(image: dict[str, CpioEntry]) -> None:
    assert image["dev/console"].rdev == (5, 1)


def test_users_can_log_in(image: dict[str, CpioEntry]) -> None:
    users = dict(line.split(":", 1) for line in image["etc/passwd"].data.decode().splitlines())
    assert users == dict.fromkeys(("root", "clusterfuchsia"), "x:0:0::/data:/bin/sh")
    assert b"/bin/sh\n" in image["etc/shells"].data


def test_a_shell_is_on_the_serial_port_and_has_it_as_its_terminal(image: dict[str, CpioEntry]) -> None:
    assert image["etc/inittab"].data.splitlines()[0] == b"ttyS0::respawn:-/bin/sh"


def test_modules_are_loaded_in_order_and_no_others_are_there(image: dict[str, CpioEntry]) -> None:
    order = image["modules/order"].data.decode().splitlines()
    assert order == [
        "virtio_ring.ko", "virtio.ko", "virtio_pci.ko", "failover.ko", "net_failover.ko", "virtio_net.ko",
        "virtio_blk.ko", "squashfs.ko",
    ]  # fmt: skip
    assert {name for name in image if name.startswith("modules/")} == {
        "modules/order",
        *(f"modules/{x}" for x in order),
    }


def test_nothing_else_of_the_packages_is_there(image: dict[str, CpioEntry]) -> None:
    others = ("doc", "dropbearkey", "gconv", "UTF", "libextra", "libz.so.1.2")
    assert not [name for name in image if any(other in name for other in others)]


def test_the_same_packages_give_the_same_bytes(tmp_path: Path) -> None:
    debs.write_all(tmp_path)
    packages = Packages(tmp_path)
    places = (tmp_path / name for name in "abc")
    assert build(packages, b"key", next(places)) == build(packages, b"key", next(places))
    assert build(packages, b"another", next(places)) != build(packages, b"key", tmp_path / "d")


@pytest.mark.parametrize("missing", MODULES)
def test_a_kernel_without_a_driver_is_refused(tmp_path: Path, missing: str) -> None:
    debs.write_all(tmp_path)
    files = {name: data for name, data in debs.CONTENTS[debs.KERNEL_NAME].items() if f"/{missing}.ko" not in name}
    debs.write(tmp_path, debs.KERNEL_NAME, files)
    with pytest.raises(PackageError, match=rf"lacks the modules \['{missing}'\]"):
        build(Packages(tmp_path), b"key", tmp_path / "libraries")


@pytest.mark.parametrize("place", ["lib", "usr/lib"])
def test_a_driver_that_is_built_in_is_there(tmp_path: Path, place: str) -> None:
    debs.write_all(tmp_path)
    files = {name: data for name, data in CONTENTS[debs.KERNEL_NAME].items() if "/drivers/virtio/" not in name}
    built_in = b"kernel/drivers/virtio/virtio.ko\nkernel/drivers/virtio/virtio-pci.ko\n"
    files[f"lib/modules/{debs.RELEASE}/modules.builtin"] = built_in
    debs.write(tmp_path, debs.KERNEL_NAME, {name.replace("lib/", f"{place}/", 1): data for name, data in files.items()})
    entries = {
        entry.name: entry.data for entry in cpio.decode(build(Packages(tmp_path), b"key", tmp_path / "libraries"))
    }
    assert entries["modules/order"].decode().split() == [
        "failover.ko",
        "net_failover.ko",
        "virtio_net.ko",
        "virtio_blk.ko",
        "squashfs.ko",
    ]


def test_a_damaged_module_is_a_damaged_package(tmp_path: Path) -> None:
    debs.write_all(tmp_path)
    files = {**debs.CONTENTS[debs.KERNEL_NAME], f"{debs.MODULES}/drivers/virtio/virtio_ring.ko.xz": b"no xz"}
    debs.write(tmp_path, debs.KERNEL_NAME, files)
    with pytest.raises(PackageError, match="is no sound Debian package"):
        build(Packages(tmp_path), b"key", tmp_path / "libraries")
