"""How often each instruction of a kernel is executed, from its PTX and the arguments of a launch, without a GPU.

One thread is followed through the integers on which branches depend: sizes, loop counters, the numbers of block and
thread. Everything else is left out, and what was loaded is unknown unless the launch's tensors hold it. A branch that
depends on something unknown is taken to execute what it guards, so that counts are the most that a thread can execute;
a loop that does is an error. The instructions are those of NVIDIA's "Parallel Thread Execution ISA".
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

PARAMETERS = 1 << 60  # an address: the first parameter's; the others follow at distances of 64 KB
MOST_BLOCKS = 2_000_000  # basic blocks that are followed before a loop counts as endless
# What both PTX and machine code (_sass.py) have one instruction for: by these, loops of the two are recognised.
KINDS = {
    "load": r"ld\.global|ld\.volatile\.global|ld\.relaxed\.\w+\.global",
    "store": r"st\.global",
    "copy": r"cp\.async\.c[ag]",
    "bulk": r"cp\.async\.bulk\.(tensor|shared)",
    "matrix": r"mma\.sync|wgmma\.mma_async|tcgen05\.mma",
    "barrier": r"bar\.sync|barrier\.sync",
    "exponential": r"ex2\.approx",
    "fragments": r"ldmatrix",
    "shared_load": r"ld\.shared",
    "shared_store": r"st\.shared",
    "atomic": r"atom\.|red\.global",
}
_KINDS = re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in KINDS.items()))
_INTEGER = re.compile(r"[sub]\d+|pred")  # types; bf16 is none
_STATEMENT = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z][\w:]*(?:\.[\w:]+)*)\s*(.*)", re.DOTALL)
_BYTES = re.compile(r"(?:\.v(\d))?\.[bfsu](\d+)$")


@dataclass(frozen=True)
class Instruction:
    """One PTX instruction; ``guard`` is the predicate under which it is executed, or ""."""

    guard: str
    negated: bool
    op: str
    operands: tuple[str, ...]

    @cached_property
    def kind(self) -> str:
        found = _KINDS.match(self.op)
        return str(found.lastgroup) if found else ""

    @cached_property
    def written(self) -> list[str]:
        if not self.operands or self.op.startswith(("st.", "bra", "red.", "bar", "cp.")):
            return []
        return re.findall(r"%\w+(?:\.\w)?", self.operands[0])

    @cached_property
    def read(self) -> list[str]:
        sources = [self.guard, *self.operands[1:]] if self.guard else self.operands[1:]
        return re.findall(r"%\w+", " ".join(sources))

    @property
    def operations(self) -> int:
        """Floating-point operations of a matrix instruction, of all threads that execute it together."""
        shape = re.search(r"\.m(\d+)n(\d+)k(\d+)", self.op) if self.kind == "matrix" else None
        return 2 * int(shape[1]) * int(shape[2]) * int(shape[3]) if shape else 0


@dataclass
class Loop:
    """A loop with its instructions, by their numbers, ``own`` outside of the loops within it."""

    first: int
    body: set[int]
    inner: list["Loop"] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)  # of its own instructions

    @property
    def own(self) -> set[int]:
        return self.body.difference(*(one.body for one in self.inner))


class Program:
    """The instructions and loops of the one kernel in a PTX text."""

    def __init__(self, ptx: str, name: str) -> None:
        head = re.search(rf"\.entry {re.escape(name)}\((.*?)\)[^{{]*\{{", ptx, re.DOTALL)
        if head is None:
            raise ValueError(f"PTX: no kernel '{name}'")
        self.parameters = re.findall(r"\.param [^\n]*?(\w+)(?:\[\d+\])?(?:,|\s*$)", head[1], re.MULTILINE)
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        text = re.sub(
            r"//[^\n]*|^\s*\.(?:loc|pragma|file|reg|shared|local)[^\n]*",
            "",
            _until_closed(ptx[head.end() :]),
            flags=re.MULTILINE,
        )
        text = re.sub(r"(\$?\w+):(?=\s)", r"\1:;", text)
        for statement in map(str.strip, text.split(";")):
            statement = statement.lstrip("{} \t\n")
            if statement.endswith(":"):
                self.labels[statement[:-1].split()[-1]] = len(self.instructions)
            elif statement and (found := _STATEMENT.match(statement)) and statement[0] != ".":
                operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", found[4])
                one = Instruction(found[2] or "", bool(found[1]), found[3], tuple(x.strip() for x in operands))
                self.instructions.append(one)
        code = self.instructions
        jumps = {i: self.labels[one.operands[-1]] for i, one in enumerate(code) if one.op.startswith("bra")}
        open_ended = {i for i, one in enumerate(code) if one.guard or not one.op.startswith(("bra", "ret", "exit"))}
        waits = {i for i, one in enumerate(code) if "mbarrier" in one.op}
        self.loops = find_loops([one.kind for one in code], jumps, open_ended, waits)

    def waits(self, first: int, last: int) -> bool:
        return any("mbarrier" in one.op for one in self.instructions[first : last + 1]) and last - first < 8

    def executed(
        self,
        parameters: Sequence[bytes],
        special: Mapping[str, int],
        memory: Callable[[int, int], int | None],
        of_data: int = 0,
    ) -> list[int]:
        """How often a thread executes each instruction.

        parameters  of the kernel, as they lie in memory
        special     special registers, such as "%ctaid.x" and "%tid.x"
        memory      of an address and a number of bytes: what is there, or None if that is unknown
        of_data     how often a loop runs whose end depends on something unknown; with 0 that is an error
        """
        return _Thread(self, parameters, special, memory, of_data).follow()


def find_loops(kinds: Sequence[str], jumps: Mapping[int, int], open_ended: set[int], waits: set[int]) -> list[Loop]:
    """The outermost loops of a program, the others within them: what leads back to an instruction through which every
    way to it goes ("natural loops").

    kinds       of all instructions
    jumps       targets, by the instruction that jumps
    open_ended  instructions after which the next one may be executed
    waits       for a barrier in memory: a few instructions around one are no loop
    """
    starts = {0, *jumps.values(), *(i + 1 for i in range(len(kinds)) if i in jumps or i not in open_ended)}
    blocks = list(pairwise([*sorted(starts - {len(kinds)}), len(kinds)]))
    number = {start: n for n, (start, _) in enumerate(blocks)}
    before: list[set[int]] = [set() for _ in blocks]  # by block, those that lead to it
    reached, left = {0}, [0]  # subroutines are not, and are no part of a loop
    while left:
        n = left.pop()
        last = blocks[n][1] - 1
        after = {number[jumps[last]]} if last in jumps else set()
        after |= {n + 1} if last in open_ended and n + 1 < len(blocks) else set()
        for other in after:
            before[other].add(n)
        left += after - reached
        reached |= after
    through = _through(before)
    bodies: dict[int, set[int]] = {}
    for head in range(len(blocks)):
        for tail in before[head]:
            if through[tail] >> head & 1:
                bodies.setdefault(head, {head}).update(_leading_to(tail, head, before))
    found = [Loop(blocks[head][0], {i for n in body for i in range(*blocks[n])}) for head, body in bodies.items()]
    return _nested([one for one in found if len(one.body) > 8 or not waits & one.body], kinds)


def _through(before: list[set[int]]) -> list[int]:
    """By block, those through which every way to it goes (its dominators), as bits."""
    every = (1 << len(before)) - 1
    found, changed = [1] + [every] * (len(before) - 1), True
    while changed:
        changed = False
        for n in range(1, len(before)):
            common = every
            for other in before[n]:
                common &= found[other]
            if common | 1 << n != found[n]:
                found[n], changed = common | 1 << n, True
    return found


def _leading_to(tail: int, head: int, before: list[set[int]]) -> set[int]:
    """The blocks from which ``tail`` is reached without going through ``head``."""
    found, left = {head}, [tail]
    while left:
        if (n := left.pop()) not in found:
            found.add(n)
            left += before[n]
    return found


def _nested(loops: list[Loop], kinds: Sequence[str]) -> list[Loop]:
    outermost: list[Loop] = []
    for one in sorted(loops, key=lambda one: one.first):
        around = [other for other in loops if other is not one and one.first in other.body and one.body < other.body]
        (min(around, key=lambda other: len(other.body)).inner if around else outermost).append(one)
    for one in loops:
        one.kinds = Counter(kinds[i] for i in one.own if kinds[i])
    return outermost


def _until_closed(text: str) -> str:
    """The text up to the brace that closes one before it; assembly within PTX has braces too."""
    depth = 1
    for found in re.finditer(r"[{}]", text):
        depth += 1 if found[0] == "{" else -1
        if not depth:
            return text[: found.start()]
    raise ValueError("PTX: a kernel without an end")


class _Thread:
    def __init__(self, program: Program, parameters, special, memory, of_data: int) -> None:
        self.program, self.memory, self.of_data = program, memory, of_data
        self.left: dict[int, int] = {}  # iterations, by the branch at the end of a loop that depends on data
        self.registers: dict[str, int | None] = dict(special)
        self.parameters = parameters
        self.addresses = {name: PARAMETERS + (i << 16) for i, name in enumerate(program.parameters)}
        code = program.instructions
        needed = {one.guard for one in code if one.op.startswith("bra")}
        while True:  # what branches depend on, directly or not
            more = {r for one in code if needed.intersection(one.written) for r in one.read} - needed
            if not more:
                break
            needed |= more
        self.needed = [bool(needed.intersection(one.written)) for one in code]

    def follow(self) -> list[int]:
        code, starts = self.program.instructions, {0, *self.program.labels.values()}
        starts |= {i + 1 for i, one in enumerate(code) if one.op.startswith(("bra", "ret", "exit"))}
        ends = sorted(starts | {len(code)})
        following = dict(pairwise(ends))
        entered: Counter[int] = Counter()
        at = 0
        for _ in range(MOST_BLOCKS):
            if at >= len(code):
                break
            entered[at] += 1
            at = self._block(at, following[at])
        else:
            raise ValueError(f"PTX: a loop did not end within {MOST_BLOCKS} blocks")
        counts = [0] * len(code)
        for start, times in entered.items():
            counts[start : following[start]] = [times] * (following[start] - start)
        return counts

    def _block(self, start: int, end: int) -> int:
        """Executes a basic block and returns where the next one begins."""
        code = self.program.instructions
        for i in range(start, end):
            one = code[i]
            if one.op.startswith(("ret", "exit")):
                if self._holds(one):
                    return len(code)
            elif one.op.startswith("bra"):
                target, taken = self.program.labels[one.operands[-1]], self._holds(one)
                if taken is None and target <= i and not self.program.waits(target, i):
                    if not self.of_data:
                        raise ValueError(f"PTX: how often the loop at {one.operands[-1]} runs depends on data")
                    self.left[i] = (self.left.get(i) or self.of_data) - 1
                    taken = self.left[i] > 0
                if taken:
                    return target
            elif self.needed[i]:
                self._evaluate(one)
        return end

    def _holds(self, one: Instruction) -> bool | None:
        if not one.guard:
            return True
        value = self.registers.get(one.guard)
        return None if value is None else bool(value) != one.negated

    def _evaluate(self, one: Instruction) -> None:
        holds = self._holds(one)
        if holds is False:
            return
        values = None if holds is None else self._results(one)
        for name, value in zip(one.written, values or [None] * len(one.written), strict=False):
            self.registers[name] = value

    def _results(self, one: Instruction) -> list[int | None] | None:
        name, *modifiers = one.op.split(".")
        if name == "ld":
            return self._loaded(one)
        if name == "setp":
            return self._compared(one, modifiers)
        kind = modifiers[-1] if modifiers else ""
        if name == "mov" and "{" in "".join(one.operands):
            return _repacked(one, [self._value(x, "b64") for x in re.findall(r"[%\w.-]+", one.operands[1])], kind)
        if not _INTEGER.fullmatch(kind) or name not in _OPERATIONS:
            return None
        wide = 2 if "wide" in modifiers else 1
        sources = [self._value(x, "s64" if x.lstrip("-").isdigit() else kind) for x in one.operands[1:]]
        if wide == 2 and name == "mad":
            sources[2] = self._value(one.operands[3], "s64")
        if name == "cvt":
            if not _INTEGER.fullmatch(modifiers[-2]):
                return None
            kind = modifiers[-2]
        if name == "selp":
            sources[2] = self.registers.get(one.operands[3])
        if name == "shfl" and ("idx" not in modifiers or sources[1] != 0):
            return None  # another thread's
        known = [x for x in sources if x is not None]
        if len(known) < len(sources):
            return _with_unknowns(name, kind, sources)
        bits = _bits(kind) * wide
        if "hi" in modifiers and name in ("mul", "mad"):
            high = (known[0] * known[1]) >> _bits(kind)
            return [(high + sum(known[2:])) & ((1 << bits) - 1)]
        return [_OPERATIONS[name](*known, bits=_bits(kind)) & ((1 << bits) - 1)]

    def _compared(self, one: Instruction, modifiers: list[str]) -> list[int | None] | None:
        kind = modifiers[-1]
        if kind[0] not in "sub":
            return None
        a, b = (self._value(x, kind) for x in one.operands[1:3])
        if a is None or b is None:
            return None
        result = _COMPARISONS[modifiers[0]](a, b)
        if len(one.operands) > 3:
            other = self.registers.get(one.operands[3].lstrip("!"))
            if other is None:
                return None
            other = bool(other) != one.operands[3].startswith("!")
            result = {"and": result and other, "or": result or other, "xor": result != other}[modifiers[1]]
        return [int(result), int(not result)]

    def _loaded(self, one: Instruction) -> list[int | None] | None:
        found = re.match(r"\[\s*(%?\w+)\s*(?:\+\s*(-?\d+))?\s*\]", one.operands[1])
        if found is None:
            return None
        size, offset = _BYTES.search(one.op), int(found[2] or 0)
        if size is None:
            return None
        width = int(size[2]) // 8
        places = [offset + i * width for i in range(int(size[1] or 1))]
        address = self._value(found[1], "b64")
        if address is None:
            return None
        if one.op.startswith("ld.param"):
            return [self._parameter(address + at - PARAMETERS, width) for at in places]
        if not one.op.startswith("ld.global"):
            return None
        return [self.memory(address + at, width) for at in places]

    def _parameter(self, offset: int, width: int) -> int | None:
        number, at = divmod(offset, 1 << 16)
        found = self.parameters[number][at : at + width] if number < len(self.parameters) else b""
        return int.from_bytes(found, "little") if found else None

    def _value(self, operand: str, kind: str) -> int | None:
        """An operand as an integer of this type; registers hold bits."""
        negated, operand = operand.startswith("!"), operand.lstrip("!")
        if operand in self.addresses:
            value: int | None = self.addresses[operand]
        elif operand.startswith("%"):
            value = self.registers.get(operand)
        else:
            value = int(operand.rstrip("U"), 0) if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", operand) else None
        if value is None or kind == "pred":
            return None if value is None else int(bool(value) != negated)
        bits = _bits(kind)
        value &= (1 << bits) - 1
        return value - (1 << bits) if kind[0] == "s" and value >> (bits - 1) else value


def _bits(kind: str) -> int:
    return 1 if kind == "pred" else int(kind[1:])


def _quotient(a: int, b: int, bits: int) -> int:
    return 0 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _remainder(a: int, b: int, bits: int) -> int:
    return a - b * _quotient(a, b, bits)


def _extracted(a: int, position: int, length: int, bits: int) -> int:
    field = (a & ((1 << bits) - 1)) >> position & ((1 << length) - 1)
    return field - (1 << length) if a < 0 and length and field >> (length - 1) else field


def _repacked(one: Instruction, values: list[int | None], kind: str) -> list[int | None] | None:
    """mov between a register and a vector of its parts."""
    parts = len(one.written)
    if any(x is None for x in values):
        return None
    if parts > 1:
        width = _bits(kind) // parts
        return [values[0] >> (i * width) & ((1 << width) - 1) for i in range(parts)]  # type: ignore[operator]
    width = _bits(kind) // len(values)
    return [sum((x & ((1 << width) - 1)) << (i * width) for i, x in enumerate(values))]  # type: ignore[operator,misc]


def _with_unknowns(name: str, kind: str, sources: list[int | None]) -> list[int | None] | None:
    """What follows although a source is unknown: false and x is false, true or x is true."""
    absorbing = {"and": 0, "or": 1 if kind == "pred" else None}.get(name)
    return [absorbing] if absorbing is not None and absorbing in sources else None


_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    **dict.fromkeys(("lt", "lo"), lambda a, b: a < b),
    **dict.fromkeys(("le", "ls"), lambda a, b: a <= b),
    **dict.fromkeys(("gt", "hi"), lambda a, b: a > b),
    **dict.fromkeys(("ge", "hs"), lambda a, b: a >= b),
}
_OPERATIONS: dict[str, Callable[..., int]] = {
    "mov": lambda a, bits: a,
    "cvt": lambda a, bits: a,
    "cvta": lambda a, bits: a,
    "shfl": lambda a, lane, *_, bits: a,
    "add": lambda a, b, bits: a + b,
    "sub": lambda a, b, bits: a - b,
    "mul": lambda a, b, bits: a * b,
    "mad": lambda a, b, c, bits: a * b + c,
    "div": _quotient,
    "rem": _remainder,
    "min": lambda a, b, bits: min(a, b),
    "max": lambda a, b, bits: max(a, b),
    "neg": lambda a, bits: -a,
    "abs": lambda a, bits: abs(a),
    "and": lambda a, b, bits: a & b,
    "or": lambda a, b, bits: a | b,
    "xor": lambda a, b, bits: a ^ b,
    "not": lambda a, bits: ~a,
    "shl": lambda a, b, bits: a << min(b, 64),
    "shr": lambda a, b, bits: a >> min(b, 64),
    "bfe": _extracted,
    "selp": lambda a, b, p, bits: a if p else b,
    "popc": lambda a, bits: a.bit_count(),
    "clz": lambda a, bits: bits - a.bit_length(),
}
