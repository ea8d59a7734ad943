"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, TypeVar

import click

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

DEBUG = "lipdeploy.debug"

#: The names of the contract. Repeated here so that ``--help`` needs no verifier; a test compares the two.
NORMS = ("l2", "linf", "l1", "l2-linf", "l1-linf")


def number(value: object) -> float:
    """A finite number ≥ 0, read as the nearest binary64 number; a fraction such as ``1/255`` is welcome."""
    parsed = _number(value)
    if parsed is None or not math.isfinite(parsed):
        raise click.BadParameter(f"'{value}' is not a finite number")
    if parsed < 0.0:
        raise click.BadParameter(f"{value} is below 0")
    return parsed


def radius(value: object) -> float:
    """A finite number ≥ 0, read exactly and rounded up: what is certified at it is certified at what was written."""
    from lipdeploy.verify.rounding import fraction_up

    number(value)
    return fraction_up(_exact(value))


def limit(value: object) -> float:
    """A finite number above 0, read exactly and rounded down: what is within it is within what was written."""
    from lipdeploy.verify.rounding import fraction_down

    positive_number(value)
    lowered = fraction_down(_exact(value))
    if lowered == 0.0:
        raise click.BadParameter(f"{value} is not above 0")
    return lowered


def _exact(value: object) -> Fraction:
    from lipdeploy.verify.rounding import read_exactly

    exact = Fraction(value) if isinstance(value, int | float) else read_exactly(str(value))
    if exact is None:
        raise click.BadParameter(f"'{value}' is not a finite number")
    return exact


def percentage(value: object) -> Fraction:
    """From 0 to 100, read exactly."""
    number(value)
    exact = _exact(value)
    if exact > 100:
        raise click.BadParameter(f"{value} is above 100")
    return exact


def positive_number(value: object) -> float:
    """A finite number above 0."""
    parsed = number(value)
    if parsed == 0.0:
        raise click.BadParameter(f"{value} is not above 0")
    return parsed


def numbers(value: str) -> tuple[float, ...]:
    """Finite numbers separated by commas, one per channel."""
    words = value.split(",")
    parsed = [_number(word) for word in words]
    for word, found in zip(words, parsed, strict=True):
        if found is None or not math.isfinite(found):
            raise click.BadParameter(f"'{word}' in '{value}' is not a finite number (example: 0.49,0.48,0.45)")
    return tuple(found for found in parsed if found is not None)


def positive_numbers(value: str) -> tuple[float, ...]:
    """Finite numbers above 0, separated by commas."""
    parsed = numbers(value)
    if min(parsed) <= 0.0:
        raise click.BadParameter(f"'{value}' holds a number that is not above 0")
    return parsed


def shape(value: str) -> tuple[int, ...]:
    """The shape of one sample, without the batch axis: ``3,32,32``."""
    words = [word.strip() for word in value.replace("x", ",").split(",")]
    if not all(word.isascii() and word.isdecimal() and 0 < int(word) < 2**31 for word in words):
        raise click.BadParameter(f"'{value}' is not a shape without the batch axis (examples: 784 or 3,32,32)")
    return tuple(int(word) for word in words)


def _number(value: object) -> float | None:
    text = str(value)
    try:
        return float(Fraction(text)) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


def debug_option(function: Decorated) -> Decorated:
    """``--debug``: ``main`` looks for the word itself, so that it also works when parsing fails."""
    help_text = "Show Python tracebacks and warnings."
    return click.option("--debug", is_flag=True, expose_value=False, callback=_remember, help=help_text)(function)


def debugging(ctx: click.Context) -> bool:
    """Whether ``--debug`` was given, before the command's name or after it."""
    return bool(ctx.find_root().meta.get(DEBUG))


def _remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().meta[DEBUG] = True


def norm_option(function: Decorated) -> Decorated:
    """``--norm``: the norm of the input, and of the output where it differs."""
    return click.option(
        "--norm", type=click.Choice(NORMS), default="l2", show_default=True,
        help="Norm of the input; 'l2-linf' and 'l1-linf' measure the output in linf.",
    )(function)  # fmt: skip


def limit_option(function: Decorated) -> Decorated:
    """``--max-lipschitz``: the gate."""
    return click.option(
        "--max-lipschitz", type=limit, metavar="X", help="Fail (exit 1) when the proven bound is above X.",
    )(function)  # fmt: skip


def json_option(function: Decorated) -> Decorated:
    """``--json``: one document on standard output and nothing else."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")(function)


def graph_output_option(function: Decorated) -> Decorated:
    """``--graph-output``: which of several outputs the statement is about."""
    return click.option(
        "--graph-output", metavar="NAME", help="The output to judge, for a graph that has several.",
    )(function)  # fmt: skip
