"""`python -m rookery.server` is the `rookery` command."""

import sys

from .cli import main

sys.exit(main())
