"""Cross-layer weight equalization: move scale between layers where the function does not change."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx, nn

from quantizers.attention import ExplicitAttention, MatMul
from quantizers.errors import UsageError
from quantizers.prepare import PreparedModel, prepare
from quantizers.recipes.steps import REWRITING, Step, check_range
from quantizers.tracing import TracingError, is_library_module, trace


@dataclass(frozen=True)
class Equalize(Step):
    """Evens out the weight ranges of channels between layers, as far as the function stays the same.

    Brevitas' graph equalization. It goes through ReLU, pooling and residual additions; through ReLU6,
    GELU and attention nothing can be moved.

    Args:
        iterations: at most so many rounds over all regions of the graph.
    """

    name: ClassVar[str] = "equalize"
    source: ClassVar[str] = "arXiv 1906.04721, section 4.1, in Brevitas"
    stage: ClassVar[int] = REWRITING

    iterations: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.name, "iterations", self.iterations, 1, 1000)

    def rewrite(self, prepared: PreparedModel) -> PreparedModel:
        """The equalized network, calibrated again.

        Raises:
            UsageError: the network cannot be traced, or has no layers that could be equalized.
        """
        model = copy.deepcopy(prepared.model)
        # The graph shares the layers of *model*, which are changed in place.
        graph = _traced(model)
        with torch.no_grad():
            regions = _equalize_graph()(iterations=self.iterations, return_regions=True).apply(graph)[1]
        if not regions:
            msg = (
                f"equalize finds nothing to do in {type(model).__name__}: no two layers have only ReLU, "
                "pooling or additions between them"
            )
            raise UsageError(msg, given=self.name, expected=["a recipe without equalize"])
        return prepare(model, prepared.batches, seed=prepared.seed)


def _equalize_graph() -> Any:
    with warnings.catch_warnings():
        # It tells every importer that a package for CUDA is not there.
        warnings.simplefilter("ignore", UserWarning)
        from brevitas.graph.equalize import EqualizeGraph
    return EqualizeGraph


def _traced(model: nn.Module) -> fx.GraphModule:
    try:
        return trace(
            model, lambda m, name: isinstance(m, MatMul | ExplicitAttention) or is_library_module(m, name)
        )
    except TracingError as error:
        msg = f"equalize needs a model that can be traced: {error}"
        raise UsageError(msg, given=error.place, expected=["a recipe without equalize"]) from error
