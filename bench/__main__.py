"""``python -m fastdigit.bench`` is ``fastdigit bench``."""

import sys

from fastdigit.cli import main

sys.exit(main(["bench", *sys.argv[1:]]))
