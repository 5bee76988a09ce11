"""`python -m karat.trainer`: the same as the command `trainer`."""

import sys

from karat.trainer.command import main

sys.exit(main())
