"""`python -m dgpo` is `dgpo`."""

import sys

from dgpo.commands.cli import main

sys.exit(main())
