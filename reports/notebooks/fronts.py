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
# # The fronts of a run
#
# Loads a run folder, shows its table, and draws its Pareto fronts. Point `BITFRONT_RUN` at a folder that
# `dse sweep` wrote; the default is that of the quickstart study.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt

from dse.sweep import load_run
from reports.figures import draw_front
from reports.summary import best_by_bits, headlines

run = load_run(Path(os.environ.get("BITFRONT_RUN", "runs/quickstart")))
table = run.table()
print(f"{run.study.name}: {len(table)} points, {len(run.failed)} failed, {run.missing} not yet evaluated")

# %% [markdown]
# ## What it says

# %%
print("\n".join(headlines(table)))

# %% [markdown]
# ## Every point
# Accuracies are fractions; `_low` and `_high` are their 95 % intervals from the number of images.

# %%
columns = ["workload", "weights", "activations", "accuracy", "accuracy_low", "accuracy_high", "luts", "ffs"]
table[columns].sort_values(["workload", "luts"])

# %% [markdown]
# ## Fronts
# The staircase is what no other point beats in both metrics.

# %%
for front in run.fronts():
    if front.family == "all":
        figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
        draw_front(axes, table[table["workload"] == front.workload], front)
        plt.show()

# %% [markdown]
# ## Integer or minifloat at each bit width?

# %%
for row in best_by_bits(table):
    families = [name for name in ("integer", "minifloat") if name in row]
    best = ", ".join(
        f"{name} {row[name]['pair']} {row[name]['accuracy']} % at {row[name]['luts']} sites"
        for name in families
    )
    print(row["workload"], row["bits"], best)
