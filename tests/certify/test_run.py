"""Whole runs against radii computed by hand, in every mode and batch size; the journal against interruptions."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

pytest.importorskip("onnxruntime")

from lipdeploy.certify import run
from lipdeploy.certify.document import counts
from lipdeploy.certify.results import Answers, Batch, Results, percent_down, shown
from lipdeploy.certify.run import Settings, Task, certify, local, prepare
from lipdeploy.cli.options import radius
from lipdeploy.errors import InputError, IntegrityError, LimitExceeded, Refused
from lipdeploy.runtime.prediction import linf_radius, radius_for_linf
from tests.certify.conftest import samples, truth, write_npz
from tests.cli.conftest import write_model

X, Y = samples(230)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_npz(tmp_path / "d.npz", X, Y)


def settled(dense: Path, data: Path, **changes: Any) -> tuple[Task, Results]:
    task = prepare(str(dense), str(data), Settings(**changes))
    return task, certify(task, local)


@pytest.mark.parametrize("mode", ["f64", "adaptive", "f32", "network"])
@pytest.mark.parametrize("batch_rows", [None, 1, 7, 230, 1000])
def test_labels_and_radii_are_the_real_ones_rounded_down(
    mode: str, batch_rows: int | None, dense: Path, data: Path
) -> None:
    _, results = settled(dense, data, certify=mode, batch_rows=batch_rows)
    label, radius = truth(X)
    np.testing.assert_array_equal(results.label, label)
    np.testing.assert_array_equal(results.truth, Y)
    assert np.all(results.radius <= radius) and np.all(results.radius >= radius * (1 - 1e-4) - 1e-5)


def test_counts_are_those_of_a_plain_loop(dense: Path, data: Path) -> None:
    task, results = settled(dense, data)
    for epsilon, line in zip((0.0, 0.3, 1.0), counts(task, results, (0.0, 0.3, 1.0)), strict=True):
        label, radius = truth(X)
        certified = [r > 0 and r * (1 - 1e-9) >= epsilon for r in radius]
        right = sum(c and said == wanted for c, said, wanted in zip(certified, label, Y, strict=True))
        assert (line.correct, line.correct + line.wrong) == (right, sum(certified))
        assert line.certified_accuracy == Fraction(right, 230)
        assert line.abstained == 230 - sum(certified)


def test_linf_counts_use_the_radius_over_root_n_and_never_more(dense: Path, data: Path) -> None:
    task, results = settled(dense, data)
    (line,) = counts(task, results, (), (0.25,))
    exact = [Fraction(r) ** 2 >= 2 * Fraction(1, 16) for r in results.radius.tolist()]
    certified = line.correct + line.wrong
    assert sum(exact) - 1 <= certified <= sum(exact)
    assert line.norm == "linf"


def test_linf_counts_do_not_trust_a_size_that_the_file_leaves_open(
    dense: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, results = settled(dense, data)
    (line,) = counts(task, results, (), (0.25,))
    (spec,) = task.session.inputs
    monkeypatch.setattr(task.session, "_inputs", (dataclasses.replace(spec, shape=(None, None)),))
    assert counts(task, results, (), (0.25,)) == (line,)


def test_adaptive_certifies_as_many_as_f64_at_the_radii_asked_for(dense: Path, data: Path) -> None:
    epsilons = (0.1, 0.3, 0.9)
    seen = []
    for mode in ("f64", "adaptive"):
        task, results = settled(dense, data, certify=mode, epsilon=max(epsilons))
        seen.append([(line.correct, line.wrong) for line in counts(task, results, epsilons)])
        assert (results.answered_by("f32") > 0) == (mode == "adaptive")
    assert seen[0] == seen[1]


@pytest.mark.parametrize("norm", ["l2", "l1", "linf", "l2-linf"])
def test_adaptive_certifies_as_many_as_f64_at_the_linf_radii_asked_for(norm: str, dense: Path, data: Path) -> None:
    """The radius is one that f64 reaches and f32, whose error bound is larger, does not."""
    exact, reached = settled(dense, data, norm=norm)
    _, rough = settled(dense, data, norm=norm, certify="f32")
    row = int(np.argmax(reached.radius - rough.radius))
    epsilon = float(linf_radius(reached.radius[row : row + 1], norm, 2)[0])
    assert float(linf_radius(rough.radius[row : row + 1], norm, 2)[0]) < epsilon
    wanted = counts(exact, reached, (), (0.1, epsilon))
    for others in ({}, {"epsilon": 1e-3}):
        settings = {"norm": norm, "certify": "adaptive", "linf_epsilon": max(0.1, epsilon), **others}
        task, results = settled(dense, data, **settings)
        assert counts(task, results, (), (0.1, epsilon)) == wanted
        assert task.describe()["epsilon"] == task.epsilon >= max(0.1, epsilon)


@pytest.mark.parametrize("norm", ["l2", "linf", "l1", "l2-linf", "l1-linf"])
@hypothesis.given(epsilon=st.floats(0.0, 1e300), size=st.integers(1, 2**24))
def test_a_radius_for_linf_suffices_and_is_hardly_larger(norm: str, epsilon: float, size: int) -> None:
    reached = radius_for_linf(epsilon, norm, size)
    linf = float(linf_radius(np.array([reached]), norm, size)[0])
    assert linf >= epsilon and (linf > 0.0 or norm == "linf")
    assert linf <= epsilon * (1 + 1e-15) + 1e-322


def test_a_radius_for_linf_is_finite() -> None:
    assert radius_for_linf(1.7e308, "l2", 784) == np.finfo(float).max


def test_a_file_that_fixes_its_batch_gets_whole_batches(tmp_path: Path, data: Path) -> None:
    text = """
    <ir_version: 9, opset_import: ["": 20]>
    fixed (float[64, 2] x) => (float[64, 2] y)
    <float[2, 2] w = {0.75, 0.0, 0.0, -0.5}, float[2] b = {0.25, 0.0}> { h = MatMul (x, w)  y = Add (h, b) }
    """
    fixed = write_model(tmp_path / "fixed.onnx", text)
    for batch_rows in (None, 64):
        task, results = settled(fixed, data, batch_rows=batch_rows)
        assert task.batch_rows == 64
        np.testing.assert_array_equal(results.label, truth(X)[0])
    with pytest.raises(InputError, match="the model's batch is fixed to 64, not 7"):
        settled(fixed, data, batch_rows=7)


def test_limit_takes_the_first_rows_and_checks_only_their_labels(dense: Path, tmp_path: Path) -> None:
    labels = Y.copy()
    labels[200] = 9
    path = write_npz(tmp_path / "d.npz", X, labels)
    with pytest.raises(InputError, match="label 9 at row 200"):
        settled(dense, path)
    assert len(settled(dense, path, limit=200)[1]) == 200


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_value_is_named_by_its_row_in_the_file(value: float, dense: Path, tmp_path: Path) -> None:
    x = X.copy()
    x[150, 1] = value
    path = write_npz(tmp_path / "d.npz", x, Y)
    with pytest.raises(InputError, match=r"d\.npz, field 'x': (nan|inf) in row 150, at index \(1,\)"):
        settled(dense, path, batch_rows=64)


def test_values_that_float32_does_not_hold_are_named(dense: Path, tmp_path: Path) -> None:
    path = write_npz(tmp_path / "d.npz", X + np.float64(1e-12), Y)
    with pytest.raises(InputError, match=r"field 'x', rows 0 to 63: .*expected float32, got float64"):
        settled(dense, path, batch_rows=64)


def test_shapes_that_do_not_fit(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="samples are 3, the model takes 2"):
        settled(dense, write_npz(tmp_path / "d.npz", np.zeros((5, 3), np.float32), np.zeros(5, int)))


def test_a_limit_on_the_bound_and_an_output_without_classes(dense: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(LimitExceeded):
        settled(dense, data, max_lipschitz=0.5)
    text = """
    <ir_version: 9, opset_import: ["": 20]>
    r (float[N, 2] x) => (float[N, 1, 2] y) <int64[3] s = {0, 1, 2}> { y = Reshape (x, s) }
    """
    with pytest.raises(Refused, match="LIP019"):
        settled(write_model(tmp_path / "r.onnx", text), data)


# The journal.


class Stopped(Exception):
    pass


def stopping_after(batches: int) -> Callable[..., None]:
    def engine(task: Task, ranges: list[range], keep: Callable[[Batch], None]) -> None:
        local(task, ranges[:batches], keep)
        raise Stopped

    return engine


def counting(rows: list[int]) -> Callable[..., None]:
    def engine(task: Task, ranges: list[range], keep: Callable[[Batch], None]) -> None:
        rows.extend(row for part in ranges for row in part)
        local(task, ranges, keep)

    return engine


def test_a_stopped_run_goes_on_where_it_was(dense: Path, data: Path, tmp_path: Path) -> None:
    journal = str(tmp_path / "j")
    task = prepare(str(dense), str(data), Settings(batch_rows=50))
    with pytest.raises(Stopped):
        certify(task, stopping_after(3), journal=journal)
    rows: list[int] = []
    again = certify(task, counting(rows), journal=journal)
    assert rows == list(range(150, 230))
    for name in ("label", "radius", "program", "truth"):
        np.testing.assert_array_equal(getattr(again, name), getattr(certify(task, local), name))
    rows.clear()
    certify(task, counting(rows), journal=journal)
    assert rows == []


def test_batches_in_any_order_leave_the_right_gaps() -> None:
    answers = Answers(20)
    for start, stop in ((15, 18), (4, 9)):
        size = stop - start
        answers.add(Batch(start, np.zeros(size, int), np.zeros(size), np.zeros(size, np.uint8)))
    assert answers.missing(4) == [range(0, 4), range(9, 13), range(13, 15), range(18, 20)]


@pytest.fixture
def journal(dense: Path, data: Path, tmp_path: Path) -> Path:
    certify(prepare(str(dense), str(data), Settings()), local, journal=str(tmp_path / "j"))
    return tmp_path / "j"


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [({"limit": 229}, "rows was 230, now 229"), ({"norm": "linf"}, "another run: certificate sha256 was"),
     ({"certify": "network"}, "certify was 'f64', now 'network'")],
)  # fmt: skip
def test_the_journal_of_another_run_is_refused(
    changes: dict[str, Any], phrase: str, dense: Path, data: Path, journal: Path
) -> None:
    with pytest.raises(InputError, match=phrase):
        certify(prepare(str(dense), str(data), Settings(**changes)), local, journal=str(journal))


def test_other_data_and_another_model_are_another_run(dense: Path, data: Path, journal: Path, tmp_path: Path) -> None:
    other = write_npz(tmp_path / "other.npz", X + 1, Y)
    with pytest.raises(InputError, match="data sha256 was"):
        certify(prepare(str(dense), str(other), Settings()), local, journal=str(journal))
    text = dense.read_bytes().replace(np.float32(0.75).tobytes(), np.float32(0.5).tobytes())
    (tmp_path / "changed.onnx").write_bytes(text)
    with pytest.raises(InputError, match="model sha256 was"):
        certify(prepare(str(tmp_path / "changed.onnx"), str(data), Settings()), local, journal=str(journal))


def test_the_adaptive_journal_knows_its_epsilon(dense: Path, data: Path, tmp_path: Path) -> None:
    first, second = (
        prepare(str(dense), str(data), Settings(certify="adaptive", epsilon=epsilon)) for epsilon in (0.1, 0.2)
    )
    certify(first, local, journal=str(tmp_path / "a"))
    with pytest.raises(InputError, match=r"epsilon was 0\.1, now 0\.2"):
        certify(second, local, journal=str(tmp_path / "a"))


def test_any_changed_byte_is_noticed(dense: Path, data: Path, journal: Path) -> None:
    task = prepare(str(dense), str(data), Settings())
    content = journal.read_bytes()
    start = content.index(b"\n")
    for where in (*range(0, start, 37), start, *range(start + 1, len(content), 211)):
        changed = bytearray(content)
        changed[where] ^= 1
        journal.write_bytes(changed)
        with pytest.raises((InputError, IntegrityError)):
            certify(task, local, journal=str(journal))
    for cut in (0, 10, start, start + 1, len(content) - 1):
        journal.write_bytes(content[:cut])
        with pytest.raises((InputError, IntegrityError)):
            certify(task, local, journal=str(journal))


def write_journal(path: Path, body: bytes) -> None:
    """The journal with other contents under a digest that matches them."""
    header = json.loads(path.read_bytes().partition(b"\n")[0])
    header["sha256"] = hashlib.sha256(body).hexdigest()
    path.write_bytes(json.dumps(header).encode() + b"\n" + body)


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (lambda body: body[:-1], "damaged: holds 4139 bytes of answers, not 4140"),
        (lambda body: body[:5], "damaged: holds 5 bytes"),
        (lambda body: b"", "damaged: holds 0 bytes"),
        (lambda body: body + b"x", "damaged: holds 4141 bytes"),
        (lambda body: b"\2" + body[1:], "damaged: holds an answer that no run writes"),
        (lambda body: body[:-1] + b"\7", "damaged: holds an answer that no run writes"),
    ],
)
def test_a_damaged_journal_with_a_matching_digest(
    change: Callable[[bytes], bytes], phrase: str, dense: Path, data: Path, journal: Path
) -> None:
    write_journal(journal, change(journal.read_bytes().partition(b"\n")[2]))
    with pytest.raises(IntegrityError, match=phrase):
        certify(prepare(str(dense), str(data), Settings()), local, journal=str(journal))


@pytest.mark.parametrize("line", [b"[" * 60_000, b'{"a":' * 10_000, b"[" * 70_000])
def test_a_first_line_that_is_too_deep_is_no_journal(line: bytes, dense: Path, data: Path, journal: Path) -> None:
    journal.write_bytes(line + b"\n")
    with pytest.raises(InputError, match="not a journal of lipdeploy certify"):
        certify(prepare(str(dense), str(data), Settings()), local, journal=str(journal))


def test_radii_that_the_model_does_not_give_are_noticed(dense: Path, data: Path, journal: Path) -> None:
    """The digest is no signature: a row that is certified again shows the lie."""
    task = prepare(str(dense), str(data), Settings())
    _, _, body = journal.read_bytes().partition(b"\n")
    arrays = bytearray(body)
    radii = np.frombuffer(body, "<f8", 230, offset=230 + 8 * 230) * 2.0
    arrays[230 + 8 * 230 : 230 + 16 * 230] = radii.tobytes()
    write_journal(journal, bytes(arrays))
    with pytest.raises(IntegrityError, match="is answered otherwise now"):
        certify(task, local, journal=str(journal))


def test_a_journal_that_cannot_be_written_is_found_out_first(dense: Path, data: Path, tmp_path: Path) -> None:
    rows: list[int] = []
    with pytest.raises(InputError, match="cannot be written"):
        certify(
            prepare(str(dense), str(data), Settings()), counting(rows), journal=str(tmp_path / "nowhere" / "journal")
        )
    assert rows == []


# Numbers.


def test_percentages_never_round_up() -> None:
    for total in (1, 3, 7, 10000, 9999):
        for count in range(0, total + 1, max(1, total // 50)):
            share = Fraction(count, total)
            text = percent_down(share)
            assert Fraction(text) <= 100 * share < Fraction(text) + Fraction(1, 100)
    assert (percent_down(Fraction(19999, 20000)), percent_down(Fraction(1))) == ("99.99", "100.00")


@pytest.mark.parametrize(
    ("epsilon", "text"), [("0.3", "0.3"), ("1.58", "1.58"), ("2/3", "0.666666"), ("1/255", "0.00392156")]
)
def test_an_epsilon_is_shown_as_written_or_rounded_down(epsilon: str, text: str) -> None:
    assert shown(radius(epsilon)) == text


def test_quantiles_curve_and_histogram_hold_every_row() -> None:
    random = np.random.default_rng(3)
    radius = np.concatenate([random.exponential(1.0, 500), np.zeros(20), [np.inf] * 3])
    label = random.integers(0, 3, 523)
    results = Results(random.integers(0, 3, 523), label, radius, np.zeros(523, np.uint8))
    _, right, wrong = results.histogram()
    assert right.sum() + wrong.sum() == (radius > 0).sum() == 503
    assert results.without_certificate == 20
    radii, certified = results.curve()
    for epsilon, count in zip(radii.tolist(), certified.tolist(), strict=True):
        assert count == results.at(epsilon, "l2").correct
    for share in (Fraction(1, 10), Fraction(1, 2), Fraction(9, 10)):
        assert (radius >= results.quantile_down(share)).mean() >= 1 - share
    assert sum(len(results.of_class(number)) for number in range(3)) == 523
    most, least = results.extremes(5)
    assert radius[most[0]] == np.inf and radius[least[0]] == 0.0


def test_memory_decides_how_many_rows_go_at_a_time(dense: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = prepare(str(dense), str(data), Settings())
    assert task.batch_rows == run.MOST_ROWS
    monkeypatch.setattr(run, "_free_memory", lambda: 8 * 2 * 8 * run.LIVE_TENSORS * 100)
    assert task.batch_rows == 100
    assert dataclasses.replace(task, settings=Settings(batch_rows=5)).batch_rows == 5
