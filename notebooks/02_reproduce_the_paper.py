# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The MARLIN paper's figures, again
#
# Pale, open marks are what the paper printed for an NVIDIA A10 (arXiv 2408.11743; records of origin `published`). Solid
# ones are the newest measured run that ships with this package, with the ideal of *its* GPU. On another GPU the same
# kernel has another knee, so that curves are compared with their own ideal, not with each other.

# %%
# %matplotlib inline
from IPython.display import display

from marlin_bench import paper
from marlin_bench.plots import paper as plots
from marlin_bench.roofline import roofs_from_ceilings
from marlin_bench.speedup import rows, without_companions
from marlin_bench.store import fullest_run, published_folder, read_run

folder = fullest_run(published_folder())
run = None if folder is None else read_run(folder)
roofs = None if run is None else roofs_from_ceilings(run.meta.ceilings)
timed = [] if run is None else [r for r in without_companions(rows(run.records, roofs)) if r.record.timer == "kernel"]
device = None if run is None else run.meta.environment.device_name
sm_count = None if run is None else run.meta.environment.sm_count
print(f"measured: {device or 'nothing yet, published values only'}")

# %% [markdown]
# ## Figure 1: free clocks, 72k x 18k
#
# MARLIN stays near the 3.87x that bytes allow up to a batch of 32, and falls with the ideal behind the knee. Kernels
# made for one token lose from the second on.

# %%
display(plots.draw_speedup(paper.paper_speedup(1, timed, sm_count), "Figure 1", device))

# %% [markdown]
# ## Figure 10: the same at the locked base clock
#
# Memory is as fast as before, the tensor cores are half as fast: the knee moves from about 54 to 28.

# %%
display(
    plots.draw_speedup(paper.paper_speedup(10, timed, sm_count), "Figure 10 (the run's own clocks as recorded)", device)
)

# %% [markdown]
# ## Figure 12: with 2:4 sparsity
#
# The paper's ideal of 5.33 leaves the scales out; with one FP16 scale for each 128 weights 2:4 weights take
# 3.125 bits, which allows 5.12x.

# %%
display(plots.draw_speedup(paper.paper_speedup(12, timed, sm_count), "Figure 12", device))

# %% [markdown]
# ## Figure 11: roofline

# %%
display(plots.draw_roofline(paper.paper_roofline(timed, roofs), "Figure 11", device))

# %% [markdown]
# ## Figure 9: whole models at M = 16
#
# The times of all linear layers summed, FP16 over MARLIN.

# %%
display(plots.draw_models(paper.paper_models(timed, device or "no run"), "Figure 9"))
