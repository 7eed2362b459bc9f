import numpy as np
import pytest

from hw.kv_cache.codebook import RotatedDequantizer, RotatedQuantizer
from hw.kv_cache.hadamard import exchanged_order
from hw.kv_cache.rotated import KvRotatedReader, KvRotatedWriter
from hw.simulation import simulate_stream
from hw.verilator import VerilatedStream
from quantizers.errors import UsageError
from quantizers.kv_cache.codebook import Codebook, ScaleFormat, magnitude_sums
from quantizers.kv_cache.fixed_point import fraction_bits, to_integers
from quantizers.kv_cache.rotation import largest_sum, random_signs, rotate, unrotate


class Coded:
    """What vectors of shape (tokens, heads, size) become, and the words of the streams."""

    def __init__(self, x, *, means, signs, lanes, bits):
        size = x.shape[-1]
        scale, book = ScaleFormat.covering(largest_sum(size)), Codebook(bits=bits, size=size)
        w = rotate(x, means=means, signs=signs)
        scales = scale.encode(magnitude_sums(w))
        codes = book.quantize(w, scale.decode(scales))
        self.arguments = {"means": means, "signs": signs, "lanes": lanes, "bits": bits}
        order = exchanged_order(size, lanes)
        self.inputs = x.reshape(-1, lanes).tolist()
        self.coded = [
            sum(code << lane * bits for lane, code in enumerate(word)) | word_scale << lanes * bits
            for word, word_scale in zip(
                codes[..., order].reshape(-1, lanes).tolist(),
                np.repeat(scales, size // lanes).tolist(),
                strict=True,
            )
        ]
        self.decoded = unrotate(book.dequantize(codes, scale.decode(scales)), means=means, signs=signs)

    @property
    def outputs(self):
        lanes = self.arguments["lanes"]
        return self.decoded.reshape(-1, lanes).tolist()


def random_problem(size, lanes, bits, heads, tokens, seed=1):
    rng = np.random.default_rng(seed)
    means = rng.integers(-32768, 32768, (heads, size))
    signs = 1 - 2 * rng.integers(0, 2, (heads, size))
    spreads = np.exp2(rng.uniform(-1, 15, (tokens, 1, 1)))
    x = np.clip(means + rng.normal(0, spreads, (tokens, heads, size)), -32768, 32767).astype(int)
    x[0], x[1] = means, np.where(means < 0, 32767, -32768)
    return Coded(x, means=means, signs=signs, lanes=lanes, bits=bits)


SHAPES = [
    (64, 8, 4, 3),
    (64, 8, 3, 1),
    (64, 8, 2, 2),
    (16, 2, 1, 2),
    (8, 1, 4, 3),
    (32, 2, 5, 1),
    (128, 16, 4, 2),
]


@pytest.mark.parametrize(("size", "lanes", "bits", "heads"), SHAPES)
def test_both_directions_and_their_cycles(size, lanes, bits, heads):
    problem = random_problem(size, lanes, bits, heads, tokens=5)
    count, words = len(problem.inputs), size // lanes
    writer = KvRotatedWriter(**problem.arguments)
    trace = simulate_stream(writer, problem.inputs, output_count=count)
    assert trace.outputs == problem.coded
    assert trace.cycles == writer.cycles(5 * heads) == 5 * heads * words + writer.latency
    reader = KvRotatedReader(**problem.arguments)
    trace = simulate_stream(reader, problem.coded, output_count=count)
    assert trace.outputs == problem.outputs
    assert trace.cycles == reader.cycles(5 * heads) == 5 * heads * words + reader.latency
    hadamard = words - 1 + size.bit_length() - 1
    quantizer = RotatedQuantizer(size=size, lanes=lanes, bits=bits)
    dequantizer = RotatedDequantizer(size=size, lanes=lanes, bits=bits)
    # Each of the parts alone has a register in front of it.
    assert writer.latency == 2 + hadamard + quantizer.latency
    assert reader.latency == dequantizer.latency + hadamard + 3


@pytest.mark.parametrize(("valid", "ready"), [(0.3, 1.0), (1.0, 0.3), (0.7, 0.6)])
def test_stalls(valid, ready):
    problem = random_problem(64, 8, 4, 3, tokens=300)
    chances = {"valid_probability": valid, "ready_probability": ready}
    count = len(problem.inputs)
    trace = VerilatedStream(KvRotatedWriter(**problem.arguments)).run(
        problem.inputs, output_count=count, seed=3, **chances
    )
    assert trace.outputs.tolist() == problem.coded
    trace = VerilatedStream(KvRotatedReader(**problem.arguments)).run(
        problem.coded, output_count=count, seed=4, **chances
    )
    assert trace.outputs.tolist() == problem.outputs


def test_a_token_of_means_comes_back_exactly():
    problem = random_problem(64, 8, 2, 2, tokens=3)
    assert np.array_equal(problem.decoded[0], problem.arguments["means"])


def test_signs_for_all_heads():
    means, signs = np.arange(32).reshape(2, 16), random_signs(16, 1)
    x = np.random.default_rng(1).integers(-32768, 32768, (3, 2, 16))
    problem = Coded(x, means=means, signs=signs, lanes=4, bits=2)
    trace = simulate_stream(KvRotatedWriter(**problem.arguments), problem.inputs, output_count=24)
    assert trace.outputs == problem.coded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"means": np.zeros(64, int)}, "means must be of shape (heads, size), not (64,)"),
        (
            {"means": np.zeros((2, 48), int)},
            "size must be a power of two from 8 to 128, not 48; the nearest is 32",
        ),
        ({"means": np.full((2, 64), 40000)}, "means must be from -32768 to 32767; one is 40000"),
        ({"signs": np.ones(8, int)}, "signs must be of shape (2, 64) or (64,), not (8,)"),
        ({"signs": np.zeros(64, int)}, "signs must be 1 or -1; one is 0"),
        (
            {"lanes": 12},
            "lanes must be a power of two of at most the 64 elements of a vector, not 12; the nearest is 8",
        ),
    ],
)
@pytest.mark.parametrize("component", [KvRotatedWriter, KvRotatedReader])
def test_wrong_arguments_are_refused(component, arguments, message):
    usual = {"means": np.zeros((2, 64), int), "signs": np.ones(64, int), "lanes": 8, "bits": 4}
    with pytest.raises(UsageError) as caught:
        component(**{**usual, **arguments})
    assert str(caught.value) == message


@pytest.mark.slow
@pytest.mark.parametrize(("layer", "kind", "bits"), [(0, 0, 4), (15, 0, 3), (15, 1, 2), (29, 1, 4)])
def test_keys_and_values_of_a_language_model(smollm2_cache, layer, kind, bits):
    """The integers of a real layer through the circuits: the same codes, and the same integers back."""
    tensor = smollm2_cache[layer, kind]
    x = to_integers(tensor, fraction_bits(float(np.abs(tensor).max()))).transpose(1, 0, 2)
    means = np.rint(x[1:].mean(axis=0)).astype(int)
    problem = Coded(x, means=means, signs=random_signs(64, 1), lanes=8, bits=bits)
    count = 512 * 3 * 8
    chances = {"valid_probability": 0.9, "ready_probability": 0.9}
    writer, reader = (
        VerilatedStream(kind(**problem.arguments)) for kind in (KvRotatedWriter, KvRotatedReader)
    )
    coded = writer.run(problem.inputs, output_count=count, **chances).outputs
    assert coded.tolist() == problem.coded
    decoded = reader.run(coded, output_count=count, **chances).outputs
    assert np.array_equal(decoded.reshape(x.shape), problem.decoded)
    centred = x[1:] - means
    loss = np.square(problem.decoded[1:] - x[1:]).sum() / np.square(centred).sum()
    assert loss < {2: 0.13, 3: 0.04, 4: 0.012}[bits]
