"""The `undercoat` command: the name under which ClusterFuzz calls Fuchsia's launcher.

So far it only answers which version of the interface it has, and refuses everything else by naming what to use.
"""

import sys
from collections.abc import Sequence

VERSION = "v0.1.0"
"""Of undercoat's interface; ClusterFuzz refuses a major version above 0."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Errors go to stdout too, where ClusterFuzz reads them."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["version"]:
        print(VERSION)
        return 0
    text = "Error parsing args: only `undercoat version` is served yet; boot with luigi --module tasks BootInstance"
    print(text)
    print(text, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
