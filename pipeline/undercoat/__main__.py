"""`python -m pipeline.undercoat`."""

import sys

from pipeline.undercoat.command import main

if __name__ == "__main__":
    sys.exit(main())
