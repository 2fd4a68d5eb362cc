"""`python -m kaifs`."""

import sys

from kaifs.cli.main import main

sys.exit(main())
