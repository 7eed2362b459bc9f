"""Rewrites that leave a model's outputs alone: plain convolutions, batch norms folded away.

Both are found by running the model, so they work for any module structure.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from quantizers.recording import Exit, Operation, Recording, record, storage_key, tensors

_PLAIN_FORWARDS = {nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward, nn.Linear.forward}
_CONVOLUTIONS: dict[int, Callable[..., _ConvNd]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_PADDINGS: dict[int, Callable[..., nn.Module]] = {
    1: nn.ConstantPad1d,
    2: nn.ConstantPad2d,
    3: nn.ConstantPad3d,
}


class PaddedConvolution(nn.Sequential):
    """Zeros around the input, not as many on every side, and the plain convolution that takes them."""


def is_plain(layer: nn.Module) -> bool:
    """Whether *layer* is a convolution or linear layer that computes just that."""
    return isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear) and (
        type(layer).forward in _PLAIN_FORWARDS
    )


def replace_modules(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> None:
    """Put ``replacements[m]`` wherever *model* holds ``m``, in place."""
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is not None and child in replacements:
                module._modules[name] = replacements[child]


def with_replacements(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> nn.Module:
    """*model* with ``replacements[m]`` in the place of ``m``: new containers around the same layers.

    *model* stays as it is; parameters, buffers and the layers that are not replaced are shared.
    """
    twins: dict[nn.Module, nn.Module] = dict(replacements)

    def twin_of(module: nn.Module) -> nn.Module:
        if module not in twins:
            children = {name: child and twin_of(child) for name, child in module._modules.items()}
            twins[module] = module
            if any(child is not module._modules[name] for name, child in children.items()):
                twins[module] = copy.copy(module)
                twins[module]._modules = children
        return twins[module]

    return twin_of(model)


def use_plain_convolutions(model: nn.Module, inputs: Tensor) -> None:
    """Replace convolution subclasses that only add zero padding ("same" padding), in place.

    Padding computed from the input size is frozen to the size of *inputs*. Subclasses that compute
    anything else are left alone.
    """
    unusual = {name: m for name, m in model.named_modules() if isinstance(m, _ConvNd) and not is_plain(m)}
    if not unusual:
        return
    recording = record(model, inputs)
    replacements: dict[nn.Module, nn.Module] = {}
    for name, layer in unusual.items():
        operations = [o for o in recording.operations if o.module == name or o.module.startswith(f"{name}.")]
        plain = _plain_equivalent(layer, operations)
        if plain is not None:
            replacements[layer] = plain
    replace_modules(model, replacements)


def _plain_equivalent(layer: _ConvNd, operations: list[Operation]) -> nn.Module | None:
    names = [operation.name for operation in operations]
    if names == ["convolution"]:
        padding = [0] * (2 * (layer.weight.dim() - 2))
    elif names == ["constant_pad_nd", "convolution"] and operations[0].argument("value") == 0:
        padding = list(operations[0].argument("pad"))
    else:
        return None
    convolution = operations[-1]
    spatial = layer.weight.dim() - 2
    if convolution.argument("weight") is not layer.weight or convolution.argument("transposed"):
        return None
    if len(padding) != 2 * spatial:
        return None
    return _with_padding(layer, convolution, padding)


def _with_padding(layer: _ConvNd, convolution: Operation, padding: list[int]) -> nn.Module:
    before, after = padding[0::2][::-1], padding[1::2][::-1]
    inner = list(convolution.argument("padding"))
    symmetric = before == after
    if symmetric:
        inner = [p + q for p, q in zip(inner, before, strict=True)]
    plain = _CONVOLUTIONS[layer.weight.dim() - 2](
        layer.in_channels,
        layer.out_channels,
        tuple(layer.kernel_size),
        stride=tuple(convolution.argument("stride")),
        padding=tuple(inner),
        dilation=tuple(convolution.argument("dilation")),
        groups=convolution.argument("groups"),
        bias=layer.bias is not None,
        device="meta",
    )
    plain.weight, plain.bias = layer.weight, layer.bias
    plain.train(layer.training)
    if symmetric:
        return plain
    pad = _PADDINGS[layer.weight.dim() - 2](tuple(padding), 0.0)
    return PaddedConvolution(OrderedDict(pad=pad, convolution=plain))


def fold_batch_norms(model: nn.Module, inputs: Tensor) -> int:
    """Fold each batch norm into the convolution or linear layer that alone feeds it, in place.

    A batch norm stays where its input is used elsewhere too, or comes from anything but one plain
    layer called once. Returns the number of folded ones.
    """
    modules = dict(model.named_modules())
    recording = record(model, inputs)
    folded = 0
    for name, norm in modules.items():
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
            source = _only_source(name, recording, modules)
            if source is not None and _has_channels_of(source, recording.calls(name)[0].inputs[0]):
                _fold(source, norm)
                replace_modules(model, {norm: nn.Identity()})
                folded += 1
    return folded


def overwrite_own_inputs(model: nn.Module, inputs: Tensor) -> int:
    """Let activation functions that alone read the output of one plain layer overwrite it, in place.

    Returns their number. It saves memory, and the time to write it.
    """
    modules = dict(model.named_modules())
    recording = record(model, inputs)
    found = 0
    for name, module in modules.items():
        if getattr(module, "inplace", None) is False and _only_source(name, recording, modules) is not None:
            module.inplace = True
            found += 1
    return found


def _only_source(reader: str, recording: Recording, modules: dict[str, nn.Module]) -> nn.Module | None:
    """The plain layer, called once, whose output *reader* takes and nothing else sees."""
    calls = recording.calls(reader)
    if len(calls) != 1 or not calls[0].inputs:
        return None
    entering = calls[0].inputs[0]
    key = storage_key(entering)
    sources = [
        event.module
        for event in recording.events
        if isinstance(event, Exit) and is_plain(modules[event.module]) and _is_output(event, entering)
    ]
    if len(sources) != 1 or len(recording.calls(sources[0])) != 1:
        return None
    readers = {o.module for o in recording.operations if key in map(storage_key, o.operands)}
    returned = key in map(storage_key, tensors(recording.output))
    return modules[sources[0]] if readers == {reader} and not returned else None


def _has_channels_of(layer: nn.Module, output: Tensor) -> bool:
    """Whether what a batch norm takes for channels are those of the layer."""
    return not isinstance(layer, nn.Linear) or output.dim() == 2


def _is_output(event: Exit, tensor: Tensor) -> bool:
    return any(storage_key(o) == storage_key(tensor) and o.shape == tensor.shape for o in event.outputs)


def _fold(layer: nn.Module, norm: _BatchNorm) -> None:
    fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    with torch.no_grad():
        layer.weight, layer.bias = fuse(
            layer.weight,  # type: ignore[arg-type]
            layer.bias,  # type: ignore[arg-type]
            norm.running_mean,  # type: ignore[arg-type]
            norm.running_var,  # type: ignore[arg-type]
            norm.eps,
            norm.weight,
            norm.bias,
        )
