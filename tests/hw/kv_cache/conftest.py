from pathlib import Path

import numpy as np
import pytest

from quantizers.errors import BitfrontError

WIKITEXT = Path(__file__).parents[3].parent / "shared" / "data" / "wikitext2.test.raw"


@pytest.fixture(scope="session")
def smollm2_cache():
    """Keys and values of all layers for a window of 512 tokens, float32, shape (layers, 2, heads, 512, 64)."""
    from dse.workloads.language import load_language_model, load_text, perplexity, windows_of
    from quantizers.kv_store import HistoryStore, Seen

    class Recorder(HistoryStore):
        def see(self, layer, keys, values):
            layers[layer] = np.stack([keys[0].numpy(), values[0].numpy()])
            return Seen.always(keys, values)

    if not WIKITEXT.is_file():
        pytest.skip("../shared/data/wikitext2.test.raw is not there")
    layers = {}
    try:
        model = load_language_model("smollm2-135m")
    except BitfrontError as error:
        pytest.skip(f"SmolLM2 cannot be had here: {error}")
    perplexity(model, windows_of(model, load_text(WIKITEXT), length=512, count=1), store=Recorder())
    return np.stack([layers[layer] for layer in sorted(layers)])
