"""The programs `topcoat` and `luigi`: their arguments and output. The work is done in other packages.

`main` is `topcoat`, `luigi_command` is `luigi`, and `console` joins a terminal with a guest. Each other module has the
commands about one thing; a command takes the settings and its options, and returns its exit code. These modules may
import all other packages but `undercoat`; no other package imports them.
"""
