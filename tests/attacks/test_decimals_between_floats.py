"""A person writes a decimal on the command line or in a file, and the program hears another number.

``--epsilon 0.3`` was the binary64 number nearest to it, 0.29999999999999998890, so a row with exactly that radius was
"certified at 0.3"; a limit of 1.1 was 1.100000000000000088818, so a bound above 1.1 could be "within 1.1". Radii that
are asked for are now read exactly and rounded up, limits down, and no digit that is printed crosses the number.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import click
import numpy as np
import onnx
import pytest

from lipdeploy.certify.results import Results, shown
from lipdeploy.cli import config
from lipdeploy.cli.main import main
from lipdeploy.cli.options import limit, percentage, radius
from lipdeploy.errors import InputError
from lipdeploy.runtime.prediction import checked_epsilon
from lipdeploy.verify.rounding import number_down, read_exactly, shortest_down, shortest_up

RANDOM = np.random.default_rng(5)
NAIVE = Fraction(0.3)  # below 3/10


def decimals() -> list[str]:
    texts = [f"{RANDOM.uniform(0, 2):.{digits}f}" for digits in range(1, 19) for _ in range(60)]
    texts += [f"{RANDOM.uniform(1, 10):.3f}e{power}" for power in range(-330, 309, 7)]
    return [*(t for t in texts if Fraction(t)), "0.3", "0.1", "8/255", "1/3", "1e-400", "1e-999999999999", "2", "1.1"]


def true(text: str) -> Fraction:
    return Fraction(1, 10**450) if text == "1e-999999999999" else Fraction(text)


@pytest.mark.parametrize("read", [radius, checked_epsilon])
def test_a_radius_is_never_below_what_was_written(read):
    for text in decimals():
        found = read(text)
        assert Fraction(found) >= true(text) > Fraction(math.nextafter(found, -1.0)), text


def test_a_limit_is_never_above_what_was_written():
    for text in decimals():
        if true(text) < Fraction(5e-324):
            with pytest.raises(click.BadParameter):
                limit(text)
            continue
        found = limit(text)
        assert Fraction(found) <= true(text) < Fraction(math.nextafter(found, math.inf)), text


def test_a_percentage_is_exact():
    assert percentage("95.4") == Fraction(954, 10) != Fraction(95.4)
    with pytest.raises(click.BadParameter):
        percentage("100.00000000000000000001")


@pytest.mark.parametrize("text", ["nan", "inf", "-0.1", "1e400", "1e999999999", "", "0x1p-2", "1/0", "0.3.1", "-1/3"])
def test_what_is_no_radius(text):
    with pytest.raises(click.BadParameter):
        radius(text)
    with pytest.raises(InputError):
        checked_epsilon(text)


def test_what_is_printed_says_no_more_than_what_is_known():
    numbers = [*(10.0 ** RANDOM.uniform(-320, 308, 2000)).tolist(), *RANDOM.uniform(0, 2, 2000).tolist(), 0.3, 5e-324]
    for value in numbers:
        below, above, printed = shortest_down(value), shortest_up(value), number_down(value)
        assert Fraction(Decimal(below)) <= Fraction(value) <= Fraction(Decimal(above))
        assert radius(below) == value == limit(above), "and reads back"
        assert Fraction(repr(printed)) <= Fraction(value) and printed >= math.nextafter(value, 0.0)
    assert Fraction(repr(0.3)) > NAIVE, "the naive printer fell"
    for text in decimals():
        if "/" not in text and true(text) >= Fraction(1, 10**300):
            exact = read_exactly(text)
            assert exact is not None and Fraction(Decimal(shortest_down(radius(text)))) <= Fraction(radius(text))
    assert shown(radius("0.3")) == "0.3" and shortest_up(limit("1.1")) == "1.1"
    assert shown(0.3) == "0.299999"


def test_the_row_between_is_not_counted():
    row = np.array([float(NAIVE)])
    results = Results(np.zeros(1, int), np.zeros(1, int), row, np.zeros(1, np.uint8))
    assert results.at(float("0.3"), "l2").correct == 1, "naively it is certified at 0.3"
    assert results.at(radius("0.3"), "l2").correct == 0


def test_limits_in_toml(tmp_path: Path):
    file = tmp_path / ".lipdeploy.toml"
    for text in ("1.1", "0.3", "1e-3", "1", "1_0.1"):
        file.write_text(f"max_lipschitz = {text}\n")
        found = config.find(str(file)).defaults.max_lipschitz
        assert found is not None and Fraction(found) <= Fraction(text) < Fraction(math.nextafter(found, math.inf))
    for text in ("nan", "inf", "-1.0", "0.0", "true", '"1.0"', "1e400"):
        file.write_text(f"max_lipschitz = {text}\n")
        with pytest.raises(InputError, match="max_lipschitz"):
            config.find(str(file))


@pytest.fixture
def exact_net(tmp_path: Path) -> tuple[Path, Path]:
    """y = (x, −x)·c in float64 with a margin whose radius lies just below 0.3; and its one row."""
    header = '<ir_version: 10, opset_import: ["": 20]>\n'
    text = header + "g (float[N,1] x) => (float[N,2] y) { y = Gemm<transB=1>(x, w) }"
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32([[0.5], [-0.5]]), "w"))
    data = tmp_path / "data.npz"
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(data, x=np.float32([[0.3], [0.30001]]), y=np.array([0, 0]))
    return tmp_path / "model.onnx", data


def test_the_commands(exact_net, capsys):
    """float32's 0.3 is 0.300000011920929: its radius is below that, and above 0.3."""
    model, data = map(str, exact_net)
    assert main(["certify", model, data, "--epsilon", "0.3", "--epsilon", "0.300000011920929", "--json"]) == 0
    document = json.loads(capsys.readouterr().out, parse_float=Fraction, parse_int=Fraction)
    first, second = document["at"]
    assert first["epsilon"] >= Fraction(3, 10) and first["certified_correct"] == 2 and second["certified_correct"] == 1
    assert main(["certify", model, data, "--epsilon", "0.3", "--min-certified", "100"]) == 0
    assert "0.3 " in capsys.readouterr().out
    assert main(["predict", model, str(data), "--epsilon", "0.3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out, parse_float=Fraction)["radius"]
    from lipdeploy import CertifiedSession

    known = CertifiedSession(model).predict(np.load(data)["x"]).radius
    assert all(text <= Fraction(float(r)) for text, r in zip(told, known, strict=True))


@pytest.mark.parametrize("epsilon", [Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity"), Decimal("-0.1"), 10**400])
def test_a_number_that_is_none_is_refused_by_name(epsilon):
    with pytest.raises(InputError, match="epsilon must be"):
        checked_epsilon(epsilon)


def test_numpys_whole_numbers_are_compared_exactly():
    """NumPy compares a float with an int64 as two float64 numbers: 2**53 is then not below 2**53 + 1."""
    for whole in (2**53 + 1, 2**62 + 1):
        assert Fraction(checked_epsilon(np.int64(whole))) >= whole
