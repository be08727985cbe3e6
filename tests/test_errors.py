import copy
import errno
import multiprocessing
import pickle
import re
from collections.abc import Iterator

import pytest

from pipeline import errors
from pipeline.errors import BootError, StoreError, TopcoatError
from pipeline.host.faults import Place, host_faults

_LINE = re.compile(r"^(?P<indent>[ │├└─]*)(?P<name>[A-Z]\w+)(?: +(?P<fault>user|host|tool|guest|bug|-) +\S.*)?$")


def classes(base: type[TopcoatError] = TopcoatError) -> Iterator[type[TopcoatError]]:
    yield base
    for child in base.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from classes(child)


ALL = list(classes())


def make(cls: type[TopcoatError]) -> TopcoatError:
    stage = {"stage": "marker"} if issubclass(cls, BootError) else {}
    return cls("it broke", hint="mend NAME", detail="line 1\nline 2", **stage)


def drawn_tree() -> dict[str, tuple[str | None, str | None]]:
    """Name to (name of the parent, fault), as the docstring draws it."""
    drawing = (errors.__doc__ or "").split("::\n\n")[1].split("\n\n")[0]
    path: list[str] = []
    tree = {}
    for line in drawing.splitlines():
        match = _LINE.match(line)
        assert match, f"unreadable line of the tree: {line}"
        depth = (len(match["indent"]) - 4) // 4
        tree[match["name"]] = (path[depth - 1] if depth else None, match["fault"])
        path[depth:] = [match["name"]]
    return tree


def test_the_drawn_tree_has_the_real_classes_with_their_real_parents() -> None:
    real = {cls.__name__: None if cls is TopcoatError else cls.__bases__[0].__name__ for cls in ALL}
    assert {name: parent for name, (parent, _) in drawn_tree().items()} == real


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_the_drawn_fault_is_the_real_one(cls: type[TopcoatError]) -> None:
    _, fault = drawn_tree()[cls.__name__]
    assert fault in (None, "-", cls.fault)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("TopcoatError", 30), ("UsageError", 2), ("SettingsError", 2), ("UnknownInstance", 2), ("MissingResource", 20),
        ("StoreError", 30), ("ToolMissing", 20), ("ToolFailed", 30), ("ImageError", 30), ("BootTimeout", 30),
        ("InstanceBusy", 10), ("StopError", 30), ("CommandError", 30),
    ],
)  # fmt: skip
def test_exit_code(name: str, code: int) -> None:
    assert getattr(errors, name).exit_code == code


def test_explain_indents_the_evidence_between_message_and_hint() -> None:
    error = TopcoatError("it broke", hint="mend it", detail="line 1\nline 2\n")
    assert error.explain() == "it broke\n  | line 1\n  | line 2\n  hint: mend it"


def test_explain_without_evidence_is_message_and_hint() -> None:
    assert TopcoatError("it broke", hint="mend it").explain() == "it broke\n  hint: mend it"


def test_about_names_the_instance_in_message_and_hint() -> None:
    error = make(BootError)
    assert error.about("i7") is error
    assert (str(error), error.message, error.hint) == ("i7: it broke", "i7: it broke", "mend i7")


def test_only_the_word_itself_stands_for_the_name() -> None:
    error = TopcoatError("x", hint="set $NAME, see PACKAGE/NAME, FILENAME and NAMES; topcoat stop NAME, or NAME\\1")
    assert error.about(r"i\1").hint == r"set $NAME, see PACKAGE/NAME, FILENAME and NAMES; topcoat stop i\1, or i\1\1"


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("way", ["pickle", "copy"])
def test_a_copy_keeps_class_and_contents(cls: type[TopcoatError], way: str) -> None:
    error = make(cls).about("i7")
    twin = pickle.loads(pickle.dumps(error)) if way == "pickle" else copy.copy(error)
    assert type(twin) is cls
    assert str(twin) == "i7: it broke"
    assert vars(twin) == vars(error)
    assert twin.explain() == error.explain()
    if isinstance(twin, BootError):
        assert twin.stage == "marker"


def fail(cls: type[TopcoatError]) -> None:
    raise make(cls)


def test_an_error_crosses_a_process_border() -> None:
    with (
        multiprocessing.get_context("spawn").Pool(1) as pool,
        pytest.raises(errors.WrongServer, match="it broke") as caught,
    ):
        pool.apply(fail, (errors.WrongServer,))
    assert (caught.value.stage, caught.value.detail) == ("marker", "line 1\nline 2")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "your quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "give your user the right"),
        (errno.EPERM, "give your user the right"),
        (errno.ENOENT, "is the path right"),
        (errno.EEXIST, "a file stands where a directory is wanted"),
        (errno.ENOTDIR, "a file stands where a directory is wanted"),
        (errno.EIO, "see the reason above"),
    ],
)
def test_host_faults_has_a_hint_for(number: int, words: str) -> None:
    with pytest.raises(StoreError) as caught, host_faults("making disk"):
        raise OSError(number, "the reason", "/store/disk")
    assert str(caught.value) == "making disk: the reason: /store/disk"
    assert words in caught.value.hint
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(("place", "words"), [("store", "[store] root"), ("temporary", "TMPDIR"), ("file", "")])
def test_a_hint_names_the_setting_that_the_path_comes_from(place: Place, words: str) -> None:
    numbers = [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG]
    for number in numbers:
        with pytest.raises(StoreError) as caught, host_faults("reading it", place):
            raise OSError(number, "the reason")
        assert [word for word in ("[store] root", "TMPDIR") if word in caught.value.hint] == ([words] if words else [])


def test_host_faults_of_an_error_without_number_gives_its_text() -> None:
    with pytest.raises(StoreError, match=r"^making disk: odd$"), host_faults("making disk"):
        raise OSError("odd")


def test_host_faults_lets_other_errors_through() -> None:
    with pytest.raises(errors.ImageError), host_faults("making disk"):
        raise make(errors.ImageError)
