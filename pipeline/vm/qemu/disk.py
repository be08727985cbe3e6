"""The disk of an instance: a qcow2 overlay, so that the prepared image is shared and never written."""

import os
import struct
import subprocess
from pathlib import Path
from typing import Literal

from pipeline.errors import ToolFailed, ToolMissing
from pipeline.host.faults import host_faults
from pipeline.store.publish import publish
from pipeline.text.printable import tail
from pipeline.vm.qemu import environment
from pipeline.vm.template import NoTemplateError, OpenTemplate

_LIMIT = 30.0


# In a qcow2 header: place and length of the name that it lies over, and the size of the disk that it shows: QEMU,
# docs/interop/qcow2.txt
_BACKING, _SIZE = slice(8, 20), slice(24, 32)

Form = Literal["raw", "qcow2"]
"""The format of an image, in QEMU's word."""


def copy_overlay(template: OpenTemplate, image: Path, overlay: Path) -> None:
    """Make a new `overlay` over `image`, with what the template's guest had written to its disk.

    The caller holds the instance's lock. Raises NoTemplateError, also if the way to the image is another one from here,
    or StoreError.
    """
    with publish(overlay) as made:
        template.copy_disk(made)
        if os.path.realpath(overlay.parent / backing(made)) != os.path.realpath(image):
            raise NoTemplateError("its disk does not lead to the image from this instance's directory")


def backing(overlay: Path) -> str:
    """The name by which a qcow2 file knows what it lies over."""
    with overlay.open("rb") as stream:
        place, length = struct.unpack(">QI", stream.read(_BACKING.stop)[_BACKING])
        stream.seek(place)
        return os.fsdecode(stream.read(length))


def flatten(qemu_img: Path, overlay: Path, whole: Path, limit: float, most: int) -> None:
    """Make the new, compressed qcow2 file `whole` of all that an overlay shows: it needs no other file.

    It may take `limit` seconds; nobody may write to the overlay meanwhile. Raises ToolMissing, StoreError, and
    ToolFailed, with minus SIGXFSZ as `code` if it would take more than `most` bytes.
    """
    with host_faults("saving the disk"):
        limited = ("prlimit", f"--fsize={most}", "--core=0", "--")
        _run(qemu_img, ["convert", "-O", "qcow2", "-c", str(overlay), str(whole)], limit, limited)


def make_overlay(qemu_img: Path, image: Path, overlay: Path, form: Form = "raw") -> None:
    """Make a new `overlay` over `image`, of the same size; it takes 0.2 MiB and a few milliseconds.

    It knows the image by the way from its own directory, so that both may be moved, and that copies of it beside it,
    or in another directory as deep, know it too. The caller holds the instance's lock. Raises ToolMissing, ToolFailed
    or StoreError.
    """
    way = os.path.relpath(os.path.realpath(image), os.path.realpath(overlay.parent))
    with publish(overlay) as made, host_faults("making the disk"):
        # -u, for from the place where it is made the way leads nowhere; the size is then not looked up either
        words = ["create", "-q", "-f", "qcow2", "-u", "-F", form, "-b", way, str(made), str(size(image, form))]
        _run(qemu_img, words, _LIMIT)


def size(image: Path, form: Form) -> int:
    """The bytes of the disk that an image shows. Raises OSError."""
    if form == "raw":
        return image.stat().st_size
    with image.open("rb") as stream:
        return int.from_bytes(stream.read(_SIZE.stop)[_SIZE], "big")


def _run(qemu_img: Path, words: list[str], limit: float, by: tuple[str, ...] = ()) -> None:
    try:
        done = subprocess.run(
            [*by, str(qemu_img), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment.of_qemu(),
            timeout=limit,
            check=False,
        )
    except OSError as error:
        raise ToolMissing(
            f"qemu-img cannot be run: {qemu_img}: {error.strerror}",
            hint="install it (apt-get install qemu-utils), or set [build] qemu-img = PATH",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ToolFailed(f"qemu-img did not end within {limit:g} s", hint="is the disk overloaded?") from error
    if done.returncode != 0:
        failure = ToolFailed(
            f"qemu-img failed with exit code {done.returncode}",
            hint="its own words are above",
            detail=tail(done.stderr or done.stdout),
        )
        failure.code = done.returncode
        raise failure
