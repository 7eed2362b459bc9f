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
# # What post-training quantization adds
#
# Loads a run whose study sweeps `quantization.recipe`, such as `sweeps/anchor.toml` or
# `sweeps/efficientnet.toml`, and asks: how far does each technique carry integers and minifloats, and which
# recipe is best at each bit width? Point `BITFRONT_RUN` at the run folder.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import display

from dse.sweep import load_run
from reports.figures import draw_gains
from reports.summary import best_by_bits, over_seeds, recipe_gains

run = load_run(Path(os.environ.get("BITFRONT_RUN", "runs/anchor")))
table = run.table()
recipes = table["recipe"].unique()
print(f"{run.study.name}: {len(table)} points, {len(recipes)} recipes, {table['seed'].nunique()} seeds")

# %% [markdown]
# ## The best of each family at each bit width, over all formats and recipes
# The first half of the evaluation images chooses, the second half gives the accuracy that is shown, with its
# 95 % interval: the best of many is too good on the images that chose it.

# %%
rows = [
    {
        "network": row["workload"],
        "bits": row["bits"],
        "family": family,
        "formats": row[family]["pair"],
        "accuracy %": row[family]["accuracy"],
        "recipe": row[family]["recipe"],
    }
    for row in best_by_bits(table)
    for family in ("integer", "minifloat")
    if family in row
]
with pd.option_context("display.max_colwidth", None, "display.max_rows", None):
    display(pd.DataFrame(rows))

# %% [markdown]
# ## What each technique adds to rounding to nearest
# Points of accuracy, the mean over all formats and seeds of a family; ± is the standard
# deviation over them. Differences inside it are not a ranking.

# %%
gains = recipe_gains(table)
with pd.option_context("display.max_colwidth", None, "display.max_rows", None):
    display(pd.DataFrame([{**row, **row["gains"]} for row in gains]).drop(columns="gains"))

# %%
for workload in table["workload"].unique():
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    draw_gains(axes, table[table["workload"] == workload])
    axes.set_title(workload)
    plt.show()

# %% [markdown]
# ## The spread over calibration seeds

# %%
seeds = over_seeds(table)
if "accuracy_seed_std" in seeds:
    columns = ["workload", "weights", "activations", "recipe", "accuracy", "accuracy_seed_std"]
    display(seeds[columns].sort_values("accuracy", ascending=False).head(20))
else:
    print("one seed: sweep several with 'seed = [0, 1, 2]' to see the spread")
