"""Fixtures: small models and ways to calibrate, watch and prepare them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / 'helpers'))  # plain files that tests share
from model_nets import (  # noqa: E402, F401
    _settle,
    decoding_barrier,
    image,
    make_net,
    make_ready,
    one_thread,
    quantize_all,
    see,
)
