"""Layers and norms whose class does more than torch's: what they do becomes part of the layer."""

import copy
import io
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from mmbitsplit.models import describe, layer_geometry, quantized_layers, rebuild
from mmbitsplit.models.layers.steps import Step, Steps


class SameConv(nn.Conv2d):
    """Pads as TensorFlow does, or with the larger half at the start."""

    lower = False

    def forward(self, x):
        pads = []
        for size, kernel, stride, dilation in zip(
                x.shape[:-3:-1], self.kernel_size[::-1], self.stride[::-1], self.dilation[::-1],
                strict=True):
            total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            pads += [total - total // 2, total // 2] if self.lower \
                else [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads) if any(pads) else x)


class LowerConv(SameConv):
    lower = True


class StaticConv(nn.Conv2d):
    """Pads by numbers of its own, with a module."""

    def __init__(self, *args, pads, **options):
        super().__init__(*args, **options)
        self.pad = nn.ZeroPad2d(pads)

    def forward(self, x):
        return super().forward(self.pad(x))


class MirroredConv(nn.Conv2d):

    def forward(self, x):
        return super().forward(F.pad(x, (2, 1, 1, 0), mode='reflect'))


class StandardizedConv(nn.Conv2d):
    """Weight standardization with a learned gain, as normalizer-free nets have it."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x):
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, self.gain.flatten(), None, True, 0.0, 1e-6)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding,
                        self.dilation, self.groups)


class EqualizedLinear(nn.Linear):

    def forward(self, x):
        return F.linear(x, self.weight * 0.4, self.bias * 0.2)


class EqualizedTransposed(nn.ConvTranspose2d):

    def forward(self, x):
        return F.conv_transpose2d(x, self.weight * 0.4, None, self.stride, groups=self.groups) \
            + self.bias.view(1, -1, 1, 1)


class CosineConv(nn.Conv2d):
    """Normalizes its weight and its input."""

    def forward(self, x):
        return self._conv_forward(F.normalize(x, dim=1) * 3, F.normalize(self.weight, dim=1), None)


class CosineLinear(nn.Linear):

    def forward(self, x):
        x = x / (x.norm(dim=-1, keepdim=True).pow(0.5) + 1e-6)
        return F.linear(x, F.normalize(self.weight, dim=1)) * 4 + self.bias


class ConvNormAct(nn.Conv2d):
    """All of a block in one class."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.norm, self.act = nn.BatchNorm2d(self.out_channels), nn.PReLU(self.out_channels)

    def forward(self, x):
        return self.act(self.norm(super().forward(x) / 2))


class TransposedNorm(nn.ConvTranspose2d):

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.norm = nn.BatchNorm2d(self.out_channels)

    def forward(self, x):
        return self.norm(super().forward(x))


class NormAct(nn.BatchNorm2d):
    """A norm with the activation inside."""

    def __init__(self, channels, act):
        super().__init__(channels)
        self.act = act

    def forward(self, x):
        return self.act(F.batch_norm(x, self.running_mean, self.running_var, self.weight,
                                     self.bias, False, 0.1, self.eps))


LAYERS = {
    'same': lambda: SameConv(6, 8, 3, 2), 'same_stride_1': lambda: SameConv(6, 8, 5),
    'same_depthwise': lambda: SameConv(6, 6, 5, 2, groups=6, bias=False),
    'same_even_dilated': lambda: SameConv(6, 8, (2, 3), (1, 2), dilation=(2, 1)),
    'same_wide_stride': lambda: SameConv(6, 8, 4, 4), 'lower': lambda: LowerConv(6, 8, 3, 2),
    'static': lambda: StaticConv(6, 8, 3, 2, pads=(0, 1, 2, 1), padding=1),
    'mirrored': lambda: MirroredConv(6, 8, 3),
    'standardized': lambda: StandardizedConv(6, 8, 3, padding=1, groups=2),
    'transposed': lambda: EqualizedTransposed(6, 8, 2, 2, groups=2),
    'transposed_norm': lambda: TransposedNorm(6, 8, 3, 2, groups=2),
    'cosine': lambda: CosineConv(6, 8, 3, padding=1), 'block': lambda: ConvNormAct(6, 8, 3),
    'weight_norm': lambda: weight_norm(nn.Conv2d(6, 8, 3)),
    'spectral_norm': lambda: spectral_norm(nn.Conv2d(6, 8, 3)),
    'equalized': lambda: EqualizedLinear(6, 8), 'cosine_linear': lambda: CosineLinear(6, 8),
}
SIZES = [(9, 11), (10, 12), (9, 12), (7, 8), (13, 10)]


def net_of(make_net, name):
    """The layer between two others; along the last dimension where it is linear."""
    layer = LAYERS[name]()
    if isinstance(layer, nn.Linear):
        def run(net, x):
            return net.last(net.layer(net.first(x).movedim(1, -1)).relu())
    else:
        def run(net, x):
            return net.last(net.norm(net.layer(net.first(x))).relu().movedim(1, -1))
    torch.manual_seed(0)
    channels = getattr(layer, 'out_channels', 8)
    return make_net(run, first=nn.Conv2d(3, 6, 1), layer=LAYERS[name](),
                    norm=nn.BatchNorm2d(channels), last=nn.Linear(channels, 2))


def images(size, count=2):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('size', SIZES[:2], ids=str)
@pytest.mark.parametrize('name', LAYERS)
def test_the_prepared_model_computes_as_before_on_inputs_of_any_size(make_net, make_ready, name,
                                                                      size):
    net = net_of(make_net, name)
    before = copy.deepcopy(net)
    ready = make_ready(net, images(size))
    assert list(ready.layers) == ['first', 'layer', 'last']
    assert set(ready.folded) == (set() if name in ('block', 'equalized', 'cosine_linear')
                                 else {'norm'})
    assert {part.name for part in ready.plan.kept_float} <= ({'norm'} if name == 'block' else set())
    with torch.no_grad():
        for other in SIZES:
            torch.testing.assert_close(net(images(other)), before(images(other)), rtol=1e-5,
                                       atol=1e-5)


@pytest.mark.parametrize('name', LAYERS)
def test_a_checkpoint_brings_everything_back(make_net, make_ready, quantize_all, name):
    net = net_of(make_net, name)
    fresh = net_of(make_net, name)
    for value in fresh.parameters():
        value.data.normal_()
    ready = make_ready(net, images(SIZES[0]))
    quantize_all(ready)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    rebuild(fresh, json.loads(json.dumps(describe(ready))))
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for size in SIZES[:2]:
        assert torch.equal(fresh(images(size)), net(images(size)))
    assert {name for name, _ in quantized_layers(fresh)} == set(ready.layers)


@pytest.mark.parametrize('act', [nn.ReLU(inplace=True), nn.ReLU6(), nn.SiLU(), nn.Hardswish(),
                                 nn.LeakyReLU(0.1, True), nn.PReLU(4), nn.GELU(), nn.Identity()],
                         ids=lambda act: type(act).__name__)
def test_a_norm_is_folded_and_its_activation_stays(make_net, make_ready, quantize_all, image, act):
    def make():
        return make_net(lambda net, x: net.b(net.n(net.a(x))), a=nn.Conv2d(3, 4, 3),
                        n=NormAct(4, copy.deepcopy(act)), b=nn.Conv2d(4, 2, 1))
    net = make()
    before = net(image)
    ready = make_ready(net, image)
    assert ready.folded == {'n': 'a'}
    assert ready.plan.kept_float == ()
    torch.testing.assert_close(net(image), before, rtol=1e-5, atol=1e-5)
    quantize_all(ready)
    fresh = make()
    rebuild(fresh, json.loads(json.dumps(describe(ready))))
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh(image), net(image))


def test_an_activation_inside_counts_when_outputs_are_planned(make_net, see, image):
    net = make_net(lambda net, x: net.c(net.m(net.b(net.n(net.a(x))))), a=nn.Conv2d(3, 4, 3),
                   n=NormAct(4, nn.ReLU()), b=nn.Conv2d(4, 4, 1), m=NormAct(4, nn.SiLU()),
                   c=CosineConv(4, 4, 1))
    readings = see(net, image).readings
    assert {(reading.reader, reading.rectified) for reading in readings['n']} == {('b', True)}
    assert {(reading.reader, reading.rectified) for reading in readings['m']} \
        == {('<operation>', False)}


@pytest.mark.parametrize('hook', [lambda module, args, output: output * 2,
                                  lambda module, args, output: (output.mul_(2), None)[1]],
                         ids=['returns', 'in_place'])
def test_a_hook_is_no_part_of_the_class(make_net, make_ready, image, hook):
    net = make_net(lambda net, x: net.b(net.a(x)), a=SameConv(3, 4, 3, 2), b=nn.Conv2d(4, 2, 1))
    net.a.register_forward_hook(hook)
    before = net(image)
    ready = make_ready(net, image)
    assert [part.reason for part in ready.plan.kept_float] \
        == ['its class has a hook that changes what it computes']
    assert torch.equal(net(image), before)


@pytest.mark.parametrize('name', LAYERS)
@pytest.mark.parametrize('context', [torch.inference_mode, lambda: torch.autocast(
    'cpu', torch.bfloat16)], ids=['inference_mode', 'autocast'])
def test_contexts_of_the_run_hide_nothing(make_net, see, name, context):
    net, x = net_of(make_net, name), images((10, 12))
    plain = see(net, x).inside
    forward = net.forward

    def run(x):
        with context():
            return forward(x)
    net.forward = run
    flow = see(net, x)
    assert flow.unlike_torch == {}
    assert flow.inside.keys() == plain.keys() <= {'layer'}
    for layer, expected in plain.items():
        found = flow.inside[layer]
        assert found.geometry == expected.geometry
        torch.testing.assert_close(found.weight, expected.weight)
        assert len(found.before.steps) == len(expected.before.steps)
        assert len(found.after.steps) == len(expected.after.steps)


def test_a_hook_that_looks_stays_on_the_layer(make_net, make_ready, image):
    net = make_net(lambda net, x: net.b(net.a(x)), a=CosineConv(3, 4, 3), b=nn.Conv2d(4, 2, 1))
    seen = []
    net.a.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    net(image)
    make_ready(net, image)
    seen.clear()
    net(image)
    assert len(seen) == 1
    assert seen[0][0] is image
    assert net.a.stride == (1, 1)


def test_an_image_without_a_batch_is_padded_too(make_net, make_ready, image):
    net = make_net(lambda net, x: net.b(net.a(x)), a=SameConv(3, 4, 3, 2), b=nn.Conv2d(4, 2, 1))
    before = net(image[0])
    ready = make_ready(net, image[0])
    assert ready.layers['a'].geometry.auto_padding == 'same_upper'
    torch.testing.assert_close(net(image[0]), before)


def test_all_calls_decide_on_the_padding(make_net, make_ready):
    """On odd inputs alone, padding as TensorFlow does looks like torch's padding of one."""
    net = make_net(lambda net, x: net.b(net.a(x)).mean() + net.b(net.a(x[..., 1:])).mean(),
                   a=nn.Conv2d(3, 4, 1), b=SameConv(4, 4, 3, 2))
    ready = make_ready(net, images((9, 11)))
    assert ready.layers['b'].geometry.auto_padding == 'same_upper'
    assert ready.layers['b'].geometry.padding == (0, 0)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_a_class_that_does_as_torch_does_is_an_ordinary_layer(make_net, make_ready, see, image,
                                                              quantize_all):
    class Wrapper(nn.Conv2d):
        """As mmcv's, which looks at empty inputs first."""

        def forward(self, x):
            return super().forward(x) if x.numel() else x

    net = make_net(lambda net, x: net.b(net.a(x)), a=Wrapper(3, 4, 3, 2, 1), b=Wrapper(
        4, 4, 2, padding='same'))
    assert see(net, image).inside == {}
    weight = net.a.weight.detach().clone()
    ready = make_ready(net, image)
    assert ready.layers['a'] is net.a and isinstance(net.a, Wrapper)
    assert torch.equal(net.a.weight, net.a.product_weight) and torch.equal(net.a.weight, weight)
    quantize_all(ready)
    assert 'class_geometry' not in ready.layers['a'].plan_row()


def test_another_stride_is_refused_where_a_class_pads_too(make_net, make_ready, quantize_all):
    ready = make_ready(net := net_of(make_net, 'same'), images(SIZES[0]))
    quantize_all(ready)
    assert ready.layers['layer'].declared == layer_geometry(SameConv(6, 8, 3, 2))
    other = net_of(make_net, 'same')
    other.layer = SameConv(6, 8, 3, 1)
    with pytest.raises(ValueError, match="'layer'.*stride.*where the model has"):
        rebuild(other, describe(ready))
    assert net.layer.geometry.auto_padding == 'same_upper'


def test_a_file_cannot_name_any_operation():
    with pytest.raises(ValueError, match="step 'set_.source_Storage' is not known"):
        Steps((Step('set_.source_Storage', ({'value': 0},), {}),))
