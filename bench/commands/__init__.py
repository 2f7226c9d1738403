"""Commands of the bench, a module each, made like those of ``mmbitsplit.cli``."""

import mmbitsplit.cli  # noqa: F401  before torch: its threads wait without spinning
