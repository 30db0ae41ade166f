"""``python -m fastdigit`` is the ``fastdigit`` command."""

import sys

from .cli import main

sys.exit(main())
