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
# # Which kernel for which batch?
#
# A model calls the same layers at many batch sizes. The answer is a table: for each layer and M the fastest backend,
# and the regret, how much longer a single one takes when it is used everywhere.

# %%
# %matplotlib inline
from IPython.display import display

from marlin_bench.datasheet import find_datasheet
from marlin_bench.knee import knees
from marlin_bench.knee_table import knee_table
from marlin_bench.model_times import (
    NoAnswerError,
    common_group_size,
    layer_times,
    missing_layers,
    model_batches,
    traffic_gain,
)
from marlin_bench.models import builtin_model
from marlin_bench.paper import paper_speedup
from marlin_bench.plots import knee, paper, predict
from marlin_bench.predict import predict as look_ahead
from marlin_bench.predict_table import prediction_table
from marlin_bench.recommend import recommend
from marlin_bench.recommend_table import choice_table, single_table
from marlin_bench.roofline import roofs_from_ceilings
from marlin_bench.speedup import curves, rows, without_companions
from marlin_bench.store import fullest_run, published_folder, read_run

folder = fullest_run(published_folder())
run = None if folder is None else read_run(folder)
roofs = None if run is None else roofs_from_ceilings(run.meta.ceilings)
timed = [] if run is None else [r for r in without_companions(rows(run.records, roofs)) if r.record.timer == "kernel"]
print("no measured run ships with this version" if run is None else run.meta.environment.device_name)

# %% [markdown]
# ## The table
#
# Published values never enter a recommendation: they have no samples. Without a measured run there is no table.

# %%
models = [builtin_model(name) for name in ("llama-3-8b", "llama-2-70b")]
try:
    times = layer_times(timed, common_group_size(timed))
    model = next((one for one in models if not missing_layers(one, times)), models[0])  # a run may have been cut short
    print(model.name)
    answer = recommend(model, times, model_batches(model, times))
    print(choice_table(answer).plain())
    gains = {one.backend: traffic_gain(model, times, one.backend, {1: 0.6, 16: 0.4}) for one in answer.singles}
    print(single_table(answer, model, times, gains).plain())
except NoAnswerError as nothing:
    print(nothing)

# %% [markdown]
# ## Knees and crossovers
#
# Two numbers stand for a curve: the M at which a kernel falls under 90 % of its ideal, and the M from which FP16 wins.
# Where nothing was measured, the paper's curves show what they mean.

# %%
found = knees(curves(timed))[:40]
if found:
    print(knee_table(found).plain())
    display(knee.draw(found, "Knee and crossover"))
else:
    display(paper.draw_speedup(paper_speedup(1, [], None), "Published: every curve has its own knee", None))

# %% [markdown]
# ## A GPU that one does not have
#
# The ideal of another GPU by its datasheet, times the share of the ideal measured here. A prediction is no record and
# is marked wherever it is shown.

# %%
chosen = [row for row in timed if row.record.layer == (timed[0].record.layer if timed else "")]
elsewhere = [row for row in chosen if not row.record.backend.startswith("marlin_hopper")]  # an L40S has no wgmma
predictions = look_ahead(elsewhere, find_datasheet("l40s"))
if predictions:
    print(prediction_table(predictions).plain())
    display(predict.draw(predictions, "PREDICTED for an L40S"))
