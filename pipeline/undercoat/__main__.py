"""The program that `python -m pipeline.undercoat` runs."""

import sys

from pipeline.undercoat.program import main

if __name__ == "__main__":
    sys.exit(main())
