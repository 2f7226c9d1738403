"""Pure tensor functions: quantizers, statistics, solvers. No module, no state, no model."""

from mmbitsplit.functional.packing import (
    as_bytes,
    pack_codes,
    packed_bytes,
    payload_bytes,
    place_once,
    unpack_codes,
)
from mmbitsplit.functional.patches import (
    apply_layer,
    channel_dim,
    explicit_padding,
    gather_outputs,
    gather_patches,
    output_size,
    per_input,
    per_output,
    rows_to_weight,
    weight_rows,
)
from mmbitsplit.functional.quantizers.aciq import (
    allocate_bits,
    clipping_constant,
    correct_weights,
    spread,
)
from mmbitsplit.functional.quantizers.activation import (
    channel_qparams,
    interpolate_qparams,
    quantization_error,
    search_qparams,
)
from mmbitsplit.functional.quantizers.affine import (
    code_range,
    dequantize,
    fake_quantize,
    product_input,
    quantize,
)
from mmbitsplit.functional.quantizers.bit_planes import (
    leading_planes,
    split_bit_planes,
    stitch_bit_planes,
)
from mmbitsplit.functional.quantizers.code_steps import code_positions, in_steps
from mmbitsplit.functional.quantizers.distributions import channel_ranges, code_histogram
from mmbitsplit.functional.quantizers.entropy import entropy_threshold
from mmbitsplit.functional.quantizers.input_ranges import ActivationSamples
from mmbitsplit.functional.quantizers.integer_bias import whole_steps
from mmbitsplit.functional.quantizers.nesting import (
    input_factor,
    is_midrise,
    midrise_codes,
    midrise_offset,
    narrower_codes,
    narrower_qparams,
    odd_codes,
)
from mmbitsplit.functional.quantizers.rounding import round_weight, weight_scale
from mmbitsplit.functional.quantizers.straight_through import (
    fake_quantize_ste,
    product_input_ste,
)
from mmbitsplit.functional.solvers.bitsplit import solve_bitsplit
from mmbitsplit.functional.solvers.bitsplit_rows import solve_bitsplit_rows
from mmbitsplit.functional.solvers.error_feedback import feedback_factor
from mmbitsplit.functional.solvers.joint_search import (
    JointMinimum,
    powell_minimum,
    quadratic_minimum,
)
from mmbitsplit.functional.solvers.nested_codes import (
    check_widths,
    round_nested,
    solve_nested,
)
from mmbitsplit.functional.statistics import (
    add_ridge,
    bias_correction,
    center,
    default_ridge,
    layer_statistics,
    quadratic_objective,
)

__all__ = [
    'ActivationSamples', 'JointMinimum', 'add_ridge', 'allocate_bits', 'apply_layer',
    'as_bytes', 'bias_correction', 'center', 'channel_dim', 'channel_qparams', 'channel_ranges',
    'check_widths', 'clipping_constant', 'code_histogram', 'code_positions', 'code_range',
    'correct_weights', 'default_ridge', 'dequantize', 'entropy_threshold', 'explicit_padding',
    'fake_quantize', 'fake_quantize_ste', 'feedback_factor', 'gather_outputs', 'gather_patches',
    'in_steps', 'input_factor', 'interpolate_qparams', 'layer_statistics', 'leading_planes',
    'is_midrise', 'midrise_codes', 'midrise_offset', 'narrower_codes', 'narrower_qparams',
    'odd_codes',
    'output_size', 'pack_codes', 'packed_bytes', 'payload_bytes', 'per_input', 'per_output',
    'place_once', 'powell_minimum', 'product_input', 'product_input_ste', 'quadratic_minimum',
    'quadratic_objective', 'quantization_error', 'quantize', 'round_nested', 'round_weight',
    'rows_to_weight', 'search_qparams', 'solve_bitsplit', 'solve_bitsplit_rows', 'solve_nested',
    'split_bit_planes', 'spread', 'stitch_bit_planes', 'unpack_codes', 'weight_rows',
    'weight_scale', 'whole_steps',
]
