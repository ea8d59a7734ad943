"""The tensor a program receives is the caller's, value for value, or nothing."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from lipdeploy.errors import InputError
from lipdeploy.runtime.inputs import feeds_for, flattened, program_tensor
from lipdeploy.verify.verdict import TensorSpec


def spec(dtype, *shape):
    return TensorSpec("x", np.dtype(dtype), (None, *shape))


FLOAT = spec(np.float32, 3)
BYTE = spec(np.uint8, 3)


@pytest.mark.parametrize(
    "given",
    [
        np.float32([[1, 2.5, -0.0]]),
        np.float64([[1, 2.5, 2.0**-149]]),
        np.float16([[1, 2.5, 65504]]),
        np.array([[1, 2.5, -3]], dtype=ml_dtypes.bfloat16),
        np.int64([[1, 2**24, -(2**24)]]),
        np.int64([[2**24 + 2, 2**25, -(2**63)]]),
        np.uint64([[2**63, 2**64 - 2**40, 0]]),
        np.array([[True, False, True]]),
        [[1, 2, 3]],
    ],
)
def test_values_that_float32_holds_are_accepted_and_kept(given):
    tensor = program_tensor(given, FLOAT)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    assert np.array_equal(tensor.astype(np.float64), np.asarray(given).astype(np.float64))


@pytest.mark.parametrize(
    "given",
    [
        np.float64([[0.1, 0, 0]]),
        np.float64([[1e300, 0, 0]]),
        np.float64([[2.0**-150, 0, 0]]),
        np.int64([[2**24 + 1, 0, 0]]),
        np.uint64([[2**64 - 1, 0, 0]]),
        np.int64([[-(2**63) + 1, 1, 0]]),
        np.int64([[2**63 - 1, 1, 0]]),
        np.uint32([[2**32 - 1, 1, 0]]),
        np.array([[1, 0, 0]], np.longdouble) + np.longdouble(2.0) ** -60,
    ],
)
def test_values_that_float32_would_round_are_refused(given):
    with pytest.raises(InputError, match=r"input 'x': expected float32, got .*is not a float32 number") as error:
        program_tensor(given, FLOAT)
    assert error.value.hint.startswith("convert it yourself: x.astype('float32'), or export with input_dtype=")
    assert error.value.exit_code == 2


def test_the_largest_integers_of_small_floats():
    """65504 is a float16 number and 65520 would be infinite; bfloat16 has 8 bits and the range of float32."""
    half, brain = spec(np.float16, 3), spec(ml_dtypes.bfloat16, 3)
    assert program_tensor(np.int64([[65504, -65504, 2**12 + 4]]), half).tolist() == [[65504, -65504, 4100]]
    assert program_tensor(np.uint64([[2**63, 2**20, 255]]), brain).astype(np.float64).tolist() == [[2**63, 2**20, 255]]
    for given, kind in (([[65520, 0, 0]], half), ([[2**11 + 1, 0, 0]], half), ([[257, 0, 0]], brain)):
        with pytest.raises(InputError, match=r"is not a .*float16 number"):
            program_tensor(np.int64(given), kind)


def test_a_float32_array_is_not_copied():
    x = np.zeros((2, 3), np.float32)
    assert program_tensor(x, FLOAT) is x


@pytest.mark.parametrize("given", [[[0, 255, 7]], np.float32([[0, 255, 7]]), np.int64([[0, 255, 7]])])
def test_bytes_accept_what_is_a_byte(given):
    assert program_tensor(given, BYTE).tolist() == [[0, 255, 7]]


@pytest.mark.parametrize(
    "given",
    [
        [[0, 256, 7]],
        [[-1, 0, 7]],
        np.float32([[0.5, 0, 0]]),
        np.float64([[1e300, 0, 0]]),
        np.array([[3, 0, 0]], np.longdouble) - np.longdouble(2.0) ** -60,
    ],
)
def test_bytes_refuse_everything_else(given):
    with pytest.raises(InputError, match="is not a uint8 number") as error:
        program_tensor(given, BYTE)
    assert error.value.hint.startswith("send whole numbers from 0 to 255")


def test_a_long_double_of_few_digits_is_accepted():
    assert program_tensor(np.array([[1, 2.5, -3]], np.longdouble), FLOAT).tolist() == [[1, 2.5, -3]]


def test_float64_does_not_round_a_long_double():
    given = np.array([[1, 0, 0]], np.longdouble) + np.longdouble(2.0) ** -60
    with pytest.raises(InputError, match="is not a float64 number"):
        program_tensor(given, spec(np.float64, 3))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_named_with_their_place(value):
    x = np.zeros((2, 3), np.float32)
    x[1, 2] = value
    with pytest.raises(InputError, match=r"at index \(1, 2\); every value must be finite"):
        program_tensor(x, FLOAT)


@pytest.mark.parametrize("shape", [(2, 4), (3,), (2, 3, 1), ()])
def test_a_wrong_shape_says_which_is_right(shape):
    with pytest.raises(InputError, match=r"expected shape \(batch, 3\), got "):
        program_tensor(np.zeros(shape, np.float32), FLOAT)


def test_a_single_sample_is_told_to_add_the_batch_axis():
    with pytest.raises(InputError) as error:
        program_tensor(np.zeros(3, np.float32), FLOAT)
    assert error.value.hint == "add the batch axis: x[None]"


def test_a_static_batch_is_part_of_the_shape():
    fixed = TensorSpec("x", np.dtype(np.float32), (2, 3))
    assert program_tensor(np.zeros((2, 3), np.float32), fixed).shape == (2, 3)
    with pytest.raises(InputError, match=r"expected shape \(2, 3\), got \(1, 3\)"):
        program_tensor(np.zeros((1, 3), np.float32), fixed)


@pytest.mark.parametrize("given", ["cat", [["a", "b", "c"]], [[1j, 0, 0]], [[None, 1, 2]]])
def test_what_is_not_a_number_is_refused(given):
    with pytest.raises(InputError, match="expected numbers, got an array of"):
        program_tensor(given, FLOAT)


def test_several_inputs_are_named():
    both = (TensorSpec("a", np.dtype(np.float32), (None, 2)), TensorSpec("b", np.dtype(np.uint8), (None, 1, 2)))
    feeds = feeds_for({"b": [[[1, 2]]], "a": [[3.0, 4.0]]}, both)
    assert list(feeds) == ["a", "b"]
    assert flattened(feeds).tolist() == [[3.0, 4.0, 1.0, 2.0]]
    with pytest.raises(InputError, match="several inputs: a, b"):
        feeds_for(np.zeros((1, 2)), both)
    with pytest.raises(InputError, match=r"inputs \['a', 'c'\] were given, the model has \['a', 'b'\]"):
        feeds_for({"a": [[3.0, 4.0]], "c": 0}, both)
    with pytest.raises(InputError, match="batch sizes differ"):
        feeds_for({"a": np.zeros((2, 2)), "b": np.zeros((1, 1, 2))}, both)


def test_torch_tensors_are_arrays_unless_they_require_grad():
    assert program_tensor(torch.ones(1, 3), FLOAT).tolist() == [[1, 1, 1]]
    with pytest.raises(InputError, match="input 'x': not an array"):
        program_tensor(torch.ones(1, 3, requires_grad=True), FLOAT)


def test_a_ragged_list_is_an_input_error():
    with pytest.raises(InputError):
        program_tensor([[1.0, 2.0], [3.0]], FLOAT)


def test_a_masked_array_is_not_taken_for_what_it_hides():
    hidden = np.ma.masked_array(np.zeros((1, 3), np.float32), mask=[[True, False, False]])
    with pytest.raises(InputError, match="masked array"):
        feeds_for(hidden, [FLOAT])
