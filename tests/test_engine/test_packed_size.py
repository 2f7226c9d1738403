"""The real RetinaNet R50-FPN, untrained, packed: as small as its bits."""

import io
import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from mmbitsplit.engine import QuantizedModel
from mmbitsplit.engine.run.quantize import read_spec
from mmbitsplit.export import PAYLOAD_KEY, PLAN_KEY, pack_checkpoint, unpack_state
from mmbitsplit.models import PreparedModel, apply, describe, prepare, watch
from mmbitsplit.planning import make_plan
from mmbitsplit.structures import LayerSolution, QParams

CONFIG = Path(__file__).resolve().parents[2] / 'configs/retinanet_r50_w4a8.py'


def round_to_nearest(prepared: PreparedModel) -> None:
    """Installs plainly rounded weights and a scale with a zero point for every input channel."""
    for number, plan in enumerate(prepared.plan.layers):
        layer, bits = prepared.layers[plan.name], plan.weight.num_bits
        weight, channels = layer.weight.detach(), layer.geometry.in_channels
        scale = weight.abs().flatten(1).amax(1) / (2 ** (bits - 1) - 1)
        codes = (weight / scale.view(-1, 1, 1, 1)).round().to(torch.int8)
        inputs = None if plan.activation.num_bits is None else QParams(
            torch.rand(channels) + 0.1, torch.full((channels,), number), 0, 255)
        # No two alike, as after training: what is alike is stored once.
        apply(layer, LayerSolution(codes=codes, num_bits=bits, weight_scale=scale,
                                   bias=torch.rand(len(scale)), qparams=inputs))


@pytest.fixture(scope='module')
def retinanet():
    """The float parameters' number, the prepared model, and its packed file."""
    from mmdet.utils import register_all_modules
    from mmengine.registry import DefaultScope
    register_all_modules(init_default_scope=False)
    torch.manual_seed(0)
    cfg = Config.fromfile(CONFIG)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model).eval()
    parameters = sum(value.numel() for value in model.parameters())
    flow = watch(model, lambda: model(torch.rand(1, 3, 64, 64), mode='tensor'))
    prepared = prepare(model, flow, make_plan(model, flow, read_spec(cfg)))
    round_to_nearest(prepared)
    state = QuantizedModel(model).state_dict()
    del state[PLAN_KEY]
    packed = pack_checkpoint(state, describe(prepared), {})
    file = io.BytesIO()
    torch.save(packed, file)
    return parameters, prepared, packed['state_dict'], file.tell()


def test_payload_and_file_of_w4_retinanet(retinanet):
    """The bounds that were asked for: 0.135 of the float32 parameters, and 2 % around it."""
    parameters, prepared, packed, file_bytes = retinanet
    assert parameters == 37_968_692 and len(prepared.layers) == 71
    payload = packed[PAYLOAD_KEY].numel()
    assert payload <= 0.135 * 4 * parameters
    assert file_bytes <= 1.02 * payload


def test_the_payload_is_what_the_bits_come_to(retinanet):
    """Counted from the plan alone: a layer costs its bits and its vectors, nothing else."""
    _, prepared, packed, _ = retinanet
    expected, vectors = 0, 0
    for plan in prepared.plan.layers:
        geometry = prepared.layers[plan.name].geometry
        row = math.ceil(geometry.inputs_per_output * plan.weight.num_bits / 8)
        expected += geometry.out_channels * row
        vectors += 8 * geometry.out_channels  # scale and bias
        if plan.activation.num_bits is not None:
            vectors += 8 * geometry.in_channels  # scale and zero point
    payload = packed[PAYLOAD_KEY].numel()
    assert payload == expected + vectors and vectors < 0.025 * payload


def test_it_is_read_exactly(retinanet):
    _, prepared, packed, _ = retinanet
    found, state = unpack_state(packed).state, QuantizedModel(prepared.model).state_dict()
    assert set(found) == set(state) - {PLAN_KEY}
    assert all(torch.equal(value, state[name]) for name, value in found.items())
