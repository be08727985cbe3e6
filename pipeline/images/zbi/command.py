"""The arguments of Fuchsia's `zbi`, as far as they are about whole images, BOOTFS files and items."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import TopcoatError, UsageError, host_faults
from pipeline.images.source import opened
from pipeline.images.zbi import container, extract, item_types, listing
from pipeline.images.zbi.compression import NONE, ZSTD, Method
from pipeline.images.zbi.merge import Merge
from pipeline.publish import publish

USAGE = """\
Usage: zbi [-o OUT] INPUT... [-- PATTERN...]
  -o, --output=OUT          write an image; OUT may be one of the inputs
  -e, --entry=PATH=FILE     add FILE, or all that is in a directory, at PATH in the BOOTFS
  -r, --replace             what follows may replace files of the same name
  -T, --type=TYPE[:SIZE]    the files that follow become items of this type (their first SIZE bytes)
  -F, --files               the files that follow are images again
  -c, --compressed[=HOW]    how the BOOTFS is compressed: none, lz4f, zstd, zstd.LEVEL, zstd.max
                            (default: as it was; zstd where there was none)
  -u, --uncompressed        not at all
  -B, --bootable=ARCH       x64, arm64 or riscv64: refuse if the result does not start with its kernel
  -t, --list                list the items; with -v what is in them
  -x, --extract             write the BOOTFS files
  -D, --output-dir=DIR      into this directory (default: the current one)
  -v, --verbose, -h, --help
Inputs are taken in the order in which they stand, and -r and -T hold for what comes after them. A PATTERN chooses
files to extract. Anything wrong ends it with exit code 1, and OUT is as it was before."""

_LONG = {
    "output": "o",
    "entry": "e",
    "replace": "r",
    "type": "T",
    "files": "F",
    "compressed": "c",
    "uncompressed": "u",
    "bootable": "B",
    "complete": "B",
    "list": "t",
    "extract": "x",
    "output-dir": "D",
    "verbose": "v",
    "help": "h",
}
_WITH_VALUE = "oeTBD"
_HINT = "zbi --help tells what there is"


@dataclass
class Request:
    """What the arguments ask for. `steps` are inputs, in their order, each with what it does to a merge."""

    steps: list[Callable[[Merge], None]] = field(default_factory=list)
    output: Path | None = None
    method: Method | None = None
    kernel: int | None = None
    directory: Path = Path()
    switches: set[str] = field(default_factory=set)
    patterns: list[str] = field(default_factory=list)
    type: int | None = None
    type_size: int | None = None

    def take(self, option: str, value: str) -> None:
        """One option, or an input (option "")."""
        if option == "":
            self.steps.append(self._input(value))
        elif option == "e":
            self.steps.append(self._entry(value))
        elif option == "o":
            self.output = Path(value)
        elif option == "D":
            self.directory = Path(value)
        elif option in "cu":
            self.method = NONE if option == "u" else Method.parse(value) if value else ZSTD
        elif option == "B":
            self.kernel = _kernel(value)
        elif option in "TF":
            self._set_type(value)
        else:
            self.switches.add(option)

    @property
    def replace(self) -> bool:
        """Whether what follows may replace files."""
        return "r" in self.switches

    def _set_type(self, value: str) -> None:
        name, colon, size = value.partition(":")
        if colon and not size.isdecimal():
            raise UsageError(f"--type={value}: {size!r} is no number of bytes", hint="write --type=TYPE:BYTES")
        self.type = item_types.parse(name) if value else None
        self.type_size = int(size) if colon else None

    def _input(self, name: str) -> Callable[[Merge], None]:
        path, replace, kind, size = Path(name), self.replace, self.type, self.type_size
        if kind is None or kind == item_types.CONTAINER:
            return lambda merge: _add_input(merge, path, replace)
        return lambda merge: merge.add_item(container.made(kind, _read(path, size)), replace=replace)

    def _entry(self, text: str) -> Callable[[Merge], None]:
        kind, replace = self.type, self.replace
        if kind is not None:
            return lambda merge: merge.add_item(container.made(kind, text.encode(errors="surrogateescape")))
        target, equals, source = text.partition("=")
        if not equals:
            raise UsageError(f"manifest entry has no '=' separator: {text}", hint="write -e PATH=FILE")
        return lambda merge: merge.add_file(target, Path(source), replace=replace)


def _kernel(arch: str) -> int:
    if arch not in item_types.KERNELS:
        raise UsageError(f"{arch!r} is no architecture", hint=f"use one of: {', '.join(item_types.KERNELS)}")
    return item_types.KERNELS[arch]


def _add_input(merge: Merge, path: Path, replace: bool) -> None:
    if path.is_dir():
        for source in sorted(path.iterdir()):
            merge.add_file(source.name, source, replace=replace)
    else:
        merge.add_image(path, replace=replace)


_MOST_OF_A_FILE = 1 << 28  # of an item made from a file; kernels and ramdisks have a tenth of that


def _read(path: Path, size: int | None) -> bytes:
    wanted = _MOST_OF_A_FILE + 1 if size is None else size
    if wanted > _MOST_OF_A_FILE + 1:
        raise UsageError(f"{wanted} bytes are too many for an item", hint=f"use at most {_MOST_OF_A_FILE}")
    try:
        # Only with a size may it be a device: nobody knows where that ends
        if size is None:
            with opened(path) as source:
                data = source.at(0, min(wanted, source.size))
        else:
            with path.open("rb") as stream:
                data = stream.read(wanted)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="is the path right?") from error
    if size is not None and len(data) < size:
        raise UsageError(f"{path} has {len(data)} bytes, not {size}", hint="ask for no more than there is")
    if len(data) > _MOST_OF_A_FILE:
        raise UsageError(f"{path} is too large for an item", hint=f"use at most {_MOST_OF_A_FILE} bytes")
    return data


def parse(arguments: Sequence[str]) -> Request:
    """Read the arguments, in their order. Raises UsageError."""
    request = Request()
    for option, value in _tokens(list(arguments), request.patterns):
        request.take(option, value)
    return request


def _tokens(left: list[str], patterns: list[str]) -> Iterator[tuple[str, str]]:
    """Options by their letter, with their value, and inputs: option "". argparse would lose the order."""
    while left:
        word = left.pop(0)
        if word == "--":
            patterns += left
            return
        if word.startswith("--"):
            yield _long(word, left)
        elif word.startswith("-") and word != "-":
            yield from _short(word[1:], left)
        else:
            yield "", word


def _long(word: str, left: list[str]) -> tuple[str, str]:
    name, equals, value = word[2:].partition("=")
    option = _LONG.get(name)
    if option is None or (equals and option not in _WITH_VALUE + "c"):
        raise UsageError(f"there is no option {word}", hint=_HINT)
    if equals or option not in _WITH_VALUE:
        return option, value
    return option, _value(word, left)


def _short(letters: str, left: list[str]) -> Iterator[tuple[str, str]]:
    while letters:
        letter, letters = letters[0], letters[1:]
        if letter not in _LONG.values():
            raise UsageError(f"there is no option -{letter}", hint=_HINT)
        if letter in _WITH_VALUE:
            yield letter, letters or _value(f"-{letter}", left)
            return
        if letter == "c":
            yield letter, letters
            return
        yield letter, ""


def _value(option: str, left: list[str]) -> str:
    if not left:
        raise UsageError(f"option {option} needs a value", hint=_HINT)
    return left.pop(0)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. 0, or 1 with one line on stderr."""
    try:
        request = parse(sys.argv[1:] if arguments is None else arguments)
        if "h" in request.switches:
            print(USAGE)
            return 0
        with host_faults("working on an image"):
            _run(request)
    except TopcoatError as error:
        print(f"zbi: {error.explain()}", file=sys.stderr)
        return 1
    return 0


def _run(request: Request) -> None:
    if "t" in request.switches and request.output:
        raise UsageError("--output (-o) is incompatible with --list (-t)", hint="do the one, then the other")
    if not request.output and not request.switches & {"t", "x"}:
        raise UsageError("no output file", hint="give -o OUT, or --list or --extract. " + _HINT)
    with Merge() as merge:
        for step in request.steps:
            step(merge)
        if request.output:
            _write(request.output, merge, request)
        if "t" in request.switches:
            _list(merge, verbose="v" in request.switches)
        if "x" in request.switches:
            extract.extract(merge.items, request.directory, extract.matcher(request.patterns))


def _write(output: Path, merge: Merge, request: Request) -> None:
    items = merge.outcome(request.method)
    if request.kernel is not None:
        items.sort(key=lambda item: not item_types.is_kernel(item.type))
        why = listing.unbootable(items, request.kernel)
        if why:
            raise UsageError(f"Not a bootable image: {why}", hint="add the image with the kernel of that architecture")
    with publish(output.absolute()) as made, made.open("w+b", buffering=0) as stream:
        container.write(stream, items)


def _list(merge: Merge, *, verbose: bool) -> None:
    print(listing.headline(merge.items))
    position = container.HEADER.size
    for item in merge.items:
        for line in listing.lines(item, position, verbose=verbose):
            print(line)
        if wrong := listing.wrong_crc(item):
            print(wrong, file=sys.stderr)
        position = listing.end_of(item, position)
