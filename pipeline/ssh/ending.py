"""How a command in a guest is ended, with all that it has started.

Few SSH servers pass a signal on (dropbear does not for a command that runs a shell, Fuchsia's does not at all), and
closing the session ends only what writes. So a command is marked by a variable in its environment, which whatever it
starts inherits; through a second session all processes with that mark are killed, again and again until there is none.
That needs Linux's /proc in the guest. A process that has cleared its environment is not found.
"""

import secrets
import shlex

MARK = "TOPCOAT_COMMAND"
"""The name of the environment variable that carries the mark."""

ROUNDS = 8
"""How many times marked processes are looked for; from the third on after a second's pause: one may die slowly."""

STARTING = 0.5
"""Seconds after which is looked again if the first look finds none: a command that has just been started may not carry
its mark yet, and would run on.
"""

GONE = b"none is left\n"
"""What the command line of `killing` prints once no marked process runs any more."""

# The shell's read leaves out the NULs between the variables
_SCRIPT = f"""
round=0
while [ $round -lt {ROUNDS} ]; do
    round=$((round + 1))
    [ $round -gt 2 ] && sleep 1
    found=
    for process in /proc/[0-9]*; do
        while read -r line || [ -n "$line" ]; do
            case $line in *"$1"*) found="$found ${{process#/proc/}}"; break ;; esac
        done 2>/dev/null <"$process/environ"
    done
    if [ "$found" ]; then kill -9 $found 2>/dev/null
    elif [ "$looked" ]; then echo {GONE.decode().strip()}; exit
    else sleep {STARTING}
    fi
    looked=y
done
"""


def new_mark() -> str:
    """Return a random mark, which no other command has."""
    return secrets.token_hex(16)


def marked(line: str, mark: str, *, combined: bool = False) -> str:
    """Return a command line that runs `line` so that all its processes carry the mark.

    With `combined`, their stderr goes to stdout.
    """
    return f"{MARK}={mark} exec sh -c {shlex.quote(line)}" + (" 2>&1" if combined else "")


def killing(mark: str) -> str:
    """Return a command line that kills all processes with the mark, and prints GONE once none is left."""
    return shlex.join(["sh", "-c", _SCRIPT, "sh", f"{MARK}={mark}"])
