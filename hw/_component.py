"""The base class of this project's components."""

from __future__ import annotations

from amaranth.lib import wiring


class Component(wiring.Component):
    """A component that may be built just to be asked for its widths or latency.

    Amaranth warns of components that are never elaborated, also when their constructor raised.
    """

    _MustUse__silence = True
