"""Changes single expressions of the package and sees whether a quick test fails: how sharp the tests are.

    python tests/mutation.py copy ../mutants                 # the repository, without the data beside it
    python tests/mutation.py cover ../mutants tests/model    # and the others: which test runs which line
    python tests/mutation.py run ../mutants model            # a seeded sample; then --again, what survived
    python tests/mutation.py report ../mutants               # kill rates, and what survived

A mutant meets the tests that run its line, of all that were covered, then the others of their files; where none runs it
(at import, in another process), those that run its module; fastest first, `--seconds` of them. Not changed: messages,
docstrings, assertions, annotations. `mutants_judged.csv` holds survivors that no test without a GPU could see, and why.
`run` goes on where it stopped. Needs `pip install coverage`.
"""

import argparse
import ast
import csv
import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT, JUDGED = Path(__file__).parents[1], Path(__file__).with_name("mutants_judged.csv")
AREAS = {area: [f"fgaseg/{area}"] for area in ("model", "training", "data", "evaluation", "weights")}
AREAS["training"].append("fgaseg/vocabulary.py")
LEFT_OUT = ("reference.py", "cuda_graphs.py", "__init__.py")  # the oracle of the tests, what only a GPU runs, imports
PRELOADED = ("torchvision", "open_clip", "timm", "rich", "tifffile", "accelerate")  # once, not in every child
FIELDS = ["area", "file", "line", "before", "after", "outcome", "tests", "seconds"]
SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
    ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr,
}  # fmt: skip
OTHERS = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list", "amax": "amin", "argmax": "argmin"}
METHODS = {"relu", "sigmoid", "square", "abs", "sort", "strip", "lower", "clamp", "unique", "float", "round", "copy"}
SKIPPED = (ast.Raise, ast.Assert, ast.JoinedStr, ast.arg, ast.Import, ast.ImportFrom)


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in place of a node."""
    match node:
        case ast.Compare(left, [op], [right]) if type(op) in SWAPS:
            yield ast.Compare(left, [SWAPS[type(op)]()], [right])
        case ast.BinOp(left, op, right) if type(op) in SWAPS:
            yield ast.BinOp(left, SWAPS[type(op)](), right)
        case ast.AugAssign(target, op, value) if type(op) in SWAPS:
            yield ast.AugAssign(target, SWAPS[type(op)](), value)
        case ast.BoolOp(op, values):
            yield ast.BoolOp(SWAPS[type(op)](), values)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield operand
        case ast.If(test, body, orelse) | ast.IfExp(test, body, orelse):
            yield type(node)(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() as value):
            yield ast.Constant(value + 1)
        case ast.Constant(float() as value):
            yield ast.Constant(value * 2 or 1.0)
        case ast.Continue():
            yield ast.Break()
        case ast.Expr(ast.Call()):
            yield ast.Pass()
        case ast.Call():
            yield from of_call(node)


def of_call(node: ast.Call) -> Iterator[ast.AST]:
    function, args, keywords = node.func, node.args, node.keywords
    name = getattr(function, "attr", getattr(function, "id", ""))
    for one in keywords:
        yield ast.Call(function, args, [other for other in keywords if other is not one])
    if other := OTHERS.get(name):
        method = isinstance(function, ast.Attribute)
        yield ast.Call(ast.Attribute(function.value, other) if method else ast.Name(other), args, keywords)
    if isinstance(function, ast.Attribute) and name in METHODS and not isinstance(function.value, ast.Name):
        yield function.value
    elif args and isinstance(function, ast.Attribute) and ast.unparse(function.value) == "F":
        yield args[0]


def difference(old: str, new: str) -> tuple[str, str]:
    """Where two texts of one line differ, with what is around it."""
    first = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    start = max(first - 50, 0)
    return old[start : start + 120], new[start : start + 120]


class Changes(ast.NodeTransformer):
    """All that may be changed in a module, in `found`; the one of index `wanted` is."""

    def __init__(self, wanted: int | None = None):
        self.wanted, self.found = wanted, list[tuple[int, str, str]]()

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, SKIPPED) or ast.unparse(node).startswith(("log.", "warnings.", "TYPE_CHECKING")):
            return node
        for new in variants(node):
            self.found.append((node.lineno, *difference(*(" ".join(ast.unparse(x).split()) for x in (node, new)))))
            if len(self.found) - 1 == self.wanted:
                return new
        for field in ("body", "args", "value") if hasattr(node, "decorator_list") else node._fields:
            if field in ("annotation", "returns") or not hasattr(node, field):
                continue
            old = getattr(node, field)
            if isinstance(old, list):
                old[:] = [self.visit(one) if isinstance(one, ast.AST) else one for one in old]
            elif isinstance(old, ast.AST):
                setattr(node, field, self.visit(old))
        return node


def changed(source: str, wanted: int) -> str:
    return ast.unparse(ast.fix_missing_locations(Changes(wanted).visit(ast.parse(source))))


def mutants(tree: Path, area: str) -> list[tuple[str, int, int, str, str]]:
    """(file, index, line, before, after) of all."""
    files = [file for place in AREAS[area] for file in ([tree / place] if place.endswith(".py") else
             sorted((tree / place).rglob("*.py"))) if file.name not in LEFT_OUT]  # fmt: skip
    found = []
    for file in files:
        changes = Changes()
        changes.visit(ast.parse(file.read_text()))
        found += [(str(file.relative_to(tree)), i, *one) for i, one in enumerate(changes.found)]
    return found


class Recorder:
    """A pytest plugin that tells coverage which test runs, and keeps the seconds of each and which did not pass."""

    def __init__(self, coverage):
        self.coverage, self.seconds, self.bad = coverage, defaultdict(float), set()

    def pytest_runtest_logstart(self, nodeid):
        self.coverage.switch_context(nodeid)

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] += report.duration
        if not report.passed:
            self.bad.add(report.nodeid)


def cover(tree: Path, tests: list[str]) -> None:
    """Writes {"seconds": {test: s}, "lines": {file: {line: [tests]}}} of the tests that pass."""
    import coverage
    import pytest

    measured = coverage.Coverage(data_file=None, include=[f"{tree}/fgaseg/*"])
    recorder = Recorder(measured)
    measured.start()
    pytest.main(["-q", "-m", "not slow", "-p", "no:cacheprovider", *tests], plugins=[recorder])
    measured.stop()
    data, lines = measured.get_data(), {}
    for file in data.measured_files():
        lines[str(Path(file).relative_to(tree))] = {
            line: [one for one in tests if one and one not in recorder.bad]
            for line, tests in data.contexts_by_lineno(file).items()
        }
    seconds = {test: s for test, s in recorder.seconds.items() if test not in recorder.bad}
    number = len(list(tree.parent.glob("tests.*.json")))
    (tree.parent / f"tests.{number}.json").write_text(json.dumps({"seconds": seconds, "lines": lines}))


def all_covered(work: Path) -> dict:
    seconds, lines = {}, defaultdict(lambda: defaultdict(list))
    for file in work.glob("tests.*.json"):
        one = json.loads(file.read_text())
        seconds |= one["seconds"]
        for name, numbers in one["lines"].items():
            for number, tests in numbers.items():
                lines[name][number] += [test for test in tests if test not in lines[name][number]]
    return {"seconds": seconds, "lines": lines}


def chosen(covered: dict, file: str, line: int, most: float) -> list[str]:
    """The tests of a mutant, those of one file together."""
    lines, seconds = covered["lines"].get(file, {}), covered["seconds"]
    first = set(lines.get(str(line), [])) or {test for tests in lines.values() for test in tests}
    files, total, taken = {test.split("::")[0] for test in first}, 0.0, defaultdict(list)
    beside = [test for test in seconds if test not in first and test.split("::")[0] in files]
    for test in [*sorted(first, key=seconds.get), *sorted(beside, key=seconds.get)]:
        total += seconds[test] + 0.02
        if total > most and taken:
            break
        taken[test.split("::")[0]].append(test)
    return [test for file in sorted(taken, key=lambda one: sum(map(seconds.get, taken[one]))) for test in taken[file]]


def outcome_of(tree: Path, tests: list[str], limit: float) -> str:
    """Whether the tests pass in the tree as it is: survived, killed, timeout, or error where they do not run at all."""
    child = os.fork()
    if not child:
        os.setsid()
        out = os.open(tree.parent / "last.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1), os.dup2(out, 2)
        import pytest

        os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            absent = code in (4, 5) and "ERROR: not found" in (tree.parent / "last.log").read_text(errors="replace")
            return "error" if absent else "survived" if code == 0 else "killed"  # 4: the package is not imported, too
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"


def key(row: dict[str, str]) -> tuple[str, str, str, str]:
    return row["file"], row["line"], row["before"], row["after"]


def run(tree: Path, area: str, count: int, seed: int, seconds: float, minutes: float, again: bool) -> None:
    for module in PRELOADED:
        importlib.import_module(module)
    end, table = time.monotonic() + 60 * minutes, tree.parent / "mutants.csv"
    covered, every = all_covered(tree.parent), mutants(tree, area)
    rows = list(csv.DictReader(table.open())) if table.exists() else []
    known = {key(row): "judged" if again and is_judged(tree, row) else row["outcome"] for row in rows}
    picked = random.Random(seed).sample(every, min(count, len(every)))
    with table.open("a", newline="") as out:
        writer = csv.writer(out)
        if not rows:
            writer.writerow(FIELDS)
        for file, index, line, before, after in every if again else picked:
            outcome_before = known.get((file, str(line), before, after))
            if outcome_before != "survived" if again else outcome_before:
                continue
            if time.monotonic() > end:
                sys.exit("time is up: run again to go on")
            tests, started, source = chosen(covered, file, line, seconds), time.monotonic(), (tree / file).read_text()
            limit = 3 * sum(covered["seconds"][test] for test in tests) + 40
            try:
                (tree / file).write_text(changed(source, index))
                outcome = outcome_of(tree, tests, limit) if tests else "survived"
            finally:
                (tree / file).write_text(source)
            writer.writerow([area, file, line, before, after, outcome, len(tests), round(time.monotonic() - started)])
            out.flush()


def is_judged(tree: Path, row: dict[str, str]) -> bool:
    """Told by the text of the line, since its number changes."""
    code = (tree / row["file"]).read_text().splitlines()[int(row["line"]) - 1].strip()
    with JUDGED.open() as file:
        return any(
            (one["file"], one["code"], one["before"], one["after"]) == (row["file"], code, row["before"], row["after"])
            for one in csv.DictReader(file)
        )


def report(tree: Path) -> None:
    with (tree.parent / "mutants.csv").open() as file:
        last = {key(row): row for row in csv.DictReader(file)}
    counts: dict[str, Counter] = defaultdict(Counter)
    for row in last.values():
        if row["outcome"] == "survived" and is_judged(tree, row):
            row["outcome"] = "judged"
        counts[row["area"]][row["outcome"]] += 1
        counts["all"][row["outcome"]] += 1
        if row["outcome"] in ("survived", "error"):
            print(f"{row['outcome']} {row['file']}:{row['line']}: {row['before']}  ->  {row['after']}")
    for area, kinds in counts.items():
        killed, rest = kinds["killed"] + kinds["timeout"], kinds.total() - kinds["judged"]
        print(f"{area}: {killed} of {rest} killed ({killed / max(rest, 1):.0%}); {dict(kinds)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["copy", "cover", "run", "report"])
    parser.add_argument("work", type=Path)
    parser.add_argument("target", nargs="*", help="of cover: tests; of run: " + ", ".join(AREAS))
    for option, value in {"--count": 40, "--seed": 0, "--seconds": 40, "--minutes": 60}.items():
        parser.add_argument(option, type=float if option in ("--seconds", "--minutes") else int, default=value)
    parser.add_argument("--again", action="store_true", help="those that survived")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # with the changed file put back
    tree = given.work.resolve() / "tree"
    if given.what == "copy":
        shutil.rmtree(tree, ignore_errors=True)
        ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", "build", "*.egg-info")
        shutil.copytree(ROOT, tree, symlinks=True, ignore=ignored)
    elif given.what == "report":
        report(tree)
    else:
        os.chdir(tree)
        sys.path[:1] = [str(tree), str(tree / "tests")]
        sys.dont_write_bytecode = True
        os.environ.update(PYTHONPATH=str(tree), PYTHONDONTWRITEBYTECODE="1")
        if given.what == "cover":
            cover(tree, given.target)
        else:
            run(tree, given.target[0], given.count, given.seed, given.seconds, given.minutes, given.again)


if __name__ == "__main__":
    main()
