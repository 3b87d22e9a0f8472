"""python -m fused_attention.cli is the command fused-attention."""

import sys

from fused_attention.cli import main

sys.exit(main())
