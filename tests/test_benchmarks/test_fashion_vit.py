"""The ViT of benchmarks/fashion_vit.py: trained, kept, quantized with its products."""

import sys

import numpy as np
import pytest
import torch

pytest.importorskip('mmpretrain')

from benchmarks import fashion_vit  # noqa: E402


@pytest.mark.skipif(not hasattr(torch.optim, 'Muon'), reason='torch is too old to train it')
def test_what_is_trained_once_is_quantized_whole(tmp_path, monkeypatch, capsys):
    random = np.random.default_rng(0)
    for part in ('train', 'test'):
        labels = random.integers(0, 10, 256)
        images = np.repeat(np.repeat(labels, 28)[:, None], 28, 1).reshape(256, 28, 28) * 25
        np.savez(tmp_path / f'{part}.npz', x=images.astype(np.uint8), y=labels.astype(np.uint8))
    monkeypatch.setattr(sys, 'argv', [
        'fashion_vit.py', '--data', str(tmp_path), '--weights', str(tmp_path / 'kept'), '--epochs',
        '1', '--num-images', '32', '--bits', '8/8', '--methods', 'RoundToNearest', '--seeds', '0'])
    fashion_vit.main()
    first = capsys.readouterr().out
    fashion_vit.main()
    again = capsys.readouterr().out
    assert 'epoch 1' in first and 'epoch' not in again  # the weights are kept
    line = next(line for line in again.splitlines() if line.startswith('W8A8'))
    assert '100.0 % of multiplications and 8 products quantized' in line
    assert float(line.split('as float ')[1].split(',')[0]) > 90
