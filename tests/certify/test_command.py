"""``lipdeploy certify``: documents that follow the schema, exit codes, and a page that stands alone."""

from __future__ import annotations

import base64
import io
import json
import re
import signal
import subprocess
import sys
import time
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import numpy as np
import onnx
import pytest

from lipdeploy.cli import report, schema
from tests.certify.conftest import samples, truth, write_npz
from tests.cli.conftest import ROOT, Cli

pytest.importorskip("onnxruntime")

X, Y = samples(300, seed=1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_npz(tmp_path / "d.npz", X, Y)


def check(document: Any) -> Any:
    jsonschema.Draft202012Validator(json.loads(schema.read("certification-report/v1"))).validate(document)
    return document


def test_the_document_follows_the_schema_and_counts_what_is_true(cli: Cli, dense: Path, data: Path) -> None:
    result = cli("certify", dense, data, "--epsilon", "0.3", "--epsilon", "1", "--linf-epsilon", "1/4", "--json")
    assert (result.code, result.err) == (0, "")
    document = check(result.document)
    label, radius = truth(X)
    assert document["rows"] == 300 and document["correct"] == int((label == Y).sum())
    assert Fraction(document["accuracy"]) <= Fraction(document["correct"], 300)
    for line, epsilon in zip(document["at"], (0.3, 1.0), strict=False):
        assert line["certified_correct"] == int(((label == Y) & (radius * (1 - 1e-9) >= epsilon)).sum())
        assert sum(line[name] for name in ("certified_correct", "certified_wrong", "abstained")) == 300
    assert [line["norm"] for line in document["at"]] == ["l2", "l2", "linf"]
    for name in ("correct", "rows"):
        assert sum(line[name] for line in document["classes"]) == document[name]
    for place, line in enumerate(document["at"]):
        assert sum(entry["certified_correct"][place] for entry in document["classes"]) == line["certified_correct"]
    assert document["guarantee"] == "deployed" and document["nodes"][0]["op"] == "MatMul"
    from lipdeploy.runtime import find_library

    library = find_library()
    found = document["operator_library"]
    assert found == (None if library is None else {"version": library.version, "sha256": library.sha256})
    least = [entry["radius"] for entry in document["least_certain"]]
    assert least == sorted(least) and len(least) == 12


def test_the_text_rounds_down_and_says_what_is_certified(cli: Cli, dense: Path, data: Path) -> None:
    result = cli("certify", dense, data, "--epsilon", "0.3")
    correct = cli("certify", dense, data, "--epsilon", "0.3", "--json").document["at"][0]["certified_correct"]
    shares = re.findall(r"(\d+\.\d\d) %", result.out)
    assert Fraction(shares[1]) <= Fraction(100 * correct, 300) < Fraction(shares[1]) + Fraction(1, 100)
    assert "l2 norm, guarantee 'deployed', Lipschitz bound 0.75" in result.out


def test_adaptive_hears_of_the_linf_radii(cli: Cli, dense: Path, data: Path, tmp_path: Path) -> None:
    words = ("certify", dense, data, "--linf-epsilon", "0.1", "--linf-epsilon", "1/2", "--certify", "adaptive")
    assert cli(*words, "--resume", tmp_path / "j").code == 0
    run = json.loads((tmp_path / "j").read_bytes().partition(b"\n")[0])["run"]
    assert 0.5 * 2**0.5 <= run["epsilon"] < 0.7071068


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), 0),
        (("--epsilon", "0.1", "--min-certified", "40"), 0),
        (("--epsilon", "0.1", "--min-certified", "99.9"), 1),
        (("--min-certified", "10"), 2),
        (("--epsilon", "-1"), 2),
        (("--epsilon", "nan"), 2),
        (("--limit", "0"), 2),
        (("--max-lipschitz", "0.7"), 1),
        (("--labels", "nowhere.npy"), 2),
        (("--graph-output", "nothing"), 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_exit_codes(words: tuple[str, ...], code: int, cli: Cli, dense: Path, data: Path) -> None:
    result = cli("certify", dense, data, *words, "--json")
    assert result.code == code, result.err
    assert (result.out == "") == (code in (2, 3) or "--max-lipschitz" in words)


def test_a_missed_share_says_where_and_by_how_much(cli: Cli, dense: Path, data: Path) -> None:
    result = cli("certify", dense, data, "--epsilon", "0.1", "--epsilon", "0", "--min-certified", "99.9", "--json")
    shares = {line["epsilon"]: line["certified_accuracy"] for line in result.document["at"]}
    missed = [epsilon for epsilon, share in shares.items() if share < 0.999]
    said = [line for line in result.err.splitlines() if "below the 99.9 % that were asked for" in line]
    assert len(said) == len(missed) > 0
    assert all(f"ℓ2 {epsilon:g} is " in line for epsilon, line in zip(missed, said, strict=True))
    assert cli("certify", dense, data, "--epsilon", "0.1", "--min-certified", "1").err == ""


def test_refusals_and_wrong_certificates(cli: Cli, dense: Path, data: Path, tmp_path: Path) -> None:
    from tests.cli.conftest import UNKNOWN, write_model

    assert cli("certify", write_model(tmp_path / "unknown.onnx", UNKNOWN), data).code == 3
    assert cli("verify", dense, "--write-certificate").code == 0
    certificate = dense.with_suffix(".cert.json")
    certificate.write_text(
        certificate.read_text().replace(json.loads(certificate.read_text())["model"]["file_sha256"], "0" * 64)
    )
    result = cli("certify", dense, data)
    assert (result.code, result.out) == (4, "")


def test_output_goes_to_a_file_whole_or_not_at_all(cli: Cli, dense: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = cli("certify", dense, data, "--json", "--output", out)
    assert (result.code, result.out) == (0, "")
    check(json.loads(out.read_text()))
    assert cli("certify", dense, data, "--output", tmp_path / "nowhere" / "x").code == 2
    assert cli("certify", dense, data, "--report", tmp_path / "nowhere" / "x").code == 2


OVERWRITING = [
    (("--output", "d.npz"), "--output: d.npz is the data"),
    (("--output", "dense.onnx"), "--output: dense.onnx is one of the models"),
    (("--output", "dense.cert.json"), "is the certificate of a model"),
    (("--resume", "dense.sig.json"), "is the signature of a model"),
    (("--labels", "y.npy", "--output", "y.npy"), "y.npy is the labels"),
    (("--output", "r.html", "--report", "link.html"), "--output: r.html is already another output"),
    (("--resume", "j", "--output", "j"), "--resume: j is already another output"),
    (("--report", "page.html"), "page.html is one of the models"),
]


@pytest.mark.parametrize(("words", "phrase"), OVERWRITING)
def test_no_output_replaces_what_is_read_or_another_output(
    words: tuple[str, ...], phrase: str, cli: Cli, dense: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(dense.parent)
    np.save("y.npy", Y)
    Path("page.html").symlink_to("dense.onnx")
    Path("link.html").symlink_to("r.html")
    before = {path: path.read_bytes() for path in dense.parent.iterdir() if path.exists()}
    result = cli("certify", "dense.onnx", "d.npz", *words)
    assert (result.code, result.out) == (2, "")
    assert phrase in result.error
    assert {path: path.read_bytes() for path in dense.parent.iterdir() if path.exists()} == before


def test_no_output_replaces_a_sample_or_labels_that_were_found(
    cli: Cli, dense: Path, square: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.certify.conftest import write_folder

    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)
    np.save("y.npy", Y)
    write_folder(tmp_path / "set", np.zeros((2, 2, 2), np.uint8), np.array([0, 1]), ("0", "1"))
    for words in ((dense, "x.npy", "--output", "y.npy"), (square, "set", "--output", "set/0/0000.png")):
        before = Path(words[-1]).read_bytes()
        assert f"--output: {words[-1]} is a file of the data set" in cli("certify", *words).error
        assert Path(words[-1]).read_bytes() == before


def test_several_outputs_may_go_to_a_device(cli: Cli, dense: Path, data: Path) -> None:
    words = ("--report", "/dev/null", "--output", "/dev/null", "--json")
    assert cli("certify", dense, data, *words).code == 0


def test_an_interrupted_run_goes_on(
    cli: Cli, dense: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lipdeploy.certify import run

    whole = cli("certify", dense, data, "--epsilon", "0.3", "--json").document
    original = run.certify_block

    def interrupted(*arguments: Any) -> Any:
        if arguments[2].start >= 128:
            raise KeyboardInterrupt
        return original(*arguments)

    words = ("certify", dense, data, "--epsilon", "0.3", "--json", "--batch-rows", "32", "--resume", tmp_path / "j")
    monkeypatch.setattr(run, "certify_block", interrupted)
    result = cli(*words)
    assert result.code == 130 and "the same command goes on from there" in result.err
    monkeypatch.setattr(run, "certify_block", original)
    again = cli(*words).document
    for name in ("rows", "correct", "at", "classes", "histogram", "curve"):
        assert again[name] == whole[name]
    other = cli(*words, "--limit", "299")
    assert other.code == 2 and "the journal of another run" in other.error


SLOWLY = """
import sys, time
from lipdeploy.certify import journal, run
from lipdeploy.cli.main import main
journal.SECONDS_BETWEEN_WRITES, journal.SHARE_OF_TIME = 0.0, 1e9
original = run.certify_block

def slowly(*arguments):
    time.sleep(0.02)
    return original(*arguments)

run.certify_block = slowly
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_run_goes_on(cli: Cli, dense: Path, data: Path, tmp_path: Path) -> None:
    """kill -9 in the middle: no handler runs, what the journal holds then counts, and nothing else does."""
    whole = cli("certify", dense, data, "--epsilon", "0.3", "--json").document
    journal = tmp_path / "j"
    words = ("certify", dense, data, "--epsilon", "0.3", "--json", "--batch-rows", "2", "--resume", journal)
    killed = subprocess.Popen([sys.executable, "-c", SLOWLY, *map(str, words)], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while done(journal) < 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert 10 <= done(journal) < 300, "killed in the middle"
    again = cli(*words).document
    for name in ("rows", "correct", "at", "classes", "histogram", "curve"):
        assert again[name] == whole[name]
    assert done(journal) == 300 and not [path for path in tmp_path.iterdir() if path.name.startswith(".j")]


def done(journal: Path) -> int:
    """How many rows a journal holds."""
    if not journal.exists():
        return 0
    return int(np.frombuffer(journal.read_bytes().partition(b"\n")[2][:300], np.bool_).sum())


def test_ray_where_it_is_not_installed(dense: Path, data: Path) -> None:
    code = (
        "import importlib.util, sys; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, package=None: None if name == 'ray' else find(name, package)\n"
        "from lipdeploy.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, "certify", str(dense), str(data), "--engine", "ray"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "--engine ray needs ray, which is not installed (try: pip install 'lipdeploy[ray]')" in done.stderr


def test_progress_goes_to_standard_error_and_knows_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(report.time, "monotonic", lambda: now[0])
    with report.progress("certifying 100 samples", 100) as advance:
        advance(20)
        for _ in range(7):
            now[0] += 4.0
            advance(10)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "certifying 100 samples: 50 of 100, about 20 s left",
        "certifying 100 samples: 80 of 100, about 8 s left",
    ]


# The page.


class Page(HTMLParser):
    """What a page loads, what it shows, and whether its elements are closed."""

    VOID = frozenset({"meta", "img", "br", "line", "circle", "polygon", "polyline"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.sources += [given[name] or "" for name in ("src", "href", "data", "action", "srcset") if name in given]
        assert tag != "script" and not any(name.startswith("on") for name in given)
        if tag == "img":
            self.images.append(given)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.VOID

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture
def page(cli: Cli, square: Path, tmp_path: Path) -> str:
    model = onnx.load(square)
    model.metadata_props.add(
        key="lipdeploy.class_names", value=json.dumps(["<img src=x onerror=alert(1)>", "b\u202e&"])
    )
    onnx.save(model, square)
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (40, 2, 2), np.uint8)
    path = write_npz(tmp_path / "<b>d.npz", x, random.integers(0, 2, 40))
    result = cli("certify", square, path, "--epsilon", "9.5", "--report", tmp_path / "r.html")
    assert result.code == 0, result.err
    return (tmp_path / "r.html").read_text("utf-8")


def test_the_page_loads_nothing_and_hides_nothing(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == [] and len(parsed.images) == 24
    assert all(source.startswith("data:image/png;base64,") for source in parsed.sources)
    assert "url(" not in page and "@import" not in page and "http" not in page.replace("http-equiv", "")
    assert "default-src 'none'" in page and 'lang="en"' in page and "prefers-color-scheme: dark" in page
    assert all(image["alt"] for image in parsed.images)
    assert "\u202e" not in page and "<b>d.npz" not in page and "<img src=x" not in page


def test_the_drawings_are_well_formed_and_described(page: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) == 2
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        named = {element.get("id") for element in root if element.tag in ("title", "desc")}
        assert set((root.get("aria-labelledby") or "").split()) == named and len(named) == 2
        assert root.get("role") == "img"


def test_the_pictures_are_the_samples(page: str, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    x = np.load(tmp_path / "<b>d.npz")["x"]
    for entry in Page(page).images:
        (row,) = re.findall(r"sample (\d+),", entry["alt"] or "")
        pixels = image.open(io.BytesIO(base64.b64decode((entry["src"] or "").partition(",")[2])))
        np.testing.assert_array_equal(np.asarray(pixels), x[int(row)])


def test_no_label_of_the_curve_leaves_the_drawing_or_covers_another() -> None:
    from lipdeploy.certify.drawing import HEIGHT, LEFT, WIDTH, WORDS, Chart

    for xs in ([0.3, 25.0, 80.0, 403.0], [0.0, 0.1, 0.2, 0.3], [500.0, 510.0, 520.0, 545.0]):
        chart = Chart("c", "t", "d", 545.0, 100.0)
        for x in xs:
            chart.mark(x, 96.0 - x / 6, "96.10 %")
        for place, (start, high) in enumerate(chart.marks):
            assert LEFT <= start <= WIDTH - WORDS and 0 < high < HEIGHT
            assert all(abs(start - x) >= WORDS or abs(high - y) >= 15 for x, y in chart.marks[:place])
