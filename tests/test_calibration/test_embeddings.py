"""Embeddings are layers of their own: rounded row by row, tied heads with them."""

import copy

import pytest
import torch
from torch import nn

from mmbitsplit.apis import quantize_model
from mmbitsplit.calibration import Journal, calibrate, read_request
from mmbitsplit.models import describe, rebuild
from mmbitsplit.models.surgery.embedding import QuantizedEmbedding
from mmbitsplit.structures import QuantSpec

WORDS, WIDTH, LENGTH = 37, 16, 8


class Attention(nn.Module):
    """A block: what words say to each other, and a layer of two."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.one, self.two = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x):
        scores = self.q(x) @ self.k(x).mT / WIDTH ** 0.5
        x = self.norm(x + scores.softmax(-1) @ self.v(x))
        return x + self.two(nn.functional.gelu(self.one(x)))


class Language(nn.Module):
    """Predicts words; its head has the weight of its first table where it is tied."""

    def __init__(self, tied=False):
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.places = nn.Embedding(LENGTH, WIDTH)
        self.register_buffer('positions', torch.arange(LENGTH))
        self.block, self.head = Attention(), nn.Linear(WIDTH, WORDS)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, ids):
        return self.head(self.block(self.words(ids) + self.places(self.positions)))


def language(**options):
    torch.manual_seed(0)
    return Language(**options).eval()


def sentences(count=6):
    torch.manual_seed(1)
    return [torch.randint(1, WORDS, (4, LENGTH)) for _ in range(count)]


def request(method='RoundToNearest', bits=8, **more):
    return {'weight': {'num_bits': bits}, 'activation': {'num_bits': 8},
            'method': {'type': method}, **more}


def rows(report):
    return {layer.name: layer for layer in report.layers}


def test_tables_have_eight_bits_and_what_reads_them_is_inner():
    model = language()
    floats = model(sentences()[0])
    report = quantize_model(model, sentences(), request(bits=4))
    found = rows(report)
    assert [(name, found[name].kind, found[name].role, found[name].weight_bits,
             found[name].activation_bits) for name in ('words', 'places')] == [
                 (name, 'embedding', 'first', 8, None) for name in ('words', 'places')]
    assert report.layers[0].name == 'words' and found['block.q'].role == 'inner'
    assert found['block.q'].activation_bits == 8 and not report.kept_float
    error = (model(sentences()[0]) - floats).norm() / floats.norm()
    assert 0 < error < 0.2 and isinstance(model.words, QuantizedEmbedding)


@pytest.mark.parametrize('options', [
    {'first_last': {'weight_bits': None}},
    {'overrides': [{'match': 'words', 'weight': {'num_bits': 3}}]}])
def test_rows_are_the_nearest_codes_on_the_best_scale(options):
    model, floats = language(), language().words.weight.detach()
    report = quantize_model(model, sentences(), request('MSE', bits=4, **options))
    bits = rows(report)['words'].weight_bits
    assert bits == (3 if 'overrides' in options else 4)
    table = model.words
    errors = (table.weight - floats).square().sum(1)
    assert torch.equal(table.codes, (floats / table.weight_scale.unsqueeze(1)).round().clamp(
        -(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1).to(torch.int8))
    for factor in (0.9, 0.97, 1.03, 1.1):
        scale = (table.weight_scale * factor).unsqueeze(1)
        other = (floats / scale).round().clamp(-(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1) * scale
        assert (other - floats).square().sum() > errors.sum()
    assert rows(report)['words'].error == pytest.approx(
        float(errors.sum() / floats.square().sum()), rel=1e-4)


def test_layers_are_fitted_to_what_quantized_tables_give():
    """With tables of 2 bits their roundings are larger than any other."""
    low = {'overrides': [{'match': name, 'weight': {'num_bits': 2}} for name in
                         ('words', 'places')], 'activation': {'num_bits': None}}
    errors = {}
    for method in ('RoundToNearest', 'BitSplit'):
        model, floats = language(), language()
        quantize_model(model, sentences(20), {**request(method), **low, 'method': {
            'type': method, **({'effort': 'fast'} if method == 'BitSplit' else {})}})
        errors[method] = sum(float((model(ids) - floats(ids)).square().sum())
                             for ids in sentences(20))
    assert errors['BitSplit'] < 0.8 * errors['RoundToNearest']


def brief(method):
    """Steps that only show that it runs."""
    return {'type': method, **({'iterations': 4, 'input_iterations': 4} if method == 'BRECQ'
                               else {'effort': 'fast'})}


def test_units_are_learned_with_targets_of_float_tables():
    """In the float branch tables answer in float: else rounded rows would be the target."""
    low = {'overrides': [{'match': 'words', 'weight': {'num_bits': 2}}],
           'first_last': {'activation_bits': None}, 'activation': {'num_bits': None}}
    report = quantize_model(language(), sentences(), {
        **request(), **low, 'method': brief('BRECQ')})
    assert rows(report)['block.q'].error > 0.05


def test_a_tied_head_multiplies_by_the_codes_of_its_table():
    model = language(tied=True)
    floats = model(sentences()[0]).detach()
    report = quantize_model(model, sentences(), request('BitSplit', bits=4))
    head, table = model.head, model.words
    assert torch.equal(head.codes, table.codes) and head.num_bits == table.num_bits == 8
    assert torch.allclose(head.weight_scale, table.weight_scale * head.qparams.scale)
    assert any("embedding 'words'" in note for note in rows(report)['head'].notes)
    assert rows(report)['head'].activation_mode == 'per_tensor'
    assert (model(sentences()[0]) - floats).norm() / floats.norm() < 0.2


@pytest.mark.parametrize('how', [
    request() | {'method': brief('BRECQ')},
    request('BitSplit') | {'tuning': [{'type': 'OutputTuning', 'steps': 2, 'inner': 0.5}]}])
def test_nothing_learns_a_tied_head_away_from_its_table(how):
    model = language(tied=True)
    report = quantize_model(model, sentences(), how)
    assert torch.equal(model.head.codes, model.words.codes)
    assert torch.allclose(model.head.weight_scale,
                          model.words.weight_scale * model.head.qparams.scale)
    unit = next(unit for unit in report.units if 'head' in unit.layers)
    assert unit.layers == ('head',)


def test_a_pair_that_cannot_stay_tied_is_told():
    wide = [{'match': 'head', 'weight': {'num_bits': 4}}]
    with pytest.raises(ValueError, match="'words' and 'head' share their weight, and the request "
                                         'gives the one 8 bits and the other 4'):
        quantize_model(language(tied=True), sentences(), request(overrides=wide))
    report = quantize_model(language(tied=True), sentences(), request(
        overrides=[{'match': 'head', 'skip': True}]))
    kept = {part.name: part.reason for part in report.kept_float}
    assert "also that of 'head'" in kept['words'] and 'words' not in rows(report)
    with pytest.raises(ValueError, match="LAPQ moves the scales of layer 'head'"):
        quantize_model(language(tied=True), sentences(), request('LAPQ'))


class Odd(Language):
    """Tables that cannot be codes, or need not."""

    def __init__(self):
        super().__init__()
        self.clipped = nn.Embedding(WORDS, WIDTH, max_norm=1.0)
        self.bag = nn.EmbeddingBag(WORDS, WIDTH)
        self.read = nn.Embedding(WORDS, WIDTH)
        self.never = nn.Embedding(3, WIDTH)

    def forward(self, ids):
        x = self.words(ids) + self.clipped(ids) + self.bag(ids).unsqueeze(1) + self.read(ids)
        x = x + self.read.weight.mean(0) + self.never.weight[:1]
        return self.head(self.block(x))


def test_tables_that_stay_float_say_why():
    torch.manual_seed(0)
    report = quantize_model(Odd().eval(), sentences(), request())
    kept = {part.name: part.reason for part in report.kept_float}
    assert kept.keys() == {'clipped', 'bag', 'read', 'never', 'places'}
    assert 'max_norm=1' in kept['clipped'] and 'EmbeddingBag' in kept['bag']
    assert 'outside of its own calls' in kept['read'] and 'never called' in kept['never']
    assert sum(part.share for part in report.kept_float) > 0.3


def test_a_request_names_tables_as_it_names_layers():
    report = quantize_model(language(), sentences(), request(
        overrides=[{'match': 'places', 'skip': True}]))
    assert [(part.name, part.requested) for part in report.kept_float] == [('places', True)]
    model = language()
    again = quantize_model(model, sentences(), request(), plan=report.plan)
    assert [part.name for part in again.kept_float] == ['places'] and model.words.num_bits == 8
    given = copy.deepcopy(report.plan)
    given['layers'][0]['weight_bits'] = 5
    model = language()
    assert given['layers'][0]['name'] == 'words'
    quantize_model(model, sentences(), request(), plan=given)
    assert model.words.num_bits == 5


def run(model, batch):
    return model(batch)


def test_a_packed_model_is_rebuilt_with_its_tables():
    model = language(tied=True)
    spec = QuantSpec.from_dict(request())
    prepared, _ = calibrate(model, sentences(), spec, run=run)
    fresh = language(tied=True)
    rebuild(fresh, describe(prepared))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(sentences()[0]), model(sentences()[0]))
    assert 'words.weight' not in model.state_dict() and 'words.codes' in fresh.state_dict()
    with pytest.raises(ValueError, match="Layer 'words': the checkpoint has an embedding where"):
        other = language()
        other.words = nn.Linear(2, 2)
        rebuild(other, describe(prepared))


@pytest.mark.parametrize('method', ['BitSplit', 'BRECQ'])
def test_an_interrupted_calibration_takes_tables_over(tmp_path, method):
    spec = read_request({**request(), 'method': brief(method)})
    whole = language()
    calibrate(whole, sentences(), spec, run=run)
    journal = Journal.open(tmp_path, {'of': 'test'}, resume=True)
    told = []

    def stop(step):
        if step.layer is not None:
            told.append(step.layer.name)
            if len(told) == 4:
                raise KeyboardInterrupt
    broken = language()
    with pytest.raises(KeyboardInterrupt):
        calibrate(broken, sentences(), spec, run=run, journal=journal, progress=stop)
    assert told[:2] == ['words', 'places'] and type(broken.words) is nn.Embedding
    assert isinstance(broken.words.weight, nn.Parameter)
    journal, told = Journal.open(tmp_path, {'of': 'test'}, resume=True), []
    assert [entry.name for entry in journal.entries][:2] == ['words', 'places']
    model = language()
    calibrate(model, sentences(), spec, run=run, journal=journal)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
