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
# # Do lookup tables pay on this fabric?
#
# Loads a run of `sweeps/lut_kernel.toml`, or of any study that compares hardware alone, and sets its designs
# side by side. Point `BITFRONT_RUN` at the run folder; the default is `runs/lut_kernel`.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from dse.metrics import metric
from dse.sweep import load_run
from reports.figures import draw_front
from reports.summary import cheapest_designs

run = load_run(Path(os.environ.get("BITFRONT_RUN", "runs/lut_kernel")))
table = run.table()
by = metric(run.study.fronts[0].x)
print(f"{run.study.name}: {len(table)} points, {len(run.failed)} failed, {run.missing} not yet evaluated")

# %% [markdown]
# ## The least that each design reaches
# LUT6 sites for each weight that is multiplied in a cycle. Where a design uses DSP slices, they do not show.

# %%
rows = cheapest_designs(table, by.name)
figures = pd.DataFrame({row["formats"]: row["figures"] for row in rows}).T
figures.round(2)

# %% [markdown]
# ## By how much the best one leads
# Of the designs without DSP slices.

# %%
pd.DataFrame(rows)[["formats", "best", "gain"]].set_index("formats").round(2)

# %%
bars, axes = plt.subplots(figsize=(10, 5), layout="constrained")
figures.plot.bar(ax=axes, width=0.85, rot=30, xlabel="weights/activations", ylabel=by.label)
axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Fronts
# Area for the work of a cycle against the cycles of a vector: what no other point beats in both.

# %%
for front in run.fronts():
    if front.family == "all":
        figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
        draw_front(axes, table[table["workload"] == front.workload], front)
        plt.show()
