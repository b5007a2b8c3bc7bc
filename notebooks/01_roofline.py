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
# # A roofline, read from left to right
#
# Every product C[M,N] = A[M,K] · W[K,N] has an arithmetic intensity: FLOP per byte that has to cross the memory bus.
# Left of the knee memory is the limit, right of it the tensor cores. A 4-bit weight has a quarter of the bytes of an
# FP16 one, so that the same product stands nearly four times further right, and may stand that much higher, until it
# meets the flat roof.

# %%
# %matplotlib inline
from IPython.display import display

from marlin_bench.datasheet import find_datasheet
from marlin_bench.panels import roofline_panels, speedup_panels
from marlin_bench.paper import paper_roofline
from marlin_bench.plots import paper, roofline, speedup
from marlin_bench.problem import FP16, Problem, int4
from marlin_bench.roofline import ideal_speedup, knee_batch, roofs_from_ceilings
from marlin_bench.speedup import rows, without_companions
from marlin_bench.store import fullest_run, published_folder, read_run

# %% [markdown]
# ## What has to move
#
# Bytes are counted once per operand. At M = 1 nearly all of them are weights; 16 bits over 4.125 (codes and a scale for
# each 128 weights) is 3.88, the most that a 4-bit kernel can win on this layer.

# %%
product = Problem(M=16, N=18432, K=73728)
for name, fmt in (("fp16", FP16), ("int4_g128", int4(128)), ("int4_2of4_g128", int4(128, sparse=True))):
    traffic = product.traffic(fmt)
    print(f"{name:16} {traffic.total / 1e6:8.1f} MB, {product.flop / traffic.total:6.1f} FLOP/byte")

# %% [markdown]
# ## Where the knee lies
#
# The knee is a fact about a machine at a clock, not about a kernel: an A10 held at its base clock of 885 MHz leaves
# memory at half the batch size.

# %%
a10 = find_datasheet("a10").roofs()
for clock in (1695e6, 885e6):
    held = a10.at_clock(clock)
    M = knee_batch(18432, 73728, int4(128), held)
    ideal = ideal_speedup(Problem(64, 18432, 73728), int4(128), held)
    print(f"A10 at {clock / 1e6:.0f} MHz: int4 leaves memory at M = {M:.0f}; ideal speed-up at M = 64: {ideal:.2f}x")

# %% [markdown]
# ## The paper's roofline
#
# Figure 11 of the MARLIN paper: square layers on an A10, M from 1 to 65536. Above M = 64 the kernel is on the flat
# roof; long products sink below it because the GPU throttles towards its base clock.

# %%
display(paper.draw_roofline(paper_roofline([], None), "Published: MARLIN on an A10, figure 11", None))

# %% [markdown]
# ## A measured one
#
# The newest measured run that ships with the package, on roofs that the same run measured, at the clock that the
# samples held. Lines join each 4-bit product with its FP16 twin. Circles mark points above a measured roof: a reader
# should ask why, they are never cut off.

# %%
folder = fullest_run(published_folder())
if folder is None:
    print("no measured run ships with this version: `marlin-bench run smoke` makes one of your own")
else:
    run = read_run(folder)
    roofs = roofs_from_ceilings(run.meta.ceilings)
    timed = [row for row in without_companions(rows(run.records, roofs)) if row.record.timer == "kernel"]
    layers = list(dict.fromkeys(row.record.layer for row in timed))[:2]
    chosen = [row for row in timed if row.record.layer in layers]
    display(roofline.draw(roofline_panels(chosen, roofs), f"{run.meta.environment.device_name}, measured roofs"))
    display(speedup.draw(speedup_panels(chosen), f"{run.meta.environment.device_name}, speed-up and its ideal"))
