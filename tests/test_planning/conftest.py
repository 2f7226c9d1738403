"""Fixtures: small models and ways to calibrate, watch and prepare them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / 'helpers'))  # plain files that tests share
from calibration_nets import (  # noqa: E402, F401
    assert_like_naive,
    assert_same_state,
    images,
    layer_calls,
    make_spec,
    residual_net,
    run_model,
    seeded,
)
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
