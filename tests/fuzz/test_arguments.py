import pytest

from pipeline.errors import BadArguments
from pipeline.fuzz.arguments import Arguments, mutable


def test_f6_options_and_others_are_told_apart() -> None:
    parsed = Arguments.parse(["arg", "-k1=v1", "-k1=v2", "-k2=v-3", "-bad", "--alsobad", "-k3=has=two"])
    assert parsed.others == ("arg", "-bad", "--alsobad")
    assert parsed.options == {"k1": "v2", "k2": "v-3", "k3": "has=two"}


@pytest.mark.parametrize("word", ["-max-len=3", "--x=1", "-=1", "-a b=1", "-k=a\nb", "-k=a\n", "k=1", "", "-"])
def test_words_that_are_no_option(word: str) -> None:
    assert Arguments.parse([word]) == Arguments({}, (word,))


@pytest.mark.parametrize(("word", "value"), [("-k=", ""), ("-k= a", " a"), ("-k==", "="), ("-k=\udcff", "\udcff")])
def test_words_that_are_an_option(word: str, value: str) -> None:
    assert Arguments.parse([word]) == Arguments({"k": value})


def test_words_keep_their_order() -> None:
    words = ["x", "-b=1", "y", "-a=2", "-b=3"]
    assert Arguments.parse(words).words == ["-b=3", "-a=2", "x", "y"]


def test_in_the_guest_data_is_tmp() -> None:
    words = ["data/a", "-x=data/b", "data/", "xdata/a", "-y=a/data/", "-artifact_prefix=data/p", "data"]
    translated = Arguments.parse(words).in_guest()
    assert translated.words == [
        "-x=tmp/b", "-y=a/data/", "-artifact_prefix=tmp/p", "tmp/a", "tmp/", "xdata/a", "data",
    ]  # fmt: skip


def test_artifacts_are_written_to_tmp_unless_told() -> None:
    assert Arguments.parse([]).in_guest().words == ["-artifact_prefix=tmp/"]


@pytest.mark.parametrize("prefix", ["foo/bar", "", "/tmp/", "tmp", "/data/x", "pkg/"])
def test_f17_artifacts_elsewhere_are_an_error(prefix: str) -> None:
    with pytest.raises(BadArguments) as caught:
        Arguments.parse([f"-artifact_prefix={prefix}"]).in_guest()
    assert str(caught.value) == f'artifact_prefix not in mutable namespace: "{prefix}"'


@pytest.mark.parametrize(("prefix", "directory"), [("tmp/", "tmp"), ("tmp/wow/x", "tmp/wow"), ("tmp/a/", "tmp/a")])
def test_directory_of_artifacts(prefix: str, directory: str) -> None:
    assert Arguments({"artifact_prefix": prefix}).artifact_directory == directory


def test_only_the_first_data_is_meant() -> None:
    assert mutable("data/data/x") == "tmp/data/x"
