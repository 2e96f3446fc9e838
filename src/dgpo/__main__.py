"""`python -m dgpo` is `dgpo`."""

import sys

from dgpo.cli import main

sys.exit(main())
