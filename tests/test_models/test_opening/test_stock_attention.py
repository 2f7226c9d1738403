"""The attention of mmpretrain's and mmdet's models, opened."""

import pytest
import torch
from torch import nn

pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain')

from attention_nets import left_to_open
from mmdet.models.backbones.swin import SwinTransformer as DetectionSwin
from mmdet.models.layers import (
    DeformableDetrTransformerDecoderLayer,
    DetrTransformerDecoderLayer,
    Mask2FormerTransformerDecoderLayer,
)
from mmdet.models.layers.transformer.utils import ConditionalAttention, DynamicConv
from mmpretrain.models.backbones import MViT, SwinTransformer, SwinTransformerV2, VisionTransformer
from mmpretrain.models.utils.attention import (
    BEiTAttention,
    ChannelMultiheadAttention,
    CrossMultiheadAttention,
    LeAttention,
    MultiheadAttention,
    PromptMultiheadAttention,
    WindowMSA,
    WindowMSAV2,
)

from mmbitsplit.models.layers.product import Product
from mmbitsplit.models.opening import find_calls, open_calls

DIM = 16
X = (2, 16, DIM)
ATTENTION = {'qk', 'av'}


def check(model, *inputs, **options):
    """Opens a model; returns by owner the names of its products, those of the attention short."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.eval()
    with torch.no_grad():
        expected = model(*inputs, **options)
        opened = open_calls(model, lambda: model(*inputs, **options), inputs=(inputs, options))
        assert opened.closed == ()
        torch.testing.assert_close(model(*inputs, **options), expected, rtol=2e-4, atol=2e-5)
        assert left_to_open(find_calls(model, lambda: model(*inputs, **options),
                                       inputs=(inputs, options))) == []
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Product):
            owner, _, product = name.rpartition('.')
            found.setdefault(owner, set()).add(product.removeprefix('product_'))
    return found


@pytest.mark.parametrize('make', [
    lambda: MultiheadAttention(DIM, 4), lambda: MultiheadAttention(DIM, 4, qk_scale=0.3),
    lambda: WindowMSA(DIM, (4, 4), 4), lambda: WindowMSAV2(DIM, (4, 4), 4, cpb_mlp_hidden_dims=8),
    lambda: BEiTAttention(DIM, 4, (4, 4), False), lambda: LeAttention(DIM, 4, 4, 4, (4, 4)),
    lambda: ChannelMultiheadAttention(DIM, 4)], ids=[
        'plain', 'scaled', 'window', 'window_v2', 'beit', 'levit', 'channels'])
def test_self_attention_of_mmpretrain(make):
    module = make()
    assert check(module, torch.randn(X)) == {'': ATTENTION}


def test_beit_calls_its_own_layer_and_cross_attention_three():
    beit = BEiTAttention(DIM, 4, (4, 4), True)
    check(beit, torch.randn(2, 17, DIM))
    assert hasattr(beit.qkv, 'opened_call')  # F.linear with its weight, and a bias put together
    cross = CrossMultiheadAttention(DIM, 4, qkv_bias=True)
    assert check(cross, torch.randn(2, 3, DIM), torch.randn(X), torch.randn(X)) == {'': ATTENTION}
    assert all(hasattr(layer, 'opened_call') for layer in (cross.q, cross.k, cross.v))


def test_attention_of_prompts():
    check(PromptMultiheadAttention(DIM, 4), torch.randn(2, 4, DIM), torch.randn(2, 5, DIM),
          torch.arange(8).expand(2, -1))


def test_windows_that_are_masked():
    check(WindowMSA(DIM, (4, 4), 4), torch.randn(4, 16, DIM), torch.randn(2, 16, 16))


@pytest.mark.parametrize(('make', 'count'), [
    (lambda: VisionTransformer({'embed_dims': 16, 'num_layers': 2, 'num_heads': 4,
                                'feedforward_channels': 32}, img_size=32, patch_size=8), 2),
    (lambda: SwinTransformer({'embed_dims': 8, 'depths': [2, 1], 'num_heads': [2, 2]},
                             img_size=32, window_size=4, out_indices=(1,)), 3),
    (lambda: SwinTransformerV2({'embed_dims': 8, 'depths': [2, 1], 'num_heads': [2, 2],
                                'extra_norm_every_n_blocks': 0}, img_size=32, window_size=4,
                               out_indices=(1,)), 3),
    (lambda: MViT({'embed_dims': 8, 'num_layers': 2, 'num_heads': 1, 'downscale_indices': [1]},
                  img_size=32, out_scales=[1], rel_pos_spatial=True), 2),
    (lambda: DetectionSwin(embed_dims=8, depths=(2, 2), num_heads=(2, 2), window_size=4,
                           strides=(4, 2), out_indices=(0, 1)), 4)],
    ids=['vit', 'swin', 'swin_v2', 'mvit', 'swin_of_mmdet'])
def test_backbones(make, count):
    found = check(make(), torch.randn(1, 3, 32, 32))
    assert len(found) == count and all(products >= ATTENTION for products in found.values())


def _configs(**more):
    attention = {'embed_dims': DIM, 'num_heads': 4, 'batch_first': True}
    return {'self_attn_cfg': dict(attention), 'cross_attn_cfg': {**attention, **more},
            'ffn_cfg': {'embed_dims': DIM, 'feedforward_channels': 32, 'num_fcs': 2,
                        'ffn_drop': 0.0, 'act_cfg': {'type': 'ReLU', 'inplace': True}}}


def test_decoders_of_mmdet():
    queries, memory = torch.randn(2, 6, DIM), torch.randn(2, 16, DIM)
    places = {'query_pos': torch.randn_like(queries), 'key_pos': torch.randn_like(memory)}
    padding = torch.zeros(2, 16, dtype=torch.bool)
    padding[1, 10:] = True
    hidden = torch.rand(8, 6, 16) < 0.3
    for layer, masks in (
            (DetrTransformerDecoderLayer(**_configs()), {'key_padding_mask': padding}),
            (Mask2FormerTransformerDecoderLayer(**_configs()), {'cross_attn_mask': hidden})):
        found = check(layer, queries, memory, memory, **places, **masks)
        assert found == {'self_attn.attn': ATTENTION, 'cross_attn.attn': ATTENTION}
    # Sampling at learned places multiplies element by element; the layers of DINO are these too.
    deformable = DeformableDetrTransformerDecoderLayer(**{
        **_configs(), 'cross_attn_cfg': {'embed_dims': DIM, 'num_heads': 4, 'num_levels': 1,
                                         'batch_first': True}})
    found = check(deformable, queries, value=memory, query_pos=places['query_pos'],
                  self_attn_mask=torch.rand(6, 6).fill_diagonal_(0) > 0.7,
                  reference_points=torch.rand(2, 6, 1, 2), spatial_shapes=torch.tensor([[4, 4]]),
                  level_start_index=torch.tensor([0]), valid_ratios=torch.ones(2, 1, 2))
    assert found == {'self_attn.attn': ATTENTION}


def test_other_products_of_mmdet():
    assert check(ConditionalAttention(DIM, 4, cross_attn=False), torch.randn(2, 6, DIM),
                 torch.randn(2, 6, DIM), query_pos=torch.randn(2, 6, DIM)) == {'': ATTENTION}
    assert check(DynamicConv(DIM, 4, DIM, 3), torch.randn(5, DIM), torch.randn(5, DIM, 3, 3)) \
        == {'': {'0', '1'}}
