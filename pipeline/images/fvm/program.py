"""The command `fvm`."""

import argparse
import os
import sys
from pathlib import Path

from pipeline.errors import TopcoatError, UsageError
from pipeline.host.faults import host_faults, image_faults
from pipeline.images.fvm.creation import create
from pipeline.images.fvm.extension import extend_file
from pipeline.images.fvm.metadata import read
from pipeline.images.fvm.soundness import check
from pipeline.images.reader import opened
from pipeline.store.publish import publish
from pipeline.text.printable import printable
from pipeline.text.quantity import parse_size

_EXTEND = """
Grow the volume to N bytes. The new file replaces the old one in one step. Its tables may grow, and slices are moved
then. Contents of allocated slices stay, all else becomes a hole.
"""
_IN_PLACE = """
FILE itself may be changed, so nothing is copied: only the two metadata copies and the file's length change, one copy at
a time, so that a kill leaves the old volume or the new one. If the tables have to grow, the file is written anew. What
unallocated slices held stays in the file
"""
_SIZE = """
Print two lines: "least BYTES", the end of the last allocated slice, below which contents would be lost, and
"volume BYTES", the size of the volume
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns 0; 1 after an error, told on stderr with a hint, or for problems that `check` finds."""
    options = _parser().parse_args(arguments)
    try:
        with host_faults(f"working on {options.file.name}", "file"), image_faults(str(options.file)):
            return _COMMANDS[options.command](options)
    except TopcoatError as error:
        print(f"fvm: {printable(error.explain())}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fvm", description="Make, extend and check FVM images.")
    parser.add_argument("file", type=Path, metavar="FILE", help="a raw FVM image (fvm.blk)")
    commands = parser.add_subparsers(dest="command", required=True)
    extender = commands.add_parser("extend", help="grow the volume", description=_EXTEND)
    extender.add_argument("--length", required=True, metavar="N", help="bytes, or a number with K, M or G")
    extender.add_argument("--length-is-lowerbound", action="store_true", help="a larger file is left as it is")
    extender.add_argument(
        "--resize-image-file-to-fit", action="store_true", help="the file ends with the last allocated slice"
    )
    extender.add_argument("--in-place", action="store_true", help=_IN_PLACE)
    _add_create(commands.add_parser("create", help="make a volume of data partitions"))
    commands.add_parser("check", help="print what is wrong, and exit with 1; print nothing if all is sound")
    commands.add_parser("size", help="print how large the file has to be and is meant to be", description=_SIZE)
    return parser


def _add_create(creator: argparse.ArgumentParser) -> None:
    creator.add_argument("--slice", default="32K", metavar="SIZE", help="a multiple of 8192 (32K)")
    creator.add_argument("--length", metavar="SIZE", help="size of the volume (just large enough)")
    creator.add_argument("--max-disk-size", metavar="SIZE", help="how far the volume shall be able to grow in place")
    creator.add_argument(
        "--partition", action="append", default=[], metavar="NAME=FILE", help="a partition and its contents; repeatable"
    )


def _extend(options: argparse.Namespace) -> int:
    extend_file(
        options.file,
        parse_size(options.length),
        lower_bound=options.length_is_lowerbound,
        to_fit=options.resize_image_file_to_fit,
        in_place=options.in_place,
    )
    return 0


def _create(options: argparse.Namespace) -> int:
    contents: dict[str, bytes | Path] = {}
    for partition in options.partition:
        name, equals, source = partition.partition("=")
        if not equals or name in contents:
            raise UsageError(
                f"--partition {partition}: {'there is one of that name' if equals else 'no file is named'}",
                hint="write --partition NAME=FILE, each NAME once",
            )
        contents[name] = Path(source)
    sizes = {
        key: parse_size(text) if (text := getattr(options, key)) is not None else None
        for key in ("length", "max_disk_size")
    }
    with publish(Path(os.path.realpath(options.file))) as made, made.open("wb") as output:
        create(output, parse_size(options.slice), contents, **sizes)
    return 0


def _check(options: argparse.Namespace) -> int:
    problems = check(options.file)
    for problem in problems:
        print(f"fvm: {printable(f'{options.file}: {problem}')}", file=sys.stderr)
    return 1 if problems else 0


def _size(options: argparse.Namespace) -> int:
    with opened(options.file) as file:
        metadata = read(file.stream)
    print(f"least {metadata.least_size}\nvolume {metadata.header.partition_size}")
    return 0


_COMMANDS = {"extend": _extend, "create": _create, "check": _check, "size": _size}
