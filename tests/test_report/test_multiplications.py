"""What is said of multiplications."""

from mmbitsplit.report.multiplications import multiplications_text
from mmbitsplit.report.products import products_table


def test_shares_and_what_stays_float_are_named():
    shares = dict(total=10, quantized=0.9, layers=0.7, products=0.2, one_float=0.05)
    kept = [dict(name=name, multiplications=share) for name, share in (
        ('none', None), ('small', 0.01), ('large', 0.05), ('b', 0.02), ('c', 0.02))]
    text = multiplications_text(shares, kept)
    assert text.startswith('90.00 % of the multiplications quantized (layers 70.00 %, products of '
                           'activations 20.00 %), in 5.00 % one factor is float; float: '
                           'large 5.00 %, b 2.00 %, c 2.00 % and 1 more')
    assert multiplications_text({}, kept) == ''
    assert multiplications_text({**shares, 'uncounted': 2}, kept).startswith(
        text + '; float and not counted: 2 calls')
    plain = dict(total=10, quantized=1.0, layers=1.0, products=0, one_float=0)
    assert multiplications_text(plain) == '100.00 % of the multiplications quantized'


def test_a_row_says_what_both_inputs_are():
    row = dict(name='mixed', shapes=[[2, 3, 4], [2, 4, 5]], bits=[8, None],
               symmetry=['unsigned', None], softmax=[True, False], granularity=['head', 'tensor'],
               error=0.1, error_minmax=0.2, multiplications=0.5, notes=[])
    cells = products_table([row]).rows[0]
    assert cells[:3] == ['mixed', '2×3×4 × 2×4×5',
                         '8 bits unsigned, of a softmax, a scale a head; float']
