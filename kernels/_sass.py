"""What a kernel's machine code has in it, and how often its loops run, from the disassembly (nvdisasm -c)."""

import re
from collections import Counter
from dataclasses import dataclass

from ._ptx import Loop, Program, find_loops

# Machine code's names for the kinds of instruction of _ptx.KINDS.
_KINDS = re.compile(
    r"(?P<copy>LDGSTS)|(?P<load>LDG(?!DEPBAR))|(?P<store>STG)|(?P<bulk>UTMALDG|UBLKCP)|(?P<barrier>BAR\.SYNC)"
    r"|(?P<matrix>[HIQ]MMA|[HIQ]GMMA|UTC\w*MMA)|(?P<exponential>MUFU\.EX2)|(?P<fragments>LDSM)|(?P<atomic>ATOMG|RED)"
    r"|(?P<shared_load>LDS\b)|(?P<shared_store>STS\b)"
)
_LINE = re.compile(r"^\s*(?:/\*\w+\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)(.*);|(\.L\w+):)", re.MULTILINE)
_TARGET = re.compile(r"`\((\.L\w+)\)")


@dataclass(frozen=True)
class Run:
    """A loop of the machine code that does ``unrolled`` iterations of a loop of the PTX at once, so many ``times``."""

    loop: Loop
    source: Loop
    unrolled: int
    times: int


class Code:
    """The machine code of one kernel: its instructions' names and its loops."""

    def __init__(self, text: str) -> None:
        self.names: list[str] = []
        labels: dict[str, int] = {}
        to: dict[int, str] = {}  # labels, by the instruction that jumps there
        meeting: dict[str, str] = {}  # where BSYNC continues, by the register that BSSY has set
        open_ended = set()
        for guard, name, rest, label in _LINE.findall(text):
            here, target = len(self.names), _TARGET.search(rest)
            if label:
                labels[label] = here
                continue
            if name.startswith("BSSY") and target:
                meeting[rest.split(",")[0].strip()] = target[1]
            elif name.startswith("BSYNC") and (met := meeting.get(rest.strip())):
                to[here] = met
            elif target and name.startswith(("BRA", "CALL")):
                to[here] = target[1]
            always = name.startswith(("EXIT", "RET", "BSYNC")) or (name == "BRA" and rest.lstrip().startswith("`"))
            if guard or not always:
                open_ended.add(here)
            self.names.append(name)
        ends = [i for i, target in to.items() if labels[target] == i]  # a branch to itself follows the last instruction
        size = min(ends, default=len(self.names))
        del self.names[size:]
        jumps = {i: labels[target] for i, target in to.items() if i < size and labels[target] < size}
        waits = {i for i, name in enumerate(self.names) if "SYNCS" in name}
        self.kinds = [str(found.lastgroup) if (found := _KINDS.match(name)) else "" for name in self.names]
        self.loops = find_loops(self.kinds, jumps, open_ended, waits)

    def count(self, pattern: str) -> int:
        return len([name for name in self.names if re.search(pattern, name)])

    def matched(self, program: Program, executed: list[int]) -> list[Run]:
        """How often each loop runs in a thread that executes the PTX so often (``Program.executed``).

        Raises ValueError for a loop that is none of the PTX's.
        """
        runs: list[Run] = []
        _match(self.loops, program.loops, executed, runs)
        return runs

    def issued(self, program: Program, executed: list[int]) -> tuple[int, Counter[str]]:
        """Instructions that a warp issues which executes the PTX so often (``Program.executed``), and how many of each
        kind at most.

        Code that the PTX branches around is left out in proportion: its place in the machine code is not known.
        """
        runs = self.matched(program, executed)
        outside = set(range(len(executed))).difference(*(loop.body for loop in program.loops))
        around = set(range(len(self.names))).difference(*(loop.body for loop in self.loops))
        total = len(around) * sum(executed[i] for i in outside) / max(len(outside), 1)
        kinds = Counter(self.kinds[i] for i in around if self.kinds[i])
        for run in runs:
            most = executed[run.source.first] * len(run.source.own)
            share = sum(executed[i] for i in run.source.own) / most if most else 0.0
            total += run.times * len(run.loop.own) * share
            for kind, n in run.loop.kinds.items():
                kinds[kind] += run.times * n
        return round(total), kinds


def _match(loops: list[Loop], sources: list[Loop], executed: list[int], runs: list[Run]) -> None:
    """Pairs loops of machine code with those of the PTX, in their order where it is the same. ptxas may have split one
    into two, of which the first is unrolled, and may have left none of one that it unrolled completely."""
    at, last, left = 0, 0, 0  # the source of the loop before, how far that is unrolled, and what it leaves to the next
    for loop in loops:
        order = [*range(at, len(sources)), *range(at)]
        contents = {i: _content(sources[i], executed, flat=not loop.inner) for i in order}
        alike = [(i, *_alike(loop.kinds, content)) for i, content in contents.items()]
        fitting = [one for one in alike if one[1] and (one[0] != at or not last or one[1] < last)]
        if not fitting:
            raise ValueError(f"machine code: no loop of the PTX has {dict(loop.kinds)}")
        pair = max(fitting, key=lambda one: one[2])  # the first of the best
        left = left if last and pair[0] == at else executed[sources[pair[0]].first]
        at, last = pair[0], 1 if loop.inner else pair[1]  # one with a loop inside is not unrolled
        runs.append(Run(loop, sources[at], last, left // last))
        left %= last
        _match(loop.inner, sources[at].inner, executed, runs)


def _content(source: Loop, executed: list[int], flat: bool) -> Counter[str]:
    """The kinds in one iteration, with those of inner loops if ``flat``: then they are unrolled."""
    total = Counter(source.kinds)
    if flat and executed[source.first]:
        for one in source.inner:
            for kind, n in _content(one, executed, flat).items():
                total[kind] += n * executed[one.first] // executed[source.first]
    return total


def _alike(a: Counter[str], b: Counter[str]) -> tuple[int, float]:
    """The integer n for which a is most nearly n b, 0 for none, and the share of the kinds of which a has n times as
    many. ptxas may have merged or moved some instructions, so kinds disagree: the ratio of most counts, the largest of
    several."""
    kinds = a.keys() | b.keys()
    if not kinds:
        return 1, 1.0
    ratios = Counter(-(-a[kind] // b[kind]) for kind in kinds if a[kind] and b[kind])
    ratio = max(ratios, key=lambda ratio: (ratios[ratio], ratio), default=0)
    exact = [kind for kind in kinds if a[kind] == ratio * b[kind]]
    return ratio, (ratios[ratio] + len(exact)) / (2 * len(kinds))
