"""``python -m diffslic``, which is what ``torchrun ... -m diffslic train ...`` starts."""

import sys

from diffslic.cli import main

sys.exit(main())
