"""The example of docs/export.md runs."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import lipdeploy as lip
from lipdeploy.nn import FullSort

PAGE = Path(__file__).resolve().parents[2] / "docs" / "export.md"


def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example, adapter = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    exec(compile(example, str(PAGE), "exec"), {})
    names: dict = {}
    exec(compile(adapter, str(PAGE), "exec"), names)
    assert isinstance(names["adapt_sort"](torch.nn.Identity()), FullSort)
    assert lip.verify("model.onnx").class_names == ("a", "b", "c")


def test_every_option_is_described():
    import inspect

    from lipdeploy.export import export

    options = [p.name for p in inspect.signature(export).parameters.values() if p.kind is p.KEYWORD_ONLY]
    described = re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`.*?) \|", PAGE.read_text("utf-8"), re.MULTILINE)))
    assert set(options) <= set(described)
