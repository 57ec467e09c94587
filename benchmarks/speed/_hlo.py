"""The matrix products in the text of a compiled program."""

import re
from collections import Counter
from typing import NamedTuple

Shape = tuple[int, ...]

_DEFINED = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = \(?\w+\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?[\w.-]+ \(.*\{\s*$")
_DOT = re.compile(r" dot\(([^)]*)\)(.*)$")
_NAME = re.compile(r"%?([\w.-]+)$")


class Product(NamedTuple):
    """One `dot` of a compiled program.

    Attributes:
        lhs: Shape of the left operand.
        rhs: Shape of the right operand.
        out: Shape of the result.
        batched: Whether the two share an axis that is kept.
    """

    lhs: Shape
    rhs: Shape
    out: Shape
    batched: bool

    def __str__(self) -> str:
        """The shapes: `[8, 4] @ [4, 2] -> [8, 2]`."""
        return f"{list(self.lhs)} @ {list(self.rhs)} -> {list(self.out)}"


def products(text: str) -> Counter[Product]:
    """Counts the matrix products in the text of a compiled program.

    Args:
        text: What `compiled.as_text()` returns: optimised HLO.

    Returns:
        How often each product stands in it; a loop's body counts once.

    Raises:
        ValueError: If the text holds none, or products in a form that hides their
            shapes: an answer would mean nothing.
    """
    if hidden := re.search(r'custom_call_target="[^"]*(?:matmul|gemm|dot)[^"]*"', text):
        raise ValueError(
            f"products: the program holds {hidden.group()}, whose operands are not "
            "read here. Compile for a CPU."
        )
    found: Counter[Product] = Counter()
    shapes: dict[str, Shape] = {}
    for line in text.splitlines():
        if _COMPUTATION.match(line):
            shapes = {}
        if (defined := _DEFINED.match(line)) is None:
            continue
        name, sizes = defined.groups()
        shapes[name] = tuple(int(size) for size in sizes.split(",") if size)
        if (dot := _DOT.search(line)) is not None:
            lhs, rhs = (_operand(x, shapes) for x in _split(dot.group(1)))
            batched = "lhs_batch_dims={" in dot.group(2)
            found[Product(lhs, rhs, shapes[name], batched)] += 1
    if not found:
        raise ValueError("products: the program holds no dot. Pass optimised HLO.")
    return found


def _split(operands: str) -> list[str]:
    """Splits at the commas between operands, not at those inside shapes."""
    return re.split(r",\s*(?![^\[{]*[\]}])", operands)


def _operand(text: str, shapes: dict[str, Shape]) -> Shape:
    """The shape of an operand, which an earlier line of its computation defines."""
    match = _NAME.search(text.strip())
    if match is None or match.group(1) not in shapes:
        raise ValueError(f"products: unknown operand {text!r} of a dot.")
    return shapes[match.group(1)]


def with_size(found: Counter[Product], *sizes: int) -> Counter[Product]:
    """Products one of whose sides is a matrix of the given sizes, either way round."""
    wanted = sorted(sizes)
    return Counter(
        {
            product: count
            for product, count in found.items()
            if wanted in (sorted(product.lhs), sorted(product.rhs))
        }
    )


def forming(found: Counter[Product], *sizes: int) -> Counter[Product]:
    """Products whose result is a matrix of the given sizes, either way round."""
    wanted = sorted(sizes)
    return Counter({p: count for p, count in found.items() if sorted(p.out) == wanted})
