"""marlin-bench: how close to the machine's limit is this 4-bit GEMM kernel, and did it get worse?"""

__version__ = "0.1.0"
