"""One product of marlin or marlin_sparse on a GPU: whether it is right, and whether anything around it changes a bit.

The kernels' tests say for which shapes, tiles and grids; what is done with each stands here once.
"""

import time

import torch

from marlin_bench.backends import marlin, marlin_sparse
from marlin_bench.check import check_output, fault, poison


def random(*shape, seed=0, scale=1.0):
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(*shape, device="cuda", generator=generator) * scale


def relative_error(C, expected):
    """mean|Δ| / mean|expected|."""
    return ((C.double() - expected).abs().mean() / expected.abs().mean()).item()


class Draw:
    """Reproducible choices for shapes drawn at random."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def pick(self, *options):
        return options[self.between(0, len(options))]

    def between(self, first, end):
        return int(torch.randint(first, end, (), generator=self.generator))


class Case:
    """One product: operands, the launch, and what it must give."""

    def __init__(self, M, weights, *, backend=None, bias=False, choice=None, activations=None):
        self.backend = backend or self.default()
        self.weights = weights
        self.packed = self.backend.pack(weights)
        dtype = self.backend.dtype
        self.A = random(M, weights.K, seed=1).to(dtype) if activations is None else activations.to(dtype)
        self.C = torch.full((M, weights.N), float("nan"), device="cuda", dtype=dtype)
        self.bias = random(weights.N, seed=2).to(dtype) if bias else None
        operands = self.packed_operands(self.packed)
        self.plan = self.make_plan(operands, M, weights.N, weights.K, self.A.device, choice)
        self.launch = self.product(self.plan, self.packed, self.A, self.C, self.bias)

    def dense(self):
        """The weights that the kernel computes with, in float64."""
        columns = self.packed.reference or self.weights.dequantized
        return columns(slice(None)).double()

    def expected(self):
        product = self.A.double() @ self.dense()
        return product if self.bias is None else product + self.bias.double()

    def check(self):
        """Launch once on a poisoned output: right, by the rule that records are held to. What came out."""
        poison(self.C)
        self.launch()
        reason = fault(check_output(self.C, self.expected(), self.backend.tolerance, "before"))
        assert reason is None, reason
        return self.C.clone()

    def check_again_and_again(self, times):
        """Right at first, and after that the same bits each time, with nothing reset in between."""
        first = self.check()
        same = torch.ones((), dtype=torch.bool, device="cuda")
        for _ in range(times):
            poison(self.C)
            self.launch()
            same &= torch.eq(self.C, first).all()
        assert same

    def check_on_any_workspace(self, *counts):
        """Whatever a dead launch left in sums and counters, garbage or one of `counts`, changes nothing."""
        first = self.check()
        workspace = self.launch.workspace
        garbage = torch.randint(-(2**63), 2**63 - 1, workspace.counters.shape, device="cuda", dtype=torch.int64)
        for content in (garbage, *(torch.full_like(workspace.counters, count) for count in counts)):
            workspace.counters.copy_(content)
            workspace.sums.fill_(float("nan"))
            poison(self.C)
            self.launch()
            assert torch.equal(self.C, first)

    def check_replayed(self):
        """Three launches in a graph, replayed."""
        first = self.check()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(3):
                self.launch()
        for _ in range(20):
            poison(self.C)
            graph.replay()
            assert torch.equal(self.C, first)

    def check_beside_a_neighbour(self, free):
        """Another kernel holds all SMs but `free`, with all their shared memory, until the product is done."""
        import cupy

        first = self.check()
        properties = torch.cuda.get_device_properties(0)
        sleeper = cupy.RawModule(code=SLEEPER).get_function("sleeper")
        shared = properties.shared_memory_per_block_optin
        sleeper.max_dynamic_shared_size_bytes = shared
        release = torch.zeros(1, dtype=torch.int32).pin_memory()
        holder, worker = torch.cuda.Stream(), torch.cuda.Stream()
        torch.cuda.synchronize()
        with cupy.cuda.ExternalStream(holder.cuda_stream):
            sleeper((properties.multi_processor_count - free,), (32,), (release.data_ptr(),), shared_mem=shared)
        poison(self.C)
        done = torch.cuda.Event()
        torch.cuda.current_stream().synchronize()
        with torch.cuda.stream(worker):
            self.launch()
            done.record()
        for _ in range(2000):
            if done.query():
                break
            time.sleep(0.001)
        finished = done.query()
        release.fill_(1)
        torch.cuda.synchronize()
        assert finished
        assert torch.equal(self.C, first)


class MarlinCase(Case):
    """A product of marlin."""

    default = marlin.Marlin
    product = marlin.Product
    make_plan = staticmethod(marlin.make_plan)
    packed_operands = staticmethod(marlin.packed_operands)


class SparseCase(Case):
    """A product of marlin_sparse."""

    default = marlin_sparse.MarlinSparse
    product = marlin_sparse.SparseProduct
    make_plan = staticmethod(marlin_sparse.make_plan)
    packed_operands = staticmethod(marlin_sparse.packed_operands)


SLEEPER = r"""
extern "C" __global__ void sleeper(volatile int* release) {
  extern __shared__ int held[];
  held[0] = 0;
  for (int naps = 0; naps < 4000000 && *release == 0; ++naps) __nanosleep(1000);
}
"""


def check_on_two_streams(first, second):
    """Two products at once, fifty times over."""
    cases = first, second
    alone = [case.check() for case in cases]
    streams = [torch.cuda.Stream() for _ in cases]
    torch.cuda.synchronize()
    for _ in range(50):
        for case, stream in zip(cases, streams, strict=True):
            with torch.cuda.stream(stream):
                case.launch()
    torch.cuda.synchronize()
    for case, output in zip(cases, alone, strict=True):
        assert torch.equal(case.C, output)


def check_layer_in_a_graph(layer, x):
    """A captured call of a linear layer follows its input, which is `x`'s memory, with the bits of a plain call."""
    layer(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer(x)
    x.copy_(random(*x.shape, seed=5))
    for _ in range(3):
        graph.replay()
        assert torch.equal(y, layer(x))


def check_layer_compiled(layer, *inputs):
    """Compiled as a whole, a linear layer gives the bits of a plain call."""
    model = torch.nn.Sequential(layer, torch.nn.ReLU())
    for x in inputs:
        assert torch.equal(torch.compile(model, fullgraph=True)(x), model(x))
