"""``python -m ltune``."""

import sys

from ltune.cli import main

if __name__ == "__main__":
    sys.exit(main())
