"""Targets: fuzzers as their users build them, in the layout of OSS-Fuzz's $OUT, and what the Linux guest gets of them.

`sources` reads what a directory says of targets to be compiled, and `compiling` compiles one; `directory` finds
what is in a directory, `contents` puts both together, `image` makes of that the read-only disk that all guests share,
and `listing` tells what is on it.
"""
