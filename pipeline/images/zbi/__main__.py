"""The command `python -m pipeline.images.zbi`."""

import sys

from pipeline.images.zbi.program import main

if __name__ == "__main__":
    sys.exit(main())
