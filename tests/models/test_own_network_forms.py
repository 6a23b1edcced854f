"""Networks of one's own as people write them: how they pool, what they never call, and weights from a file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from compress.cli import main
from compress.models import build, custom
from compress.models.outline import outline

CODE = """
import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self, classes, how, width=6):
        super().__init__()
        self.how = how
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, width, 3, 2, 1), nn.ReLU()
        )
        self.fc = nn.Linear(width * (16 if how == "flatten" else 1), classes)
        self.unused_pool = nn.AdaptiveAvgPool2d(2)
        self.unused_head = nn.Linear(3, 2)

    def forward(self, x):
        x = self.body(x)
        if self.how == "mean":
            x = x.mean((2, 3))
        elif self.how == "mean_one_by_one":
            x = x.mean(3).mean(2)
        elif self.how == "functional":
            x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        elif self.how == "functional_relu":
            x = F.relu_(x).mean([-2, -1])
        elif self.how == "flatten":
            x = torch.flatten(x, 1)
        elif self.how == "max":
            x = x.amax((2, 3))
        return self.fc(x)


class Pooled(Net):
    def __init__(self, classes):
        super().__init__(classes, "none")
        self.pool = nn.AvgPool2d(4)

    def forward(self, x):
        return self.fc(self.pool(self.body(x)).flatten(1))


def pooled(classes):
    return Pooled(classes)
""" + "".join(
    f"\n\ndef {how}(classes):\n    return Net(classes, '{how}')\n"
    for how in ("mean", "mean_one_by_one", "functional", "functional_relu", "flatten", "max")
)

RECIPE = """
data: {{source: fashion, limit_train: 300, limit_test: 100, validation: 100}}
teacher: {{candidates: [{{model: "formnets:{name}"{weights}}}]}}
student: {{model: "formnets:{name}"}}
distill: {{method: {method}}}
train: {{epochs: 1}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "formnets.py").write_text(CODE)
    sys.path.append(str(folder))
    return folder


@pytest.mark.parametrize(
    ("name", "averaged"),
    [
        ("mean", "body:out"),
        ("mean_one_by_one", "body:out"),
        ("functional", "body:out"),
        ("pooled", "pool:in"),
        ("flatten", None),
        ("max", None),
    ],
)
def test_the_pooled_map_is_found_where_there_is_one(folder: Path, name: str, averaged: str | None):
    found = outline(f"formnets:{name}", classes=10, width=None, image_size=32)
    assert found.taps["pooled"] == "fc:in" and len(found.shapes["pooled"]) == 1
    if averaged is None:
        # A wrong guess is noticed by the methods that rely on it.
        if "pre_pool" in found.shapes:
            with pytest.raises(Exception, match="is not the mean over"):
                custom.check_pooling(f"formnets:{name}", None, 32)
        return
    assert (found.taps["pre_pool"], found.shapes["pre_pool"]) == (averaged, (6, 4, 4))
    custom.check_pooling(f"formnets:{name}", None, 32)


@pytest.mark.parametrize("name", ["mean", "functional", "functional_relu", "flatten", "max", "pooled"])
@pytest.mark.slow
def test_methods_that_read_logits_take_any_network(folder: Path, capsys: pytest.CaptureFixture[str], name: str):
    path = folder / f"{name}.yaml"
    for method in ("kd", "dhkd"):
        path.write_text(RECIPE.format(name=name, weights="", method=method))
        assert main.main(["check", str(path), "--allow-code"]) == 0, capsys.readouterr().err


@pytest.mark.slow
def test_check_tries_the_weights(folder: Path, capsys: pytest.CaptureFixture[str]):
    path, file = folder / "w.yaml", folder / "own.ckpt"
    state = build("formnets:mean", classes=10).state_dict()
    torch.save({"state_dict": {f"net.{key}": tensor for key, tensor in state.items()}}, file)
    path.write_text(RECIPE.format(name="mean", weights=", weights: own.ckpt", method="kd"))
    assert main.main(["check", str(path), "--allow-code"]) == 0
    assert "teacher.candidates.0.weights: own.ckpt: state_dict, prefix net." in capsys.readouterr().out
    state["fc.weight"] = torch.zeros(7, 6)
    torch.save(state, file)
    assert main.main(["check", str(path), "--allow-code"]) == 2
    assert "does not fit Net: 1 of another shape" in capsys.readouterr().err
    torch.save(build("resnet8", classes=10).state_dict(), file)
    assert main.main(["check", str(path), "--allow-code"]) == 2
    assert "it is a checkpoint of another network" in capsys.readouterr().err
