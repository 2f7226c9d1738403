"""A quantized module of any code is saved small, and loaded into the module as it is built."""

import copy

import pytest
import torch
from torch import Tensor, nn

from mmbitsplit.apis import bits_of, load_quantized, quantize_model, save_quantized, set_bits
from mmbitsplit.cli import inspect_checkpoint
from mmbitsplit.models import to_integer

SEVERAL = dict(weight=dict(num_bits=4), method=dict(type='NestedBitSplit', widths=[3, 4, 8]))


class Net(nn.Module):
    """A folded norm, a layer of a parametrization, attention, and weights of its own."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 16, 3, groups=16))
        self.attend = nn.MultiheadAttention(16, 4, batch_first=True)
        self.scale = nn.Parameter(torch.rand(16))
        self.head = nn.Linear(16, 5)
        self.stem[1].running_mean.normal_()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.stem(x)).flatten(2).transpose(1, 2)
        return self.head(self.attend(x, x, x, need_weights=False)[0] * self.scale)


@pytest.fixture(scope='module')
def images():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, 3, 9, 9, generator=generator) for _ in range(3)]


@pytest.fixture(scope='module')
def one(images):
    model = Net(0).eval()
    quantize_model(model, images, dict(weight=dict(num_bits=4)))
    return model


@pytest.fixture(scope='module')
def several(images):
    model = Net(0).eval()
    quantize_model(model, images, SEVERAL)
    return model


@pytest.mark.parametrize('ending', ['.pth', '.safetensors'])
def test_what_is_loaded_is_what_was_saved(one, images, ending, tmp_path, capsys):
    path = tmp_path / f'new/model{ending}'
    assert save_quantized(one, path) == path.stat().st_size
    model = Net(1).train()
    assert load_quantized(model, path) is model and not model.training
    assert torch.equal(model(images[0]), one(images[0]))
    again = tmp_path / f'again{ending}'
    save_quantized(copy.deepcopy(model), again)
    assert again.read_bytes() == path.read_bytes()
    assert inspect_checkpoint.main([str(path)]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ('stem.0', 'conv', 'attend', 'head'))


def test_codes_take_their_bits(images, tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(243, 512), nn.ReLU(), nn.Linear(512, 512),
                          nn.ReLU(), nn.Linear(512, 4)).eval()
    quantize_model(model, images, dict(weight=dict(num_bits=2), method=dict(type='MSE')))
    codes = (8 * 243 * 512 + 2 * 512 * 512 + 8 * 512 * 4) / 8
    assert codes < save_quantized(model, tmp_path / 'model.pth') < codes + 20_000


def test_every_width_is_loaded(several, images, tmp_path):
    path = tmp_path / 'model.pth'
    set_bits(several, 4)
    save_quantized(several, path)
    for bits in (3, 8, dict(weight=3, activation=8)):
        model = load_quantized(Net(1), path, bits=bits)
        set_bits(several, **bits) if isinstance(bits, dict) else set_bits(several, bits)
        assert bits_of(model) == bits_of(several)
        assert torch.equal(model(images[0]), several(images[0]))


def test_integers_are_asked_for_at_loading_and_are_not_in_the_file(one, images, tmp_path):
    save_quantized(one, tmp_path / 'model.pth')
    model = load_quantized(Net(1), tmp_path / 'model.pth', integer='auto')
    torch.testing.assert_close(model(images[0]), one(images[0]), rtol=1e-4, atol=1e-4)
    save_quantized(model, tmp_path / 'again.pth')
    assert (tmp_path / 'again.pth').read_bytes() == (tmp_path / 'model.pth').read_bytes()
    to_integer(model, False)
    assert torch.equal(model(images[0]), one(images[0]))


def test_what_was_not_quantized_as_a_whole_is_refused(one, tmp_path):
    path = tmp_path / 'model.pth'
    with pytest.raises(ValueError, match='not quantized; call quantize_model first'):
        save_quantized(Net(0), path)
    with pytest.raises(ValueError, match="its part '1' was; save that"):
        save_quantized(nn.Sequential(nn.ReLU(), one), path)
    changed = copy.deepcopy(one)
    changed.head = nn.Linear(16, 5)
    with pytest.raises(ValueError, match="'head' is no quantized layer any more"):
        save_quantized(changed, path)
    assert not path.exists()


def test_another_model_is_left_as_it_was(one, images, tmp_path):
    save_quantized(one, tmp_path / 'model.pth')
    wider = Net(1)
    wider.scale = nn.Parameter(torch.rand(1))
    for model, said in (
            (nn.Linear(2, 2), 'of another architecture'),
            (wider, 'another shape.*scale'), (copy.deepcopy(one), 'quantized already')):
        before, kinds = copy.deepcopy(model.state_dict()), list(map(type, model.modules()))
        with pytest.raises(ValueError, match=said):
            load_quantized(model, tmp_path / 'model.pth')
        assert list(map(type, model.modules())) == kinds
        assert before.keys() == model.state_dict().keys()
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
