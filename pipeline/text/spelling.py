"""What may be meant by a word that is misspelled."""

from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], most: int = 1) -> list[str]:
    """The words of `known` that `word` may be a misspelling of: at most `most`, the likeliest first."""
    from difflib import get_close_matches

    return get_close_matches(word, sorted(known), most)
