"""``python -m lipdeploy``: the command line, where the script is not on the path."""

import sys

from lipdeploy.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
