"""`python -m dgpo` is `dgpo`."""

import sys

from dgpo.commands.main import main

sys.exit(main())
