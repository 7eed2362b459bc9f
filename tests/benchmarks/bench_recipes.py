"""Ten formats on EfficientNet-Lite0: Brevitas' own quantize, calibrate and evaluate path against ours.

Run from the root of the checkout, with a folder of images and ``labels.csv``:
``BITFRONT_IMAGES=FOLDER python tests/benchmarks/bench_recipes.py [FORMATS [CALIBRATION [EVALUATION]]]``.
Both start from the same folded network and the same images, on one thread, and quantize alike: weights
per channel by their largest value, activations per tensor by percentile, signed, biases in float, the
first and the last layer at int8. Ours counts what a sweep does once (preparing the network, statistics).
Brevitas' GPTQ takes a pass a layer, minutes a format: by default only the first formats run through it.
"""

from __future__ import annotations

import copy
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brevitas.nn as qnn
import numpy as np
import torch
from brevitas.graph.calibrate import bias_correction_mode, calibration_mode
from brevitas.graph.gptq import gptq_mode
from brevitas.graph.quantize import layerwise_quantize
from brevitas.inject.enum import ScalingImplType
from brevitas.quant.float import Fp8e4m3ActPerTensorFloat, Fp8e4m3WeightPerChannelFloat
from brevitas.quant.scaled_int import Int8ActPerTensorFloat, Int8WeightPerChannelFloat
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from dse.accuracy import answers
from dse.workloads import load_workload
from quantizers.formats import IntegerFormat, MinifloatFormat, ScalarFormat, parse_scalar_format
from quantizers.prepare import PreparedModel, prepare
from quantizers.quantize import QuantizationSettings
from quantizers.recipes import Recipe, quantize_by

_FORMATS = ("int4", "e2m1", "int8", "e4m3", "int3", "int6", "e1m2", "e2m3", "e3m2", "e5m2")
_PERCENTILE = 99.999
_BATCH = 4
_RECIPES = {
    "round": "round",
    "bias_correction": "bias_correction",
    "gptq": "gptq(order='given', target='layer')",
}
_GPTQ_FORMATS = 2


def brevitas_layer_map(fmt: ScalarFormat) -> dict[type[nn.Module], Any]:
    frozen = {"scaling_impl_type": ScalingImplType.PARAMETER_FROM_STATS}
    if isinstance(fmt, IntegerFormat):
        weights = Int8WeightPerChannelFloat.let(bit_width=fmt.bits, **frozen)
        inputs = Int8ActPerTensorFloat.let(bit_width=fmt.bits, high_percentile_q=_PERCENTILE)
    else:
        assert isinstance(fmt, MinifloatFormat)
        split = {
            "bit_width": fmt.bits,
            "exponent_bit_width": fmt.exponent_bits,
            "mantissa_bit_width": fmt.mantissa_bits,
        }
        weights = Fp8e4m3WeightPerChannelFloat.let(**split, **frozen)
        inputs = Fp8e4m3ActPerTensorFloat.let(**split, high_percentile_q=_PERCENTILE)
    settings = {
        "weight_quant": weights,
        "input_quant": inputs,
        "bias_quant": None,
        "return_quant_tensor": False,
    }
    return {nn.Conv2d: (qnn.QuantConv2d, settings), nn.Linear: (qnn.QuantLinear, settings)}


def through_brevitas(prepared: PreparedModel, fmt: ScalarFormat, recipe: str) -> nn.Module:
    edges = [layer.name for layer in prepared.layers if layer.edge]
    model = layerwise_quantize(copy.deepcopy(prepared.model), brevitas_layer_map(fmt), name_blacklist=edges)
    inner = [layer.name for layer in prepared.layers if not layer.edge]
    model = layerwise_quantize(model, brevitas_layer_map(IntegerFormat(8)), name_blacklist=inner).eval()

    def show(network: nn.Module) -> None:
        for batch in prepared.batches:
            network(batch)

    with torch.no_grad():
        show(model)  # scales of weights turn into parameters
        with calibration_mode(model):
            show(model)
        if recipe == "gptq":
            with gptq_mode(model, use_quant_activations=True) as gptq:
                for _ in range(gptq.num_layers):
                    show(gptq.model)
                    gptq.update()
        if recipe == "bias_correction":
            with bias_correction_mode(model):
                show(model)
    return model


def through_bitfront(prepared: PreparedModel, fmt: ScalarFormat, recipe: str) -> nn.Module:
    settings = QuantizationSettings(
        weights=fmt,
        activations=fmt,
        weight_scale="max",
        activation_scale="percentile",
        percentile=_PERCENTILE,
        unsigned_activations=False,
        bias="float",
    )
    return quantize_by(prepared, settings, Recipe.parse(_RECIPES[recipe]))


def timed(make: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    return make(*arguments), time.perf_counter() - start


def main(formats: int, calibration: int, evaluation: int) -> None:
    folder = os.environ.get("BITFRONT_IMAGES")
    if folder is None:
        print("skipped: BITFRONT_IMAGES names no folder of images with labels.csv")
        return
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    workload = load_workload(
        "efficientnet-lite0", data=Path(folder), calibration_images=calibration, evaluation_images=evaluation
    )
    batches: list[Tensor] = [images for images, _ in workload.calibration.batches(_BATCH)]
    chosen = [parse_scalar_format(name) for name in _FORMATS[:formats]]
    print(f"{calibration} calibration and {evaluation} evaluation images, batches of {_BATCH}, one thread")
    float_answers = answers(workload.model, workload.evaluation)
    print(f"float: {100 * float_answers.mean():.1f} %")
    # Compiled once per machine, not once per sweep.
    through_bitfront(prepare(workload.model, batches[:1]), chosen[0], "gptq")
    for recipe in _RECIPES:
        some = chosen[:_GPTQ_FORMATS] if recipe == "gptq" and "--all" not in sys.argv else chosen
        prepared, once = timed(prepare, workload.model, batches)
        ours, theirs, differences = once, 0.0, []
        for fmt in some:
            accuracies = []
            for through in (through_bitfront, through_brevitas):
                model, quantizing = timed(through, prepared, fmt, recipe)
                right, evaluating = timed(answers, model, workload.evaluation)
                accuracies.append(100 * right.mean())
                if through is through_bitfront:
                    ours += quantizing + evaluating
                else:
                    theirs += quantizing + evaluating
            differences.append(accuracies[0] - accuracies[1])
            print(
                f"  {recipe} {fmt.name}: ours {accuracies[0]:.1f} %, Brevitas {accuracies[1]:.1f} %",
                flush=True,
            )
        print(
            f"{recipe}, {len(some)} formats: Brevitas {theirs:.0f} s, ours {ours:.0f} s "
            f"(of which {once:.0f} s once): {theirs / ours:.1f}x; accuracy ours - Brevitas "
            f"{np.mean(differences):+.1f} points on average",
            flush=True,
        )


if __name__ == "__main__":
    counts = [int(text) for text in sys.argv[1:] if not text.startswith("--")]
    main(*(counts + [len(_FORMATS), 32, 100][len(counts) :]))
