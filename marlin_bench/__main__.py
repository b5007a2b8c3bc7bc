"""`python -m marlin_bench`: the command line from a bare checkout."""

from marlin_bench.cli import main

main()
