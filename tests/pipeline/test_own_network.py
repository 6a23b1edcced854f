"""A network of one's own: refused without leave, checked, trained, exported; its code is part of the key."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from compress.cli import main
from compress.core.errors import MissingError, RecipeError, UsageError
from compress.methods import Signals, build_method
from compress.models import build, custom
from compress.models.deployed import to_deployed
from compress.models.outline import outline
from compress.models.taps import Tapped
from compress.recipe import loader
from compress.recipe.schema import Distill

CODE = """
from pathlib import Path
from torch import nn

Path(__file__).with_name("was run").touch()


def small(classes):
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    return nn.Sequential(*stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))


def silent(classes):
    return nn.Flatten()


def no_module(classes):
    return classes


def without():
    return nn.Linear(1, 1)


class Staged(nn.Module):
    def __init__(self, classes, width, pool, bias=True):
        super().__init__()
        widths = (3, width, 2 * width, 3 * width)
        for at in (1, 2, 3):
            conv = nn.Conv2d(widths[at - 1], widths[at], 3, 2, 1)
            self.add_module(f"layer{at}", nn.Sequential(conv, nn.BatchNorm2d(widths[at]), nn.ReLU(inplace=True)))
        self.pool = nn.AdaptiveAvgPool2d(1) if pool else None
        self.fc = nn.Linear(3 * width, classes, bias=bias)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.pool(x).flatten(1) if self.pool is not None else x.mean((2, 3)))


def staged(classes):
    return Staged(classes, 4, pool=False)


def telling(classes):
    network = Staged(classes, 8, pool=True, bias=False)
    norms = [f"layer{at}.1" for at in (1, 2, 3)]
    network.taps = {"stages": ["layer1", "layer2", "layer3"], "pre": norms, "norms": norms, "pool": "pool"}
    return network


class Doubled(Staged):
    def forward(self, x):
        return self.fc(2 * self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def doubled(classes):
    return Doubled(classes, 4, pool=False)


def lost(classes):
    network = staged(classes)
    network.taps = {"stages": ["layer1"], "pools": "pool"}
    return network
"""
MAPS = """
name: maps
data: {source: fashion, image_size: 32, augment: none, limit_train: 120, limit_test: 60, validation: 40}
teacher: {candidates: [{model: "minenets.nets:telling", train: {epochs: 1}}]}
student: {model: "minenets.nets:staged", taps: [layer1, layer2, layer3]}
distill: {method: simkd, baseline: false}
train: {epochs: 1, batch_size: 32}
validate: {repeats: 64, warmup: 2}
"""
RECIPE = """
name: mine
data: {source: fashion, image_size: 32, augment: none, limit_train: 300, limit_test: 200, validation: 60}
teacher:
  candidates:
    - {model: "minenets.nets:small", train: {epochs: 1}}
student: {model: "minenets.nets:small"}
distill: {method: rkd}
train: {epochs: 1, batch_size: 32}
validate: {repeats: 64, warmup: 2}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with a package of networks beside it."""
    (tmp_path / "minenets").mkdir()
    (tmp_path / "minenets" / "__init__.py").touch()
    (tmp_path / "minenets" / "nets.py").write_text(CODE)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    (tmp_path / "maps.yaml").write_text(MAPS)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path / "mine.yaml"
    for name in [name for name in sys.modules if name.split(".")[0] == "minenets"]:
        del sys.modules[name]
    importlib.invalidate_caches()


def test_a_strangers_recipe_runs_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("check", "run", "show", "teachers", "plan"):
        assert main.main([command, str(project)]) == 2
        said = capsys.readouterr().err
        assert (
            "mine.yaml:6:15: teacher.candidates.0.model: minenets.nets:small is Python code that would be run" in said
        )
        assert "student.model: minenets.nets:small is Python code" in said and "--allow-code" in said
    with pytest.raises(RecipeError):
        loader.load(project)
    assert not (project.parent / "minenets" / "was run").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("minenets.nets:small2", r"has no function small2\(classes\)"),
        ("minenets.nets:without", r"has no function without\(classes\)"),
        ("minenets.nets:no_module", "returns a int, not an nn.Module"),
    ],
)
def test_a_function_that_cannot_be_used(project: Path, name: str, said: str) -> None:
    sys.path.append(str(project.parent))
    with pytest.raises(UsageError, match=said):
        build(name, classes=10)


def test_absent_modules_and_networks_without_a_linear(project: Path) -> None:
    sys.path.append(str(project.parent))
    with pytest.raises(MissingError, match="there is no module 'elsewhere'"):
        build("elsewhere:small", classes=10)
    with pytest.raises(UsageError, match="has no Linear layer"):
        custom.last_linear(build("minenets.nets:silent", classes=10), "minenets.nets:silent")


def test_the_source_is_read_and_not_run(project: Path) -> None:
    sys.path.append(str(project.parent))
    before = custom.source_digest("minenets.nets:small")
    (project.parent / "minenets" / "other.py").write_text("raise SystemExit\n")

    assert custom.source_digest("minenets.nets:small") != before
    assert not (project.parent / "minenets" / "was run").exists()


def test_what_lies_beside_a_single_file_is_in_the_key_where_it_is_imported(project: Path):
    sys.path.append(str(project.parent))
    place = project.parent / "minefile.py"
    place.write_text(
        "import torch\n\ndef small(classes):\n    from mineblocks import Block\n    return Block(classes)\n"
    )
    (project.parent / "mineblocks.py").write_text("from minedeep.part import A\n")
    (project.parent / "minedeep").mkdir()
    (project.parent / "minedeep" / "part.py").write_text("A = 1\n")
    keys = [custom.source_digest("minefile:small")]
    for changed, text in (
        ("minedeep/part.py", "A = 2\n"),
        ("mineblocks.py", "from minedeep.part import A\nB = 1\n"),
        ("unused.py", "C = 1\n"),
    ):
        (project.parent / changed).write_text(text)
        keys.append(custom.source_digest("minefile:small"))
    assert keys[0] != keys[1] != keys[2] == keys[3]


def test_check_probes_the_maps_the_vector_and_the_file(project: Path, capsys: pytest.CaptureFixture[str]):
    assert main.main(["check", str(project.with_name("maps.yaml")), "--allow-code"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "teacher minenets.nets:telling: " in said
        and "stages 8x16x16, 16x8x8, 24x4x4, pooled 24; exported, onnxruntime and torch differ by" in said
    )
    assert "student minenets.nets:staged: " in said and "stages 4x16x16, 8x8x8, 12x4x4, pooled 12; exported" in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["student.taps=[layr1, layer2]"],
            "student.taps: tap 'layr1:out': Staged has no module 'layr1' (did you mean 'layer1'?)",
        ),
        (
            ["student.taps=[layer1, fc]"],
            "student.taps: minenets.nets:staged: stage 2 of its taps has the shape (10,) for one image; "
            "it must be a map (C, H, W)",
        ),
        (
            ["student.taps=null", "distill.method=at"],
            "which minenets.nets:staged does not name; name its stages in `taps`",
        ),
        (
            ["student.model=minenets.nets:doubled"],
            "student.taps: minenets.nets:doubled: the input of its last Linear is not the mean over 'layer3:out'",
        ),
        (
            ["student.model=minenets.nets:lost", "student.taps=null"],
            "student.model: minenets.nets:lost: its attribute taps has the unknown key 'pools'; "
            "known keys are stages, pre",
        ),
        (
            ["student.model=resnet8"],
            "student.taps: only your own network names its stages; those of resnet8 are known",
        ),
    ],
)
def test_maps_that_are_not_there(project: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str):
    options = [word for flag in flags for word in ("--set", flag)]
    assert main.main(["check", str(project.with_name("maps.yaml")), "--allow-code", *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("method", ["fitnet", "at", "ofd", "reviewkd", "simkd", "catkd"])
def test_methods_that_read_maps_take_it_and_what_ships_is_built_anew(project: Path, method: str):
    sys.path.append(str(project.parent))
    torch.manual_seed(0)
    names, stages = ("minenets.nets:staged", "minenets.nets:telling"), (("layer1", "layer2", "layer3"), None)
    student, teacher = (build(name, classes=5) for name in names)
    ours, theirs = (
        outline(name, classes=5, width=None, image_size=16, model=model, stages=taps)
        for name, model, taps in zip(names, (student, teacher), stages, strict=True)
    )
    built = build_method(Distill(method=method), student=ours, teacher=theirs, train_labels=torch.arange(5))
    pixels, index = torch.randn(4, 3, 16, 16), torch.arange(4)
    with Tapped(student, {name: ours.taps[name] for name in built.student_taps}) as tapped:
        logits, maps = tapped(pixels)
    with Tapped(teacher.eval(), {name: theirs.taps[name] for name in built.teacher_taps}) as tapped, torch.no_grad():
        known, targets = tapped(pixels)
    losses = built(Signals(index, index, torch.tensor(1.0), logits, known, maps, targets))
    sum(losses.values()).backward()
    assert student.layer1[0].weight.grad.abs().sum() > 0

    student.eval(), built.eval()
    with Tapped(student, {name: ours.taps[name] for name in built.student_taps}) as tapped, torch.no_grad():
        logits, maps = tapped(pixels)
        trained = built.logits(Signals(index, index, torch.tensor(1.0), logits, None, maps))
    again = to_deployed(build(names[0], classes=5), names[0], built.deployed_spec(), stages[0]).eval()
    again.load_state_dict(built.deployed(student).state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again(pixels), trained, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_it_teaches_by_its_maps_and_ships_with_the_teachers_classifier(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifacts = project.parent / "artifacts"
    assert main.main(
        ["run", str(project.with_name("maps.yaml")), "--allow-code", "--artifacts", str(artifacts), "--device", "cpu"]
    ) in (0, 6)
    report = json.loads((artifacts / "runs" / "maps" / "latest" / "report.json").read_text())
    assert report["student"]["params"] > 4 * 27 + 8 * 36 and report["models"][-1]["precision"] == "int8"


@pytest.mark.slow
def test_it_teaches_learns_and_ships_and_changed_code_is_trained_again(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifacts = project.parent / "artifacts"
    arguments = ["run", str(project), "--allow-code", "--artifacts", str(artifacts), "--device", "cpu"]
    assert main.main(arguments) in (0, 6), capsys.readouterr().err
    report = json.loads((artifacts / "runs" / "mine" / "latest" / "report.json").read_text())
    assert report["student"]["model"] == "minenets.nets:small" and report["student"]["params"] == 330
    assert report["models"][-1]["precision"] == "int8"

    (project.parent / "minenets" / "nets.py").write_text(CODE + "\n# a change\n")
    capsys.readouterr()
    assert main.main([*arguments, "--until", "teacher"]) == 0
    assert "teacher minenets.nets:small  running" in " ".join(capsys.readouterr().out.split(" ")).replace("   ", "  ")
