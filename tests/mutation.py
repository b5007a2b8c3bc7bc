"""Reverse every comparison of the modules that judge, one at a time: some test must notice each.

python tests/mutation.py [module …]

The tests are collected and run once, noting which functions each of them calls and how long it takes. Then each mutant
gets a forked process, in which the function is exchanged for one with a reversed comparison (< for >=, is for is not,
in for not in) and the tests that call it run, the quickest first, until one fails. Ends with 1 when a mutant survives.
"""

import ast
import importlib
import os
import signal
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from types import CodeType, FunctionType

import pytest

ROOT = Path(__file__).parent.parent
MODULES = ("gate", "gate_case", "gate_values", "gate_changes", "compare", "judgement", "verdict", "bisect")
TESTS = ("test_compare.py", "test_gate.py", "test_cli_gate.py", "test_baseline.py", "test_bisect.py")
PROCESSES = os.cpu_count() or 1
LEAST_PATIENCE_S = 60
PATIENCE = 10
"""A mutant that makes its tests take so many times as long hangs, and is noticed too."""

REVERSED = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


def code_of(code, line):
    """The function among the constants of a module's or class's code that starts at `line`, at any depth of classes."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            if inner.co_firstlineno == line:
                return inner
            found = code_of(inner, line)
            if found is not None:
                return found
    return None


def functions_of(module):
    """The functions and methods of a module by their first line, properties too."""
    found = {}
    holders = [module, *(one for one in vars(module).values() if isinstance(one, type))]
    for holder in holders:
        for value in list(vars(holder).values()):
            for function in (value, *(getattr(value, name, None) for name in ("fget", "func", "__func__"))):
                if isinstance(function, FunctionType) and function.__module__ == module.__name__:
                    found[function.__code__.co_firstlineno] = function
    return found


class Mutant:
    """One reversed comparison: where it is, and how to put it into the living function."""

    def __init__(self, module, tree, node, place, function):
        self.module, self.function = module, function
        before = node.ops[place]
        text = ast.unparse(node)
        node.ops[place] = REVERSED[type(before)]()
        self.name = f"{Path(module.__file__).name}:{node.lineno}: {text} -> {ast.unparse(node)}"
        whole = compile(tree, module.__file__, "exec")
        self.code = code_of(whole, function.__code__.co_firstlineno)
        node.ops[place] = before

    def apply(self):
        self.function.__code__ = self.code


def outer_functions(tree):
    """The functions of a module and of its classes; what is nested in a function belongs to it."""
    for node in tree.body:
        for one in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(one, ast.FunctionDef):
                yield one


def mutants_of(name):
    module = importlib.import_module(f"marlin_bench.{name}")
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    living = functions_of(module)
    for outer in outer_functions(tree):
        first = min([outer.lineno, *(one.lineno for one in outer.decorator_list)])
        for node in ast.walk(outer):
            if isinstance(node, ast.Compare):
                for place in range(len(node.ops)):
                    yield Mutant(module, tree, node, place, living[first])


class Plugin:
    """Runs the collected tests once for what they call, then the mutants."""

    def __init__(self, modules):
        self.modules = modules
        self.callers = {}
        self.survivors = []
        self.count = 0

    def pytest_runtestloop(self, session):
        if session.testsfailed:
            raise session.Interrupted("the tests cannot be collected")
        mutants = [mutant for name in self.modules for mutant in mutants_of(name)]
        self.count = len(mutants)
        wanted = {mutant.function.__code__ for mutant in mutants}
        for item in session.items:
            self._watch(item, wanted)
        waiting, running = list(reversed(mutants)), {}
        while waiting or running:
            while waiting and len(running) < PROCESSES:
                mutant = waiting.pop()
                running[self._start(mutant)] = mutant
            pid, status = os.wait()
            if status == 0:
                self.survivors.append(running[pid])
            del running[pid]
        return True

    def _watch(self, item, wanted):
        called = set()

        def profile(frame, event, _argument):
            if event == "call" and frame.f_code in wanted:
                called.add(frame.f_code)

        began = time.perf_counter()
        sys.setprofile(profile)
        passed = runs(item)
        sys.setprofile(None)
        if not passed:
            pytest.exit(f"{item.nodeid} fails without any mutant", returncode=2)
        for code in called:
            self.callers.setdefault(code, []).append((time.perf_counter() - began, item))

    def _start(self, mutant):
        tests = sorted(self.callers.get(mutant.function.__code__, []), key=lambda pair: pair[0])
        pid = os.fork()
        if pid == 0:
            signal.alarm(LEAST_PATIENCE_S + int(PATIENCE * sum(seconds for seconds, _ in tests)))
            mutant.apply()
            os._exit(0 if all(runs(item) for _, item in tests) else 1)
        return pid


def runs(item):
    """Whether a test passes, with its fixtures; nothing is printed."""
    from _pytest.runner import runtestprotocol

    with open(os.devnull, "w", encoding="utf-8") as silent, redirect_stdout(silent):
        reports = runtestprotocol(item, log=False, nextitem=None)
    return not any(report.failed for report in reports)


def main():
    plugin = Plugin(sys.argv[1:] or MODULES)
    began = time.perf_counter()
    tests = [str(ROOT / "tests" / name) for name in TESTS]
    quiet = ["-o", "addopts=--import-mode=importlib", "-pno:cacheprovider", "-pno:terminal", "-pno:timeout"]
    code = pytest.main([*quiet, *tests], [plugin])
    if code not in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
        sys.exit(2)
    for mutant in plugin.survivors:
        print(f"survives: {mutant.name}")
    killed = plugin.count - len(plugin.survivors)
    print(f"{killed} of {plugin.count} reversed comparisons are noticed, {time.perf_counter() - began:.0f} s")
    sys.exit(1 if plugin.survivors or not plugin.count else 0)


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    main()
