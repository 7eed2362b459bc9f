"""What a design costs: parts, synthesis, LUT-site packing.

Place and route, which needs Amaranth, is imported from :mod:`costmodel.place_and_route`.
"""

from costmodel.cache import ContentCache, content_key, default_cache_root
from costmodel.packing import Counts, PackingError, count_resources
from costmodel.parts import PARTS, Part, find_part
from costmodel.synthesis import Resources, synthesize, synthesize_verilog
from costmodel.yosys import SynthesisError

__all__ = [
    "PARTS",
    "ContentCache",
    "Counts",
    "PackingError",
    "Part",
    "Resources",
    "SynthesisError",
    "content_key",
    "count_resources",
    "default_cache_root",
    "find_part",
    "synthesize",
    "synthesize_verilog",
]
