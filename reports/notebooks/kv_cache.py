# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How few bits may a cached key or value have?
#
# Loads a run of `sweeps/kv_cache.toml`: codecs of a language model's cache, what they keep of its
# predictions, in how many bits, on what engine. Point `BITFRONT_RUN` at the run folder; the default is
# `runs/kv_cache`.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt

from dse.sweep import load_run
from reports.figures import draw_front

run = load_run(Path(os.environ.get("BITFRONT_RUN", "runs/kv_cache")))
table = run.table()
print(f"{run.study.name}: {len(table)} points, {len(run.failed)} failed, {run.missing} not yet evaluated")
print(f"measured on {table['text'].iloc[0]}, calibrated on {table['calibration'].iloc[0]}")

# %% [markdown]
# ## Every codec
# Perplexity against the exact cache on the same predictions, with the paired 95 % interval. Bits: of a long
# sequence, and as the queries of a window read them, with open groups and first tokens that are still exact.
# Engine: LUT6 sites of writers and readers of keys and values, where there is hardware, and how many for an
# element a cycle. Where layers are merged, half of a window is a prefill; only predictions after it count.

# %%
columns = [
    "codec",
    "evaluation",
    "bits_per_element",
    "bits_per_element_seen",
    "perplexity",
    "increase %",
    "95 %",
]
shown = table.copy()
shown["increase %"] = 100 * table["perplexity_increase"]
ends = (100 * table[f"perplexity_increase_{end}"] for end in ("low", "high"))
shown["95 %"] = [f"{low:.1f} to {high:.1f}" for low, high in zip(*ends, strict=True)]
columns += [name for name in ("luts", "luts_per_element_cycle", "dsps", "brams") if name in shown]
shown[columns].sort_values(["bits_per_element_seen", "perplexity"]).round(2)

# %% [markdown]
# ## The best codec of each bit budget, as a stream

# %%
streamed = shown[shown["evaluation"] == "streaming"]
for budget in (2.3, 3.3, 4.3, 5.3):
    within = streamed[streamed["bits_per_element_seen"] <= budget]
    if len(within):
        best = within.sort_values("perplexity").iloc[0]
        print(f"at most {budget} bits: {best['codec']}, {best['increase %']:+.1f} % ({best['95 %']})")

# %% [markdown]
# ## Fronts

# %%
for front in run.fronts():
    if front.family == "all":
        figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
        draw_front(axes, table[table["workload"] == front.workload], front)
        plt.show()
