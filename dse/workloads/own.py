"""The user's own model: ``module:function``.

The function takes no argument and returns a :class:`~dse.workloads.workload.Workload`, or a tuple
``(model, calibration_inputs, evaluation_inputs, evaluation_labels)``: a float ``nn.Module`` that returns
``(batch, classes)`` logits, two tensors of inputs ``(n, ...)`` as the model takes them (uint8 is converted to
float32 unscaled), and ``(n,)`` int64 classes. The module is searched in the current folder too.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from dse.workloads.hashing import tensors_sha256, text_sha256
from dse.workloads.images import ImageSet
from dse.workloads.workload import Counts, Workload, frozen
from quantizers.errors import UsageError, unknown_choice

EXPECTED = "(model, calibration_inputs, evaluation_inputs, evaluation_labels) or a Workload"
_PARTS = (
    ("model", nn.Module),
    ("calibration_inputs", Tensor),
    ("evaluation_inputs", Tensor),
    ("evaluation_labels", Tensor),
)


@dataclass(frozen=True)
class OwnWorkload:
    """A model that a function of the user's returns; a data folder is the function's own business."""

    name: str
    needs: str = f"a function that takes no argument and returns {EXPECTED}"

    @property
    def description(self) -> str:
        return f"the model that {self.name} returns"

    def check(self, data: Path | None, counts: Counts) -> None:
        """The module imports and has the function, which is not called yet."""
        self._function()

    def fingerprint(self, data: Path | None) -> str:
        """Hash of the weights, all inputs and labels, and of what the model computes for a few of them.

        The function is called for it; one that draws random numbers without a seed gets another hash
        each time, which :attr:`Workload.fingerprint` of a later call then shows.
        """
        return str(self.load(data, Counts()).fingerprint)

    def load(self, data: Path | None, counts: Counts) -> Workload:
        """Call the function and check what it returns.

        Raises:
            UsageError: the function fails, or returns something else than is expected.
        """
        function = self._function()
        try:
            returned = function()
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            msg = f"{self.name} failed: {type(error).__name__}: {error}"
            raise UsageError(msg, given=self.name) from error
        workload = returned if isinstance(returned, Workload) else self._from_tuple(returned)
        frozen(workload.model)
        outputs = self._try_one(workload)
        return replace(
            workload,
            name=self.name,
            fingerprint=self._fingerprint(workload, outputs),
            calibration=workload.calibration.first(counts.calibration, "calibration_images"),
            evaluation=workload.evaluation.first(counts.evaluation, "evaluation_images"),
        )

    def _from_tuple(self, returned: Any) -> Workload:
        if not isinstance(returned, tuple) or len(returned) != len(_PARTS):
            what = f"a tuple of {len(returned)}" if isinstance(returned, tuple) else type(returned).__name__
            msg = f"{self.name} returned {what}, expected {EXPECTED}"
            raise UsageError(msg, given=what)
        for (part, kind), value in zip(_PARTS, returned, strict=True):
            if not isinstance(value, kind):
                msg = f"{self.name}: {part} must be a torch {kind.__name__}, not {type(value).__name__}"
                raise UsageError(msg, given=type(value).__name__)
        model, calibration_inputs, evaluation_inputs, labels = returned
        if calibration_inputs.shape[1:] != evaluation_inputs.shape[1:]:
            one, other = (tuple(inputs.shape[1:]) for inputs in (calibration_inputs, evaluation_inputs))
            msg = f"{self.name}: calibration inputs have the shape {one} each, evaluation inputs {other}"
            raise UsageError(msg, given=one)
        try:
            calibration, evaluation = ImageSet(calibration_inputs), ImageSet(evaluation_inputs, labels)
        except UsageError as error:
            msg = f"{self.name}: {error}"
            raise UsageError(msg, given=error.given) from error
        return Workload(
            name=self.name,
            description=self.description,
            source=self.name,
            dataset=f"data of {self.name}, {len(evaluation)} inputs",
            model=model,
            calibration=calibration,
            evaluation=evaluation,
        )

    def _fingerprint(self, workload: Workload, outputs: Tensor) -> str:
        sets = {"calibration": workload.calibration, "evaluation": workload.evaluation}
        tensors = {name: images.inputs for name, images in sets.items()}
        if workload.evaluation.labels is not None:
            tensors["labels"] = workload.evaluation.labels
        return text_sha256(
            self.name,
            repr(workload.model),
            *(f"{images.mean} {images.std}" for images in sets.values()),
            # The code of a model may lie anywhere; what it computes tells when it has changed.
            tensors_sha256({**tensors, "outputs": outputs}),
            tensors_sha256(workload.model.state_dict()),
        )

    def _try_one(self, workload: Workload) -> Tensor:
        """The logits of the first evaluation input; a model that does not fit its data fails here."""
        images = workload.evaluation.first(1)
        if workload.evaluation.labels is None:
            msg = f"{self.name}: the evaluation set has no labels, expected one int64 class for each input"
            raise UsageError(msg, given=self.name)
        try:
            with torch.no_grad():
                logits = workload.model(next(images.batches(1))[0])
        except (Exception, SystemExit) as error:  # whatever the user's layers raise
            msg = f"{self.name}: the model fails on its first evaluation input: {error}"
            raise UsageError(msg, given=self.name) from error
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 1:
            given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            msg = f"{self.name}: one input must give logits of shape (1, classes), not {given}"
            raise UsageError(msg, given=given)
        low, high = (int(end) for end in workload.evaluation.labels.aminmax())
        if low < 0 or high >= logits.shape[1]:
            wrong = low if low < 0 else high
            msg = f"{self.name}: label {wrong} is not one of the model's {logits.shape[1]} classes"
            raise UsageError(msg, given=wrong)
        return logits

    def _module(self) -> ModuleType:
        module = self.name.partition(":")[0]
        here = str(Path.cwd())
        if here not in sys.path:  # an installed command starts without the current folder
            sys.path.append(here)
        try:
            return importlib.import_module(module)
        except (Exception, SystemExit) as error:  # importing runs the user's code
            msg = (
                f"workload {self.name}: module {module!r} cannot be imported "
                f"({type(error).__name__}: {error}); expected a module in {here} or an installed one"
            )
            raise UsageError(msg, given=self.name) from error

    def _function(self) -> Callable[[], Any]:
        module, function = self._module(), self.name.partition(":")[2]
        found = getattr(module, function, None)
        if not callable(found):
            own = [name for name, value in vars(module).items() if _is_public_function(module, name, value)]
            if not own:
                msg = f"module {module.__name__} has no public function, expected one that returns {EXPECTED}"
                raise UsageError(msg, given=function)
            raise unknown_choice(f"function in module {module.__name__}", function, own)
        result: Callable[[], Any] = found
        return result


def _is_public_function(module: ModuleType, name: str, value: object) -> bool:
    if name.startswith("_") or isinstance(value, type) or not callable(value):
        return False
    return getattr(value, "__module__", None) == module.__name__
