"""``verify --method``: multipliers are searched for, stored in the certificate, and used again without a search."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lipdeploy.runtime import CertifiedSession
from lipdeploy.verify import verify
from lipdeploy.verify.stored import Stored

GRAPH = """<ir_version: 10, opset_import: ["": 20, "lipdeploy": 1]>
g (float[N,12] x) => (float[N,3] y) {
    h = Gemm<transB = 1>(x, W1)
    s = Relu(h)
    y = Gemm<transB = 1>(s, W2)
}"""


def lipdeploy(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lipdeploy", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def bound(*arguments: str) -> float:
    done = lipdeploy("verify", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return float(json.loads(done.stdout)["models"][0]["lipschitz_bound"])


@pytest.fixture
def network(tmp_path):
    random = np.random.default_rng(0)
    weights = {"W1": random.standard_normal((20, 12)), "W2": random.standard_normal((3, 20))}
    model = onnx.parser.parse_model(GRAPH)
    for name, value in weights.items():
        stored = (value / np.linalg.norm(value, 2)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(stored, name))
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_found_once_used_ever_after(network):
    model = str(network)
    product = bound(model)
    tight = bound(model, "--method", "best", "--search-seconds", "5", "--write-certificate")
    assert tight < 0.8 * product
    assert bound(model) == tight, "the certificate's multipliers are used without a search"
    assert bound(model, "--method", "product") == product
    assert bound(model, "--method", "lmi", "--search-seconds", "0") == tight
    assert float(CertifiedSession(network).lipschitz_bound) == tight


def test_a_network_that_was_trained_again_is_searched_again(network):
    """Multipliers of the old weights, in the certificate that is replaced, say little about the new ones."""
    model = str(network)
    words = ("--method", "best", "--search-seconds", "5", "--write-certificate")
    bound(model, *words)
    proto = onnx.load(network)
    random = np.random.default_rng(1)
    for tensor in proto.graph.initializer:
        weights = random.standard_normal(tensor.dims) * np.exp(random.standard_normal(tensor.dims[:1]))[:, None]
        tensor.CopyFrom(numpy_helper.from_array((weights / np.linalg.norm(weights, 2)).astype(np.float32), tensor.name))
    network.write_bytes(proto.SerializeToString())
    stale = Stored.read(network.with_suffix(".cert.json")).multipliers
    old = verify(network, method="best", hints=stale, check_certificate=False).lipschitz_bound
    assert bound(model, *words) < 0.99 * old


def test_found_once_used_by_the_ratchet_ever_after(network, tmp_path):
    """A baseline stores multipliers, too: the same model does not get worse for want of a certificate beside it."""
    model, baseline = str(network), str(tmp_path / "base.cert.json")
    product = bound(model)
    tight = bound(model, "--method", "best", "--search-seconds", "5", "--baseline", baseline, "--update-baseline")
    assert tight < 0.8 * product
    assert bound(model, "--baseline", baseline) == tight
    assert bound(model) == product


def diff(*paths):
    done = lipdeploy("diff", *map(str, paths), "--json")
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)
    assert done.returncode == int(found["worse"])
    return done.returncode, found["old"]["lipschitz_bound"], found["new"]["lipschitz_bound"]


def test_an_unchanged_model_is_not_worse_than_its_certificate(network, tmp_path):
    """Whether the certificate lies beside the model or elsewhere, and whichever is the older one."""
    model, beside = str(network), network.with_suffix(".cert.json")
    product = bound(model)
    tight = bound(model, "--method", "best", "--search-seconds", "5", "--write-certificate")
    elsewhere = tmp_path / "elsewhere" / "net.cert.json"
    elsewhere.parent.mkdir()
    for pair in ((beside, model), (model, beside), (elsewhere, model), (model, elsewhere)):
        if elsewhere in pair and beside.exists():
            beside.rename(elsewhere)
        code, *bounds = diff(*pair)
        assert code == 0
        assert all(tight <= value <= tight * (1 + 3e-9) for value in bounds)
    assert bound(model, "--write-certificate") == product  # beside the model lies one without multipliers now
    assert diff(elsewhere, model)[0] == 0
    weaker = json.loads(beside.read_text())
    beside.write_text(elsewhere.read_text())
    elsewhere.write_text(json.dumps(weaker))
    code, then, now = diff(elsewhere, model)  # the other way round, the model's own count
    assert code == 0
    assert tight <= now <= tight * (1 + 3e-9) < 0.9 * then


def test_a_worse_model_is_worse_whatever_its_certificate_stores(network):
    """Twice the weights have twice the constant: the multipliers of the certificate that is compared prove no less."""
    model, beside = str(network), network.with_suffix(".cert.json")
    tight = bound(model, "--method", "best", "--search-seconds", "5", "--write-certificate")
    proto = onnx.load(network)
    last = proto.graph.initializer[1]
    last.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(last) * 2, last.name))
    network.write_bytes(proto.SerializeToString())
    code, then, now = diff(beside, network)
    assert code == 1
    assert then <= tight * (1 + 3e-9)
    assert now >= 2 * tight * (1 - 1e-6)


def stated(network):
    return float(json.loads(network.with_suffix(".cert.json").read_text())["statement"]["lipschitz_bound"])


@pytest.mark.parametrize("explicit", [False, True], ids=["beside the model", "by its path"])
def test_replacing_a_certificate_keeps_what_it_proved(network, explicit):
    """A limit that plain verify meets is met, and what is written is no worse than what was there."""
    model = str(network)
    product = bound(model)
    tight = bound(model, "--method", "best", "--search-seconds", "5", "--write-certificate")
    before = stated(network)
    path = [str(network.with_suffix(".cert.json"))] if explicit else []
    limit = ["--max-lipschitz", str((product + tight) / 2)]
    assert bound(model, *limit) == bound(model, "--write-certificate", *path, *limit) == tight
    assert stated(network) == before
    assert bound(model, "--method", "best", "--search-seconds", "0", "--write-certificate", *path) == tight
    assert bound(model, "--method", "product", "--write-certificate", *path) == product
    assert stated(network) > before


@pytest.mark.parametrize("content", ["{", "[]", "", "multipliers"])
def test_a_certificate_that_cannot_be_read_is_replaced(network, content):
    model = str(network)
    product = bound(model)
    network.with_suffix(".cert.json").write_text(content)
    assert lipdeploy("verify", model).returncode == 4
    assert bound(model, "--write-certificate") == product
    assert bound(model) == product


def test_multipliers_of_another_network_are_no_obstacle(network):
    """Retrained and certified anew: what an older certificate stores proves what it proves, and is never believed."""
    model = str(network)
    bound(model, "--method", "best", "--search-seconds", "5", "--write-certificate")
    proto = onnx.load(network)
    (weight,) = (tensor for tensor in proto.graph.initializer if tensor.name == "W1")
    other = np.random.default_rng(7).standard_normal((20, 12)).astype(np.float32)
    weight.CopyFrom(numpy_helper.from_array(other, "W1"))
    network.write_bytes(proto.SerializeToString())
    assert lipdeploy("verify", model).returncode == 4
    last = numpy_helper.to_array(proto.graph.initializer[1])
    x, y = np.random.default_rng(8).standard_normal((2, 1000, 12))
    lengths = np.linalg.norm((np.maximum(x @ other.T, 0) - np.maximum(y @ other.T, 0)) @ last.T, axis=1)
    renewed = bound(model, "--write-certificate")
    assert float(np.max(lengths / np.linalg.norm(x - y, axis=1))) <= renewed <= bound(model, "--method", "product")
    assert bound(model) == renewed


def test_radii_grow_with_the_bound(network):
    x = np.random.default_rng(1).standard_normal((30, 12)).astype(np.float32)
    before = CertifiedSession(network).predict(x).radius
    bound(str(network), "--method", "best", "--search-seconds", "5", "--write-certificate")
    after = CertifiedSession(network).predict(x).radius
    assert np.all(after >= before) and after.mean() > 1.1 * before.mean()


def test_searching_beside_an_older_certificate_is_no_contradiction(network):
    model = str(network)
    bound(model, "--write-certificate")
    assert bound(model, "--method", "best", "--search-seconds", "5") < bound(model)


def test_edited_multipliers_are_noticed_or_harmless(network):
    model = str(network)
    bound(model, "--method", "best", "--search-seconds", "5", "--write-certificate")
    certificate = network.with_suffix(".cert.json")
    content = json.loads(certificate.read_text())
    hints = content["nodes"][-1]["hints"]["multipliers"]
    content["nodes"][-1]["hints"]["multipliers"] = [[(float.fromhex(v) * 1.5).hex() for v in layer] for layer in hints]
    certificate.write_text(json.dumps(content))
    done = lipdeploy("verify", model)
    assert done.returncode == 4 and "only" in done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [["--method", "guess"], ["--search-seconds", "-1"], ["--search-seconds", "soon"]])
def test_wrong_options(network, arguments):
    assert lipdeploy("verify", str(network), *arguments).returncode == 2


def test_the_search_is_not_trusted(network):
    """Whatever hints are given, what is reported was proven."""
    truth = verify(network, method="best", hints=[np.full(20, 1e-3)])
    assert float(truth.lipschitz_bound) <= float(verify(network).lipschitz_bound)
    nonsense = verify(network, method="best", hints=[np.full(20, -1.0)])
    assert float(nonsense.lipschitz_bound) == float(verify(network).lipschitz_bound)


def test_that_multipliers_serve_l2_only_is_said(network):
    done = lipdeploy("verify", str(network), "--method", "best", "--norm", "linf")
    assert done.returncode == 0
    assert "multipliers bound the l2 norm, so in linf the product is what is proven" in done.stderr
