"""Running a network on many batches, one layer at a time: all batches reach a layer before any passes it.

What a layer becomes may then depend on all of its inputs, and the layers after it see the result: the
whole network is quantized in one walk, where hooks on ordinary forward passes need one pass a layer.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from quantizers.errors import BitfrontError
from quantizers.recipes.smoothing import ChannelDivision

# What may run twice, so that its result need not be held.
_CHEAP = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, ChannelDivision)


class WalkError(BitfrontError):
    """The batches take different ways through the network, or one of them failed."""


class _Stopped(Exception):
    """Ends a batch whose walk was closed."""


class LockStep:
    """Forward passes of *model* that wait before each of *layers*, the first time that each is called.

    A batch is a thread that runs only while :meth:`advance` waits for it, so nothing runs at the same
    time and results do not depend on timing. Between layers a batch holds what its forward pass holds;
    a layer that is preceded by padding or a division of its own is waited for before these, whose
    results would be held too.

    Args:
        model: called with each batch, without gradients.
        layers: names of modules; each is stopped at once per batch.
        batches: inputs.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str], batches: Sequence[Tensor]) -> None:
        places = {name: _waiting_place(model, name) for name in layers}
        self._between = {name: between for name, (_, between) in places.items()}
        self._handles = [
            place.register_forward_pre_hook(self._hook(name)) for name, (place, _) in places.items()
        ]
        self._batches = [_Batch(model, batch) for batch in batches]

    def __enter__(self) -> LockStep:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def advance(self) -> tuple[str, Iterator[Tensor]] | None:
        """Let every batch run to its next layer: its name and its inputs, batch by batch.

        ``None`` at the end.

        Raises:
            WalkError: the model failed, or the batches are not at the same layer.
        """
        places = [batch.advance() for batch in self._batches]
        _return_freed_memory()
        names = {place[0] if place else None for place in places}
        if len(names) > 1:
            shown = " and ".join(sorted(str(name) for name in names))
            msg = f"the model takes different ways for different inputs: batches are before {shown}"
            raise WalkError(msg)
        name = names.pop()
        if name is None:
            return None
        between = self._between[name]
        return name, (between(place[1]) for place in places if place)

    def close(self) -> None:
        """End all batches and take the hooks off."""
        for handle in self._handles:
            handle.remove()
        for batch in self._batches:
            batch.close()

    @staticmethod
    def _hook(name: str) -> Any:
        def wait(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            thread = threading.current_thread()
            if isinstance(thread, _Batch):
                thread.arrive(name, inputs[0])

        return wait


def _waiting_place(model: nn.Module, name: str) -> tuple[nn.Module, nn.Module]:
    """The module to wait before, and what lies between its input and that of the layer *name*."""
    place = model.get_submodule(name)
    between: nn.Module = nn.Identity()
    while name:
        name = name.rpartition(".")[0]
        parent = model.get_submodule(name)
        if not isinstance(parent, nn.Sequential):
            break
        *before, last = parent
        if last is not place or not all(isinstance(module, _CHEAP) for module in before):
            break
        place, between = parent, nn.Sequential(*before, between)
    return place, between


def _return_freed_memory() -> None:
    """Give the system what was freed between the tensors that wait: a GiB, where the C library is glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class _Batch(threading.Thread):
    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        super().__init__(daemon=True, name="lockstep")
        self._model = model
        self._inputs: Tensor | None = inputs
        self._seen: set[str] = set()
        self._may_run = threading.Event()
        self._stopped = threading.Event()
        self._place: tuple[str, Tensor] | None = None
        self._error: BaseException | None = None
        self._closing = False

    def advance(self) -> tuple[str, Tensor] | None:
        if not self.is_alive() and self.ident is not None:
            return None
        self._stopped.clear()
        self._may_run.set()
        if self.ident is None:
            self.start()
        self._stopped.wait()
        if self._error is not None:
            msg = f"the model fails on a calibration batch: {self._error}"
            raise WalkError(msg) from self._error
        return self._place

    def arrive(self, name: str, inputs: Tensor) -> None:
        if name in self._seen:
            return
        self._seen.add(name)
        self._place = (name, inputs)
        self._may_run.clear()
        self._stopped.set()
        self._may_run.wait()
        self._place = None
        if self._closing:
            raise _Stopped

    def run(self) -> None:
        inputs, self._inputs = self._inputs, None
        try:
            with torch.no_grad():
                self._model(inputs)
        except _Stopped:
            pass
        except BaseException as error:  # told by advance, in the caller's thread
            self._error = error
        finally:
            self._place = None
            self._stopped.set()

    def close(self) -> None:
        if self.ident is not None:
            self._closing = True
            self._may_run.set()
            self.join()
