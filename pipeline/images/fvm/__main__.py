"""The command `python -m pipeline.images.fvm`."""

import sys

from pipeline.images.fvm.program import main

if __name__ == "__main__":
    sys.exit(main())
