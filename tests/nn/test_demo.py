"""tools/demo.py: its data, its recipes on a crumb of it, and what it says when the data is missing."""

from __future__ import annotations

import dataclasses
import gzip
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))
import demo_data  # noqa: E402  (tools/ is not a package)
import training  # noqa: E402

pytestmark = pytest.mark.usefixtures("torch_settings")


def write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes()) if path.suffix == ".gz" else header + values.tobytes())


def test_idx_files_plain_or_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (3, 28, 28), np.uint8), np.array([1, 9, 4], np.uint8)
    for part, suffix in (("train", ""), ("t10k", ".gz")):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte{suffix}", images)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte{suffix}", labels)
    monkeypatch.setenv("LIPDEPLOY_DATA", str(tmp_path))
    data = demo_data.fashion()
    for loaded, truth in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        np.testing.assert_array_equal(loaded[:, 0], images)
        np.testing.assert_array_equal(truth, labels)


def test_missing_data_exits_2_and_says_what_to_install(tmp_path: Path) -> None:
    environment = {**os.environ, "LIPDEPLOY_DATA": str(tmp_path), "PYTHONPATH": str(TOOLS.parent)}
    command = [sys.executable, str(TOOLS / "demo.py"), "--data", "fashion", "--output", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "apt-get install -y dataset-fashion-mnist" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_the_split_of_the_digits_is_fixed_and_disjoint() -> None:
    data, again = demo_data.digits(), demo_data.digits()
    assert data.test_images.shape == (500, 1, 8, 8) and data.train_images.shape == (1297, 1, 8, 8)
    np.testing.assert_array_equal(data.test_images, again.test_images)
    rows = {image.tobytes() for image in data.train_images}
    assert sum(image.tobytes() in rows for image in data.test_images) == 0


@pytest.mark.parametrize("recipe", training.DIGITS, ids=lambda recipe: recipe.stem)
def test_training_is_deterministic_learns_and_is_1_lipschitz(recipe) -> None:
    data, count = demo_data.digits(), []
    recipe = dataclasses.replace(recipe, epochs=1)
    images = data.train_images / np.float32(16)
    first = training.train(recipe, images, data.train_labels, lambda: count.append(1))
    second = training.train(recipe, images, data.train_labels, lambda: None)
    assert len(count) == training.steps(recipe, len(images))
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert not isinstance(a, torch.Tensor) or torch.equal(a, b)
    x = torch.from_numpy(data.test_images / np.float32(16))
    logits = first(x)
    assert (logits.argmax(1).numpy() == data.test_labels).mean() > 0.6
    moves = torch.linalg.vector_norm(logits[1:] - logits[:-1], dim=1)
    assert (moves <= torch.linalg.vector_norm((x[1:] - x[:-1]).flatten(1), dim=1) * (1 + 1e-5)).all()


SMALL = dataclasses.replace(
    training.MNIST_RESULTS[0], build=lambda: training.sorting_mlp(64, 32, training._retracted), epochs=3, batch_size=128
)


def test_training_that_stops_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    data = demo_data.digits()
    images, labels = data.train_images[:512] / np.float32(16), data.train_labels[:512]
    whole = training.train(SMALL, images, labels, lambda: None)
    checkpoint, count = tmp_path / "c", []

    def stop_in_the_third_epoch() -> None:
        count.append(1)
        if len(count) == 2 * 4 + 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(SMALL, images, labels, stop_in_the_third_epoch, checkpoint)
    count.clear()
    again = training.train(SMALL, images, labels, lambda: count.append(1), checkpoint)
    assert len(count) == training.steps(SMALL, 512) == 12
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    other = training.train(dataclasses.replace(SMALL, epsilon=0.2), images, labels, lambda: None, checkpoint)
    assert not torch.equal(next(other.parameters()), next(whole.parameters()))  # another recipe begins anew


def test_retracted_layers_end_orthonormal() -> None:
    data = demo_data.digits()
    network = training.train(SMALL, data.train_images[:256] / np.float32(16), data.train_labels[:256], lambda: None)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Linear):
            weight = layer.weight.detach().double()
            gram = weight @ weight.mT if weight.shape[0] <= weight.shape[1] else weight.mT @ weight
            assert (gram - torch.eye(len(gram))).abs().max() < 1e-6


def test_a_shift_moves_images_and_lets_zeros_in() -> None:
    torch.manual_seed(0)
    images = torch.zeros(16, 1, 5, 5)
    images[:, 0, 2, 2] = 1.0
    moved = training._shifted(images, 1)
    places = {tuple(place) for place in torch.nonzero(moved[:, 0])[:, 1:].tolist()}
    assert moved.shape == images.shape and moved.sum() == 16 and len(places) > 2
    assert all(1 <= row <= 3 and 1 <= column <= 3 for row, column in places)
    assert training._shifted(images, 0) is images
