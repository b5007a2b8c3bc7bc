"""Prints the table of dependent launches in docs/kernels/marlin_hopper.md: a Llama-3-8B layer's products in a graph.

    python docs/kernels/hopper_chain.py

The four follow each other as in a decoder layer, LAYERS layers with weights of their own, so that none stays in the L2
cache. `one by one` starts a product when the one before has ended, `dependent` may start it earlier. Graphs take turns;
medians of microseconds a layer. Needs a Hopper GPU.
"""

from statistics import median

import torch

from marlin_bench.backends.marlin_hopper import HopperProduct, Workspace
from marlin_bench.layouts.marlin_hopper import pack
from marlin_bench.marlin_hopper_choice import choose
from marlin_bench.marlin_hopper_config import WeightKind
from marlin_bench.quantize import QuantizedWeights

SHAPES = ((4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096))  # K, N of qkv, o, gate and up, down
LAYERS = 4
BATCHES = (1, 16, 64, 256)
TURNS = 25


def random_weights(K, N):
    """Packed random codes and scales of one product."""
    codes = torch.randint(0, 16, (K, N), dtype=torch.uint8, device="cuda")
    scales = ((torch.rand((K // 128, N), device="cuda") + 1) * 0.01).half()
    return pack(QuantizedWeights(codes, scales))


def captured(calls):
    """A graph of `calls`, each of which enqueues one launch."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def microseconds(graph):
    """Of one replay."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e3


def measure(M, packed, dense):
    """Median microseconds a layer: cuBLAS, one by one, dependent."""
    sm_count = torch.cuda.get_device_properties(0).multi_processor_count
    inputs = {K: torch.randn((M, K), device="cuda").half() for K, _ in SHAPES}
    outputs = {N: torch.empty((M, N), dtype=torch.float16, device="cuda") for _, N in SHAPES}
    workspace = Workspace(torch.device("cuda"))
    products = {
        dependent: [
            HopperProduct(
                weights,
                inputs[weights.K],
                outputs[weights.N],
                choose(M, weights.N, weights.K, sm_count, WeightKind()),
                workspace,
                dependent=dependent,
            )
            for layer in packed
            for weights in layer
        ]
        for dependent in (False, True)
    }
    cublas = [
        lambda w=w: torch.matmul(inputs[w.shape[0]], w, out=outputs[w.shape[1]]) for layer in dense for w in layer
    ]
    graphs = [captured(calls) for calls in (cublas, products[False], products[True])]
    times = [[microseconds(graph) for graph in graphs] for _ in range(TURNS)]
    return [median(column) / LAYERS for column in zip(*times, strict=True)]


def main():
    """The table, one row a batch."""
    packed = [[random_weights(K, N) for K, N in SHAPES] for _ in range(LAYERS)]
    dense = [[torch.randn((K, N), device="cuda").half() for K, N in SHAPES] for _ in range(LAYERS)]
    print("| M | cuBLAS FP16 | one by one | dependent | saved |\n|---|---|---|---|---|")
    for M in BATCHES:
        cublas, alone, dependent = measure(M, packed, dense)
        print(f"| {M} | {cublas:.1f} | {alone:.1f} | {dependent:.1f} | {1 - dependent / alone:.0%} |", flush=True)


if __name__ == "__main__":
    main()
