"""The stem of the demo's vision transformer: patches of the size asked for, blind to colour."""

import pytest
import torch

pytest.importorskip('mmengine')

from demo.conv_stem import ConvStem  # noqa: E402


@pytest.mark.parametrize('patch', [2, 4, 8])
def test_it_gives_one_token_a_patch(patch):
    stem = ConvStem(3, 32, kernel_size=(patch, patch), stride=(patch, patch), padding=0)
    assert stem(torch.rand(2, 3, 16, 32)).shape == (2, 32, 16 // patch, 32 // patch)


def test_the_colour_of_a_picture_does_not_reach_the_first_layer():
    first = ConvStem(3, 32, kernel_size=(8, 8), stride=(8, 8))[0][0]
    picture = torch.rand(1, 3, 32, 32)
    color = torch.tensor([1.0, -2.0, 0.5])[None, :, None, None]
    inside = (slice(None), slice(None), slice(1, None), slice(1, None))  # borders see zeros
    torch.testing.assert_close(first(picture + color)[inside], first(picture)[inside],
                               atol=1e-5, rtol=0)


@pytest.mark.parametrize(('patch', 'stride'), [((6, 6), (6, 6)), ((8, 4), (8, 4)),
                                               ((8, 8), (4, 4)), ((1, 1), (1, 1))])
def test_other_patches_are_refused(patch, stride):
    with pytest.raises(ValueError, match='set patch_size to 4, 8 or 16'):
        ConvStem(3, 32, kernel_size=patch, stride=stride)
