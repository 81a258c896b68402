"""Makes the mutants of a module: copies of its source with one small change each.

The operators for Python's expressions are those of cosmic-ray. The operators of this module add
what Foldlog decides with: statements of SQL, patterns, deleted statements and exchanged functions.
Annotations, docstrings, log lines, assertions and texts of errors stay as they are, because they
decide nothing.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterator
from typing import NamedTuple

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator

#: One natural exchange for each operator of the language. The other exchanges of cosmic-ray mostly
#: make programs that fail at once.
COSMIC_RAY = [
    *(
        f"core/ReplaceBinaryOperator_{pair}"
        for pair in (
            *("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "Mod_Mul", "Pow_Mul"),
            *("BitOr_BitAnd", "BitAnd_BitOr", "BitXor_BitAnd", "LShift_RShift", "RShift_LShift"),
        )
    ),
    *(
        f"core/ReplaceComparisonOperator_{pair}"
        for pair in (
            *("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Lt_GtE", "LtE_Gt", "Gt_LtE", "GtE_Lt"),
            *("Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is"),
        )
    ),
    *("core/AddNot", "core/ReplaceUnaryOperator_Delete_Not", "core/ReplaceUnaryOperator_USub_UAdd"),
    *("core/ReplaceAndWithOr", "core/ReplaceOrWithAnd", "core/NumberReplacer"),
    *("core/ReplaceTrueWithFalse", "core/ReplaceFalseWithTrue", "core/ZeroIterationForLoop"),
    *("core/ReplaceBreakWithContinue", "core/ReplaceContinueWithBreak"),
]

#: functions and methods, each with one that takes the same arguments
EXCHANGED = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "sorted": "list",
    "fullmatch": "match",
    "startswith": "endswith",
    "endswith": "startswith",
    "pop": "get",
    "setdefault": "get",
    "issubset": "issuperset",
    "isdisjoint": "issubset",
    "bisect_left": "bisect_right",
    "bisect_right": "bisect_left",
}

#: what is exchanged in a statement of SQL: (name, pattern, replacement)
SQL = [
    ("< is <=", r"(?<=\s)<(?=\s)", "<="),
    ("<= is <", r"(?<=\s)<=(?=\s)", "<"),
    ("> is >=", r"(?<=\s)>(?=\s)", ">="),
    (">= is >", r"(?<=\s)>=(?=\s)", ">"),
    ("<> is =", r"(?<=\s)<>(?=\s)", "="),
    ("= is <>", r"(?m)(?<=^   AND )(\S+) = ", r"\1 <> "),
    ("= is <>", r"(?<=WHERE )(\S+) = ", r"\1 <> "),
    ("no predicate", r"(?m)^ *AND [^()\n]*(?:\([^()\n]*\)[^()\n]*)*\n", ""),
    ("no predicate", r"(?m)(?<=WHERE )[^()\n]*(?:\([^()\n]*\)[^()\n]*)*$", "true"),
    ("AND is OR", r"(?<=\s)AND(?=\s)", "OR"),
    ("OR is AND", r"(?<=\s)OR(?=\s)", "AND"),
    ("no order", r"\n *ORDER BY [^\n()]*(?=\n)", ""),
    ("order reversed", r"(ORDER BY \w+(?:\.\w+)?)(?= DESC)? DESC", r"\1"),
    ("order reversed", r"(ORDER BY \w+(?:\.\w+)?)(?! DESC|\w|\.)", r"\1 DESC"),
    ("no limit", r"\n *LIMIT [^\n]*(?=\n)", ""),
    ("NOT EXISTS is EXISTS", r"NOT EXISTS", "EXISTS"),
    ("IS NULL is IS NOT NULL", r"IS NULL", "IS NOT NULL"),
    ("IS NOT NULL is IS NULL", r"IS NOT NULL", "IS NULL"),
    ("no lock", r"\n *FOR UPDATE[^\n]*(?=\n)", ""),
    ("no skip", r" SKIP LOCKED", ""),
    ("greatest is least", r"\bgreatest\(", "least("),
    ("least is greatest", r"\bleast\(", "greatest("),
    ("max is min", r"\bmax\(", "min("),
    ("min is max", r"\bmin\(", "max("),
    ("+ is -", r"(?<=\s)\+(?=\s)", "-"),
    ("- is +", r"(?<=\s)-(?=\s)", "+"),
    ("a column is left", r"(?m)^       (\w+) = [^\n]*,\n", ""),
    ("the old value stays", r"(\w+) = excluded\.(\w+)", r"\1 = \1"),
    ("nothing instead of an update", r"DO NOTHING", "DO UPDATE SET space = excluded.space"),
    ("true is false", r"\btrue\b", "false"),
    ("DISTINCT is dropped", r"DISTINCT ", ""),
    ("another bound", r"(?<=[\s(])(\d+)(?=[\s)])", lambda found: str(int(found[0]) + 1)),
]
IS_SQL = re.compile(r"\s*(?:WITH|SELECT|INSERT|UPDATE|DELETE|AND|SET)\s")

#: anchors and classes of patterns
PATTERNS = [
    ("no end", r"\\Z|\$(?!\w)", ""),
    ("no start", r"\\A|(?<!\[)\^", ""),
    ("another class", r"\[\^", "["),
    ("+ is *", r"(?<=[\])\w])\+", "*"),
]
IS_PATTERN = re.compile(r"\[[^\]]+\]|\\[AZbdw]")

#: calls that are made for people only
UNSEEN = re.compile(r"^(?:self\.)?(?:log|_log|logger|warnings)\.|\.(?:warning|info|debug)\(")


#: keyword arguments: whether the garbage collector follows a struct, and whether a statement is
#: prepared
SPEED_ONLY = ("gc", "prepare")


class Mutant(NamedTuple):
    line: int
    operator: str
    source: str


def mutants_of(source: str) -> list[Mutant]:
    """Returns all mutants of a module, in the order of its lines, each source once."""
    tree = ast.parse(source)
    passed_over, decides = _passed_over(tree), _decides(tree)
    made: dict[str, Mutant] = {}
    for mutant in (*_by_cosmic_ray(source), *_by_statement(source, tree), *_by_text(source, tree)):
        if mutant.line in passed_over or mutant.source == source:
            continue
        try:
            mutated = ast.parse(mutant.source)
        except (SyntaxError, ValueError):
            continue
        if _decides(mutated) != decides:
            made.setdefault(mutant.source, mutant)
    return sorted(made.values(), key=lambda mutant: (mutant.line, mutant.operator))


def _decides(tree: ast.Module) -> str:
    """The text of a program, without annotations and keywords that only change its speed."""

    class Kept(ast.NodeTransformer):
        def visit_keyword(self, node: ast.keyword) -> ast.AST | None:
            return None if node.arg in SPEED_ONLY else self.generic_visit(node)

        def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
            value = None if node.value is None else self.visit(node.value)
            return ast.AnnAssign(node.target, ast.Constant(None), value, node.simple)

    return ast.dump(Kept().visit(copy.deepcopy(tree)))


def _passed_over(tree: ast.Module) -> set[int]:
    """The lines that decide nothing: annotations, docstrings, assertions, texts of errors."""
    lines: set[int] = set()

    def add(node: ast.AST, *, but: ast.AST | None = None) -> None:
        span = set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        lines.update(span if but is None else span - {but.lineno})

    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.Import, ast.ImportFrom, ast.Assert))
            or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
            or (isinstance(node, ast.AnnAssign) and node.value is None)
        ):
            add(node)
        elif isinstance(node, ast.Raise) and node.end_lineno != node.lineno:
            add(node, but=node)  # a deleted `raise` begins in its first line
        elif isinstance(node, ast.Expr) and UNSEEN.search(ast.unparse(node)):
            add(node)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
                if argument.annotation is not None:
                    add(argument.annotation)
            if node.returns is not None:
                add(node.returns)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            add(node)
    return lines


def _by_cosmic_ray(source: str) -> Iterator[Mutant]:
    nodes = list(ast_nodes(get_ast(source)))
    for name in COSMIC_RAY:
        operator = get_operator(name)()
        places = [place for node in nodes for place in operator.mutation_positions(node)]
        for occurrence, (start, _) in enumerate(places):
            mutated = mutate_code(source, get_operator(name)(), occurrence)
            if mutated is not None:
                yield Mutant(start[0], name.removeprefix("core/"), mutated)


def _by_statement(source: str, tree: ast.Module) -> Iterator[Mutant]:
    """Deletes statements of functions, and exchanges functions."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for inner in ast.walk(node):
                if _is_deletable(inner):
                    yield Mutant(inner.lineno, "deleted", _replace(source, inner, "pass"))
        if isinstance(node, ast.Call):
            called = node.func
            name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
            if name in EXCHANGED:
                text = ast.get_source_segment(source, called) or ""
                new = text.removesuffix(name) + EXCHANGED[name]
                yield Mutant(
                    called.end_lineno or called.lineno,
                    f"{name} is {EXCHANGED[name]}",
                    _replace(source, called, new),
                )


def _is_deletable(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr):
        return not isinstance(node.value, (ast.Constant, ast.Yield, ast.YieldFrom))
    return isinstance(node, (ast.Assign, ast.AugAssign, ast.Raise, ast.Delete, ast.Return))


def _by_text(source: str, tree: ast.Module) -> Iterator[Mutant]:
    """Changes statements of SQL and patterns, in the constants that hold them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)):
            text = ast.get_source_segment(source, node)
            if text is None or not text.strip("rbfRBF").startswith(("'", '"')):
                # A part of an f-string has no quotes of its own.
                text = text if isinstance(node.value, str) else None
            if text is None:
                continue
            inner = text.lstrip("rbfRBF").strip("\"'")
            rules = SQL if IS_SQL.match(inner) else []
            if not rules and text.startswith(("r'", 'r"', "rb'", 'rb"')):
                rules = PATTERNS if IS_PATTERN.search(text) else []
            for name, pattern, new in rules:
                for found in re.finditer(pattern, text):
                    changed = (
                        text[: found.start()] + found.expand(new) + text[found.end() :]
                        if isinstance(new, str)
                        else text[: found.start()] + new(found) + text[found.end() :]
                    )
                    line = node.lineno + text.count("\n", 0, found.start() + 1)
                    yield Mutant(line, name, _replace(source, node, changed))


def _replace(source: str, node: ast.AST, text: str) -> str:
    lines = source.encode().splitlines(keepends=True)
    start = sum(map(len, lines[: node.lineno - 1])) + node.col_offset
    end = sum(map(len, lines[: node.end_lineno - 1])) + node.end_col_offset
    raw = source.encode()
    return (raw[:start] + text.encode() + raw[end:]).decode()
