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
        graph = _trace(model)
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


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, MatMul | ExplicitAttention) or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module) -> fx.GraphModule:
    tracer = _Tracer()
    try:
        return fx.GraphModule(model, tracer.trace(model))
    except Exception as error:  # whatever the model's code raises when it meets a proxy
        place = _deepest_module(tracer)
        msg = f"equalize cannot trace {place}: {error}"
        raise UsageError(msg, given=place, expected=["a recipe without equalize"]) from error


def _deepest_module(tracer: Any) -> str:
    """Where a failed trace was."""
    stack = list(getattr(tracer, "module_stack", {}).values())
    if not stack:
        return "the model"
    path, kind = stack[-1]
    return f"layer {path!r} ({kind.__name__ if isinstance(kind, type) else kind})" if path else "the model"
