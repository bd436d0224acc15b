"""`python -m minift` is the same as `minift`."""

import sys

from minift.cli import main

sys.exit(main())
