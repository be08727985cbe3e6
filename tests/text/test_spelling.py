"""What may be meant by a word."""

from pipeline.text.spelling import nearest


def test_the_likeliest_comes_first_and_what_is_unlike_does_not_come() -> None:
    known = {"max_len", "max_lens", "timeout"}
    assert nearest("mx_len", known) == ["max_len"]
    assert nearest("max_lens", known, 3) == ["max_lens", "max_len"]
    assert nearest("zzz", known) == []
