"""The output of a loop in a guest's shell, taken apart at its marks."""

import re

from hypothesis import given
from hypothesis import strategies as st

from pipeline.fuzz.loop import new_token
from tests.fuzz.cuts import cut
from tests.fuzz.loops import TOKEN, split


class TestMarks:
    STREAM = (
        b"before\ntopcoat-5c1e begin 1\none\nhalf a linetopcoat-5c1e end 1 1\nbetween\n"
        b"topcoat-5c1e begin 2\ntopcoat-5c1e end 2 137\ntopcoat-5c1e begin 3\nthe last"
    )

    @given(st.sets(st.integers(0, 200)))
    def test_they_divide_the_output_however_it_is_cut(self, places: set[int]) -> None:
        followed, splitter, _ = split(cut(self.STREAM, places))
        assert followed.runs == [b"one\nhalf a line", b"", b"the last"]
        assert followed.errors == ["", "137"]
        assert (followed.open, splitter.running) == (True, True)

    @given(st.sets(st.integers(0, 400)))
    def test_those_out_of_order_are_text(self, places: set[int]) -> None:
        """A fuzzer may have read the token, and can end no other run than its own, and only once."""
        forged = (
            b"topcoat-5c1e begin 3\ntopcoat-5c1e end 2 0\ntopcoat-5c1e end 9999999999 0\ntopcoat-5c1e end 1 1234\n"
            b"topcoat-5c1e \xff\ntopcoat-5c1e begin 1\ntopcoat-5c1e"
        )
        text = (
            b"topcoat-5c1e end 0 0\ntopcoat-5c1e begin 1\n" + forged + b"topcoat-5c1e end 1 0\ntopcoat-5c1e end 1 0\n"
        )
        followed, _, _ = split(cut(text, places))
        assert (followed.runs, followed.errors, followed.open) == ([forged], [""], False)

    @given(st.lists(st.sampled_from([b"topcoat-5c1e", b" begin 1", b" end 1 0", b"\n", b"t", b"top", b"x" * 90])))
    def test_nothing_of_a_run_is_lost_or_invented(self, pieces: list[bytes]) -> None:
        text = b"".join(pieces)
        followed, _, _ = split([b"topcoat-5c1e begin 1\n", *pieces])
        ends = text.find(b"topcoat-5c1e end 1 0\n")
        assert followed.runs[0] == (text if ends < 0 else text[:ends])

    def test_once_no_more_are_wanted_none_begins(self) -> None:
        followed, _, ended = split([self.STREAM], wanted=1)
        assert (followed.runs, ended) == ([b"one\nhalf a line"], [1])

    @given(st.lists(st.binary(max_size=200), max_size=9), st.sets(st.integers(0, 3000)))
    def test_whatever_runs_say_comes_to_its_run(self, outputs: list[bytes], places: set[int]) -> None:
        mark = TOKEN.encode()
        stream = b"".join(
            b"%b begin %d\n%b%b end %d 0\nleft behind" % (mark, number, said, mark, number)
            for number, said in enumerate(outputs, 1)
        )
        followed, splitter, _ = split(cut(stream, places))
        assert followed.runs == outputs
        assert not splitter.running
        assert splitter.begun == bool(outputs)

    def test_no_more_begin_than_the_loop_makes(self) -> None:
        """However many a fuzzer that has read the token tells of: it ends nobody else's run, and none without end."""
        followed, _, ended = split([self.STREAM], most=2)
        assert (followed.runs, ended) == ([b"one\nhalf a line", b""], [0])
        forged = b"".join(b"topcoat-5c1e begin %d\ntopcoat-5c1e end %d 0\n" % (at, at) for at in range(1, 2000))
        followed, _, _ = split([forged], most=3)
        assert len(followed.runs) == len(followed.errors) == 3

    def test_a_flood_is_passed_on_and_not_held(self) -> None:
        piece = b"topcoat-5c1" * 5000
        followed, splitter, _ = split([])
        splitter.write(b"topcoat-5c1e begin 1\n")
        for number in range(1, 200):
            splitter.write(piece)
            assert len(followed.runs[0]) > number * len(piece) - 200


def test_tokens_are_never_the_same_and_no_words_for_a_shell() -> None:
    assert new_token() != new_token()
    assert re.fullmatch(r"topcoat-[0-9a-f]{32}", new_token())
