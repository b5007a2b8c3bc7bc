"""A backend that another package declares and that cannot be imported: listed with the reason, never a traceback."""

from __future__ import annotations

from marlin_bench.backends.protocol import Backend, Choice, Launch, Missing, Packed


def unloadable(name: str, distribution: str | None, error: Exception) -> type[Backend]:
    """A stand-in for the backend `name` of `distribution`, which says why it is missing."""
    reason = f"its entry point cannot be loaded ({' '.join(str(error).split())})"
    again = f"pip install --force-reinstall --no-deps {distribution}"
    remedy = again if distribution else "reinstall the package that declares it"

    class Unloadable(Backend):
        """Missing, whatever is asked of it."""

        summary = "another package's, which cannot be loaded"

        def missing(self) -> Missing:
            return Missing(reason, remedy)

        def version(self) -> str:
            return "missing"

        def pack(self, weights: object) -> Packed:
            raise RuntimeError(reason)

        def launch(self, packed: Packed, activations: object, output: object, choice: Choice) -> Launch:
            raise RuntimeError(reason)

    Unloadable.name = name
    return Unloadable
