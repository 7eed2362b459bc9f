import numpy as np
import pytest

from hw.reference.mx_dot import block_dot, unit_exponent
from quantizers.errors import UsageError
from quantizers.formats import parse_format


@pytest.mark.parametrize("pair", ["mxfp4 mxfp4", "mxfp4 mxint8", "mxfp6_e2m3 mxfp6_e3m2", "mxint8 mxint8"])
def test_the_value_is_that_of_the_decoded_blocks(pair):
    weights, activations = map(parse_format, pair.split())
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(2, 20, 32)) * np.exp2(rng.integers(-9, 9, (2, 20, 1)))
    (w_scales, w), (a_scales, a) = weights.encode(x), activations.encode(y)
    dots = block_dot(w_scales[:, 0], w, a_scales[:, 0], a, weights=weights, activations=activations)
    values = np.ldexp(dots.sums.astype(float), dots.exponents + unit_exponent(weights, activations))
    expected = np.sum(weights.decode(w_scales, w) * activations.decode(a_scales, a), axis=-1)
    assert values.tolist() == expected.tolist()
    assert not dots.is_nan.any()


def test_a_scale_of_nan_is_flagged():
    e2m1 = parse_format("e2m1")
    dots = block_dot(
        [255, 3, 255, 254], [[1]] * 4, [7, 255, 255, 254], [[2]] * 4, weights=e2m1, activations=e2m1
    )
    assert dots.is_nan.tolist() == [True, True, True, False]
    assert dots.exponents.tolist() == [262, 258, 510, 508]
    assert dots.sums.tolist() == [2, 2, 2, 2]


def test_units():
    """Half steps of e2m1 twice; 2**-6 of mxint8, which plain int8 has not."""
    mxfp4, mxint8, int8 = map(parse_format, ("mxfp4", "mxint8", "int8"))
    assert unit_exponent(mxfp4, mxfp4) == -256
    assert unit_exponent(mxfp4, mxint8) == -261
    assert unit_exponent(int8, int8) == -254


@pytest.mark.parametrize("scales", [[256], [-1], [1.0]])
def test_wrong_scales(scales):
    int8 = parse_format("int8")
    with pytest.raises(UsageError) as caught:
        block_dot(scales, [[1]], [1], [[1]], weights=int8, activations=int8)
    assert str(caught.value) == "scales must be E8M0 codes, integers from 0 to 255"
