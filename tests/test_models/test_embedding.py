"""An embedding in codes is the module that it was, and computes with the rows of its codes."""

import copy
import io

import pytest
import torch
from torch import nn

from mmbitsplit.functional import round_weight, weight_scale
from mmbitsplit.models.surgery.embedding import (
    QuantizedEmbedding,
    embedding_geometry,
    expect_embedding,
    quantize_embedding,
)
from mmbitsplit.models.surgery.undo import ModelState
from mmbitsplit.structures import LayerSolution


class Shifted(nn.Embedding):
    """Positions with an offset, as BART has them."""

    def forward(self, index):
        return super().forward(index + 2)


def solution(weight, num_bits=4):
    scale = weight_scale(weight, num_bits)
    return LayerSolution(codes=round_weight(weight, scale, num_bits).to(torch.int8),
                         num_bits=num_bits, weight_scale=scale, bias=None, qparams=None)


def made(cls=nn.Embedding, **options):
    torch.manual_seed(0)
    table = cls(11, 6, **options)
    return table, solution(table.weight.detach())


@pytest.mark.parametrize('cls', [nn.Embedding, Shifted])
def test_rows_are_those_of_the_codes(cls):
    table, found = made(cls, padding_idx=3)
    quantize_embedding(table, found)
    index = torch.tensor([[0, 3], [8, 5]])
    rows = index if cls is nn.Embedding else index + 2
    expected = (found.codes * found.weight_scale.unsqueeze(1))[rows]
    assert torch.equal(table(index), expected) and torch.equal(table(input=index)
                                                               if cls is nn.Embedding
                                                               else table(index), expected)
    assert isinstance(table, cls) and torch.equal(table.weight[rows], expected)
    assert not table.codes[3].any()  # the padding row is zero and stays so


def test_it_is_the_same_module_and_becomes_float_again():
    table, found = made()
    weight, before, calls = table.weight, dict(vars(table)), []
    state = ModelState(table)
    table.register_forward_hook(lambda module, args, output: calls.append(module))
    quantize_embedding(table, found)
    with table.in_float():
        assert torch.equal(table(torch.arange(11)), weight)
    assert calls == [table] and not [*table.parameters()]
    state.put_back()
    assert type(table) is nn.Embedding and table.weight is weight
    assert vars(table).keys() == before.keys() and not table._modules


@pytest.mark.parametrize('again', [copy.deepcopy, lambda table: _saved(table)])
def test_it_is_copied_and_saved_whole(again):
    table, found = made()
    quantize_embedding(table, found)
    other = again(table)
    assert isinstance(other, QuantizedEmbedding) and torch.equal(other.codes, found.codes)
    assert torch.equal(other(torch.arange(11)), table(torch.arange(11)))


def _saved(table):
    file = io.BytesIO()
    torch.save(table, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_a_state_dict_holds_packed_rows_and_loads_into_a_fresh_table():
    net = nn.Sequential(made()[0])
    quantize_embedding(net[0], solution(net[0].weight.detach()))
    state = net.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        '0.codes': (11, 3), '0.weight_scale': (11,)}
    fresh = nn.Sequential(nn.Embedding(11, 6))
    expect_embedding(fresh[0], net[0].plan_row())
    fresh.load_state_dict(state)
    assert torch.equal(fresh[0](torch.arange(11)), net[0](torch.arange(11)))
    with pytest.raises(RuntimeError, match='0.weight_scale'):
        fresh.load_state_dict({'0.codes': state['0.codes']})
    with pytest.raises(ValueError, match=r'shape \[11, 6\] where the model has \[7, 6\]'):
        expect_embedding(nn.Embedding(7, 6), net[0].plan_row())


def test_its_geometry_is_that_of_rows():
    geometry = embedding_geometry(nn.Embedding(11, 6))
    assert geometry.weight_shape == (11, 6) and geometry.inputs_per_output == 6
