"""A decoder from the tensors of a file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dse.workloads.language.decoder import Decoder, DecoderConfig
from dse.workloads.workload import frozen
from quantizers.errors import UsageError


def decoder_of(config: DecoderConfig, tensors: Mapping[str, Tensor], source: str) -> Decoder:
    """The decoder with these weights, in eval mode; no parameter requires gradients.

    Args:
        config: the geometry.
        tensors: by the names of the decoder's ``state_dict``, in any float type; without the output layer
            where that is the embedding matrix.
        source: name of the file, for messages.

    Raises:
        UsageError: a tensor is missing, left over or of a wrong shape.
    """
    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced at once
        decoder = Decoder(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}
    if config.tied_embeddings:
        del wanted["head.weight"]
    _check(wanted, tensors, source)
    values = {name: tensor.float() for name, tensor in tensors.items()}
    if config.tied_embeddings:
        values["head.weight"] = values["embedding.weight"]
    decoder.load_state_dict(values, assign=True)
    decoder.tie()
    frozen(decoder)
    return decoder


def _check(wanted: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], source: str) -> None:
    for name in dict.fromkeys([*wanted, *tensors]):
        given = tuple(tensors[name].shape) if name in tensors else None
        if given == wanted.get(name):
            continue
        expected = "no such tensor" if name not in wanted else f"shape {wanted[name]}"
        found = "is missing" if given is None else f"has shape {given}"
        msg = f"{source}: tensor {name} {found}, expected {expected}"
        raise UsageError(msg, given=given or name, expected=[expected])
