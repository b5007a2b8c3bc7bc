"""The 4-bit kernels of other projects, called the way their authors call them; see docs/peers.md.

One module a library. None is imported before one of its backends is loaded onto a device, and none is a dependency:
what is not installed says so in `missing()`, with the one command that brings it.
"""
