"""Models of Hugging Face are quantized as they are: a tokenizer's batches, their own outputs."""

import pytest
import torch

from mmbitsplit.apis import export_onnx, quantize_model

transformers = pytest.importorskip('transformers')

SIZES = {'vocab_size': 60, 'max_position_embeddings': 24}
BERT = {**SIZES, 'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 4,
        'intermediate_size': 48}
DISTIL = {**SIZES, 'dim': 32, 'n_layers': 2, 'n_heads': 4, 'hidden_dim': 48}


def build(name, attention='sdpa', **more):
    torch.manual_seed(0)
    kind = 'DistilBert' if name.startswith('Distil') else 'Bert'
    config = getattr(transformers, f'{kind}Config')(
        **(DISTIL if kind == 'DistilBert' else BERT), attn_implementation=attention, **more)
    return getattr(transformers, name)(config).eval()


def batches(count=4, filled=True):
    """As a tokenizer gives them: sentences of several lengths, filled up and masked."""
    torch.manual_seed(1)
    found = []
    for _ in range(count):
        ids, mask = torch.randint(1, 60, (4, 12)), torch.ones(4, 12, dtype=torch.long)
        if filled:
            mask[0, 7:], mask[2, 9:] = 0, 0
        found.append(transformers.BatchEncoding({'input_ids': ids * mask, 'attention_mask': mask}))
    return found


REQUEST = {'weight': {'num_bits': 8}, 'activation': {'num_bits': 8},
           'method': {'type': 'RoundToNearest'}}


def hidden(output):
    return output.logits if 'logits' in output else output.last_hidden_state


@pytest.mark.parametrize(('name', 'attention'), [
    ('BertModel', 'eager'), ('BertModel', 'sdpa'), ('BertForSequenceClassification', 'sdpa'),
    ('DistilBertModel', 'eager'), ('DistilBertModel', 'sdpa')])
def test_a_bert_is_quantized_whole(name, attention):
    model = build(name, attention)
    expected = hidden(model(**batches()[0])).detach()
    report = quantize_model(model, batches(), REQUEST)
    output = model(**batches()[0])
    assert isinstance(output, transformers.utils.ModelOutput)
    assert float((hidden(output) - expected).norm().detach() / expected.norm()) < 0.1
    layers = {layer.name: layer for layer in report.layers}
    tables = [layer for layer in report.layers if layer.kind == 'embedding']
    assert len(tables) == (2 if name.startswith('Distil') else 3)
    assert all(layer.activation_bits == 8 for layer in report.layers
               if layer.kind == 'linear')  # none of them counts as the first
    assert not report.kept_float and len(report.products) == 4
    assert report.multiplications['quantized'] == pytest.approx(1)
    assert {layer.role for layer in layers.values() if layer.kind == 'linear'} <= {'inner', 'last'}


def test_padded_tokens_of_a_tokenizer_are_no_rows():
    report = quantize_model(build('BertModel'), batches(), REQUEST)
    rows = {layer.name: layer.rows for layer in report.layers}
    assert rows['encoder.layer.0.intermediate.dense'] == 4 * 40
    assert rows['pooler.dense'] == 4 * 4


def test_the_head_of_a_masked_language_model_stays_tied():
    model = build('BertForMaskedLM')
    report = quantize_model(model, batches(), REQUEST)
    head, table = model.cls.predictions.decoder, model.bert.embeddings.word_embeddings
    assert torch.equal(head.codes, table.codes)
    assert not [part for part in report.kept_float if part.num_weights]


@pytest.mark.slow
def test_embeddings_are_codes_in_an_onnx_file(tmp_path):
    """Rows are gathered as codes and scaled: no table of floats is in the file."""
    pytest.importorskip('onnxscript')
    ort, onnx = pytest.importorskip('onnxruntime'), pytest.importorskip('onnx')

    class Sentence(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = build('BertModel', 'eager')

        def forward(self, input_ids):
            return self.bert(input_ids=input_ids).last_hidden_state

    model, data = Sentence().eval(), [dict(input_ids=one['input_ids'])
                                      for one in batches(filled=False)]
    quantize_model(model, data, REQUEST)
    ids = data[0]['input_ids']
    file, = export_onnx(model, tmp_path, inputs=(ids,))
    stored = {tuple(value.dims): value.data_type for value in onnx.load(file.path).graph.initializer
              if value.dims and value.dims[0] == SIZES['vocab_size']}
    assert stored[60, 32] == onnx.TensorProto.INT8
    found, = ort.InferenceSession(file.path).run(None, {'input_0': ids.numpy()})
    expected = model(input_ids=ids).detach()
    assert float((torch.from_numpy(found) - expected).abs().max()) < 0.05 * float(expected.std())
