"""Checkpoints as they come: what is taken from each, and what is said of it."""

from __future__ import annotations

import argparse
import pickle
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from compress import models
from compress.cli import main
from compress.core.errors import CompressError, StageError, UsageError
from compress.models.checkpoints import load_file, save_state
from compress.models.weight_choice import take_weights
from tests.support.cases import checkpoints
from tests.support.cases.checkpoints import CLASSES, NETWORK, averaged_of, under


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return folder, checkpoints.write(folder)


def loaded(path: Path, key: str | None = None, name: str = NETWORK, classes: int = CLASSES) -> tuple[nn.Module, str]:
    model = models.build(name, classes=classes)
    return model, load_file(model, path, key=key)[0]


def equal(model: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "averaged", "note"),
    [
        ("timm.pth.tar", True, "state_dict_ema (averaged weights); not taken: state_dict (weights_key takes another)"),
        ("timm_args.pth.tar", True, "state_dict_ema (averaged weights); not taken: state_dict "),
        ("torchvision_reference.pth", True, "model_ema, prefix module. (averaged weights); not taken: model.module "),
        ("ema_only.pth", True, "model_ema, prefix module. (averaged weights)"),
        ("lightning.ckpt", False, "state_dict, prefix model."),
        ("lightning_loss.ckpt", False, "state_dict, prefix model.; ignored: criterion.weight"),
        ("lightning_net.ckpt", False, "state_dict, prefix net."),
        ("ddp_compiled.pth", False, "prefix module._orig_mod."),
    ],
)
def test_every_file_gives_its_weights_and_says_which(cases, name: str, averaged: bool, note: str):
    folder, raw = cases
    model, said = loaded(folder / name)
    assert equal(model, averaged_of(raw) if averaged else raw)
    assert said.startswith(note)


def test_raw_weights_are_taken_where_the_recipe_names_them(cases):
    folder, raw = cases
    for name, key in (("timm.pth.tar", "state_dict"), ("torchvision_reference.pth", "model")):
        model, note = loaded(folder / name, key)
        assert equal(model, raw) and "not taken: " in note and "averaged" not in note
        assert take_weights(folder / name, model, key).key == (key if key == "state_dict" else "model.module")
    assert take_weights(folder / "timm.pth.tar", model).key == "state_dict_ema"
    assert take_weights(folder / "lightning.ckpt", model).key is None  # older cache keys stay valid


def test_two_networks_are_asked_about(cases):
    folder, raw = cases
    path = folder / "two_networks.ckpt"
    with pytest.raises(
        UsageError, match=r"holds several networks of this kind: state_dict\.student, state_dict\.teach"
    ) as error:
        loaded(path)
    assert str(error.value).endswith("say which: weights_key: state_dict.student")
    for key in ("student", "student.", "state_dict.student"):
        assert equal(loaded(path, key)[0], raw)
    assert equal(loaded(path, "teacher")[0], averaged_of(raw))
    with pytest.raises(
        UsageError, match="has no weights 'techer' of this network; it holds state_dict.student, state_"
    ):
        loaded(path, "techer")


# Files of the same kinds that are in no list.


def test_averaged_weights_are_known_by_many_names(tmp_path: Path):
    raw = models.build("resnet8", classes=10).state_dict()
    ema = averaged_of(raw)
    for number, content in enumerate(
        (
            {"state_dict": raw, "ema_state_dict": ema},
            {"model": raw, "ema": {"module": ema, "updates": 7}},
            {"model": raw, "swa_model": under("module.", ema)},
            {"state_dict": {**under("model.", raw), **under("model_ema.module.", ema)}},
            {"net": under("module.", raw), "EMA": under("module._orig_mod.", ema), "epoch": 3},
        )
    ):
        torch.save(content, tmp_path / f"{number}.pt")
        model, note = loaded(tmp_path / f"{number}.pt", name="resnet8")
        assert equal(model, ema) and "(averaged weights); not taken: " in note, content.keys()


def test_averaged_weights_that_cannot_be_used_are_mentioned(tmp_path: Path):
    raw = models.build("resnet8", classes=10).state_dict()
    parameters = {key: tensor for key, tensor in averaged_of(raw).items() if "running" not in key}
    for content in ({"model": raw, "ema": parameters}, {"model": raw, "ema": {"shadow_params": [torch.ones(3)]}}):
        torch.save(content, tmp_path / "x.pt")
        model, note = loaded(tmp_path / "x.pt", name="resnet8")
        assert equal(model, raw) and "averaged weights under ema do not have all keys of the network" in note
    torch.save({"model": raw, "ema": None}, tmp_path / "x.pt")  # as timm writes it without an average
    assert loaded(tmp_path / "x.pt", name="resnet8")[1] == "model"


def test_several_averages_are_asked_about(tmp_path: Path):
    raw = models.build("resnet8", classes=10).state_dict()
    torch.save(
        {"ema_fast": averaged_of(raw), "ema_slow": averaged_of(averaged_of(raw)), "model": raw}, tmp_path / "x.pt"
    )
    with pytest.raises(
        UsageError, match="several networks of this kind: ema_fast, ema_slow; say which: weights_key: ema_fast"
    ):
        loaded(tmp_path / "x.pt", name="resnet8")


def test_one_network_under_two_names_is_one(tmp_path: Path):
    raw = models.build("resnet8", classes=10).state_dict()
    torch.save({"state_dict": {**under("net.", raw), **under("model.", raw)}}, tmp_path / "x.ckpt")
    assert equal(loaded(tmp_path / "x.ckpt", name="resnet8")[0], raw)


def test_a_network_beside_its_teacher_in_one_level_is_asked_about(tmp_path: Path):
    raw = models.build("resnet8", classes=10).state_dict()
    torch.save({"state_dict": {**raw, **under("teacher.", averaged_of(raw))}}, tmp_path / "x.ckpt")
    with pytest.raises(UsageError, match=r"several networks of this kind: state_dict, state_dict\.teacher"):
        loaded(tmp_path / "x.ckpt", name="resnet8")
    assert equal(loaded(tmp_path / "x.ckpt", "teacher", name="resnet8")[0], averaged_of(raw))


def test_a_teacher_of_another_kind_beside_the_network_is_no_question(tmp_path: Path):
    raw = models.build("resnet8", classes=10).state_dict()
    other = models.build("resnet14", classes=10).state_dict()
    torch.save({"state_dict": {**under("student.", raw), **under("teacher.", other)}}, tmp_path / "x.ckpt")
    model, note = loaded(tmp_path / "x.ckpt", name="resnet8")
    assert equal(model, raw) and note.startswith("state_dict, prefix student.; ignored: teacher.conv1.weight")
    assert equal(loaded(tmp_path / "x.ckpt", name="resnet14")[0], other)


def test_a_deeper_network_is_never_cut_to_a_shallower_one(tmp_path: Path):
    deeper = models.build("resnet14", classes=10).state_dict()
    for content in (deeper, {"state_dict": under("model.", deeper)}, {"model_ema": under("module.", deeper)}):
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(StageError, match="it is a checkpoint of another network"):
            loaded(tmp_path / "x.pt", name="resnet8")


def test_metrics_and_loss_weights_beside_the_layers_are_ignored(tmp_path: Path):
    raw = models.build("resnet8", classes=10).state_dict()
    torch.save(
        {"state_dict": {**raw, "loss.weight": torch.ones(10), "valid_acc.tp": torch.zeros(10)}}, tmp_path / "x.ckpt"
    )
    model, note = loaded(tmp_path / "x.ckpt", name="resnet8")
    assert equal(model, raw) and note == "state_dict; ignored: loss.weight, valid_acc.tp"


def test_safetensors_have_prefixes_too(tmp_path: Path):
    raw = models.build("resnet8", classes=10).state_dict()
    safetensors.torch.save_file({**under("backbone.", raw), "head.scale": torch.ones(3)}, tmp_path / "x.safetensors")
    model, note = loaded(tmp_path / "x.safetensors", name="resnet8")
    assert equal(model, raw) and note == "prefix backbone.; ignored: head.scale"
    both = {**under("model.", raw), **under("ema.", averaged_of(raw))}
    safetensors.torch.save_file({key: tensor.clone() for key, tensor in both.items()}, tmp_path / "x.safetensors")
    assert equal(loaded(tmp_path / "x.safetensors", name="resnet8")[0], averaged_of(raw))


def test_a_plain_file_needs_no_note(tmp_path: Path):
    model = models.build("resnet8", classes=10)
    save_state(model, tmp_path / "x.safetensors")
    found = take_weights(tmp_path / "x.safetensors", models.build("resnet8", classes=10))
    assert (found.key, found.note) == (None, "")


def test_numbers_of_numpy_and_arguments_are_read(tmp_path: Path):
    raw = models.build("resnet8", classes=10).state_dict()
    arguments = argparse.Namespace(
        lr=np.float32(0.1), epochs=np.int64(3), nested=argparse.Namespace(amp=np.bool_(True))
    )
    content = {"state_dict": raw, "best": np.float64(71.5), "kind": np.dtype("float32"), "hyper_parameters": arguments}
    torch.save(content, tmp_path / "x.ckpt")
    assert equal(loaded(tmp_path / "x.ckpt", name="resnet8")[0], raw)
    # As numpy 1 names the function that makes a number.
    data = (tmp_path / "x.ckpt").read_bytes()
    assert b"numpy._core.multiarray" in data
    torch.save(content, tmp_path / "x.ckpt", _use_new_zipfile_serialization=False)
    old = (tmp_path / "x.ckpt").read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    (tmp_path / "old.ckpt").write_bytes(old)
    assert equal(loaded(tmp_path / "old.ckpt", name="resnet8")[0], raw)


class Runs:
    """A pickle that would call a function."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("ran"),))


def test_nothing_else_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    raw = models.build("resnet8", classes=10).state_dict()
    for item in (Runs(), argparse.Namespace(inner=Runs()), types.SimpleNamespace(lr=1), np.zeros(3), Path("x")):
        torch.save({"state_dict": raw, "args": item}, tmp_path / "x.pt")
        with pytest.raises(UsageError, match=r"contains code \(\S+\), which is not run"):
            loaded(tmp_path / "x.pt", name="resnet8")
    (tmp_path / "y.ckpt").write_bytes(pickle.dumps(Runs()))
    with pytest.raises(CompressError):
        loaded(tmp_path / "y.ckpt", name="resnet8")
    assert not (tmp_path / "ran").exists()


RECIPE = """
data: {{source: fashion, limit_train: 300, limit_test: 100, validation: 100}}
teacher: {{candidates: [{{model: resnet8, weights: {weights}{more}}}]}}
student: {{model: resnet8, weights: {weights}{more}}}
distill: {{method: kd, baseline: false}}
train: {{epochs: 1}}
quantize: {{scheme: none}}
"""


def test_check_and_run_say_what_was_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    raw = models.build("resnet8", classes=10).state_dict()
    torch.save({"state_dict": raw, "state_dict_ema": raw | {"fc.bias": raw["fc.bias"] + 1}}, tmp_path / "x.pth.tar")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE.format(weights="x.pth.tar", more=""))
    assert main.main(["check", str(recipe)]) == 0
    taken = "state_dict_ema (averaged weights); not taken: state_dict (weights_key takes another)"
    assert f"student.weights: x.pth.tar: {taken}" in capsys.readouterr().out
    common = [str(recipe), "--artifacts", str(tmp_path / "a"), "--device", "cpu", "--until", "distill"]
    for _ in range(2):  # also where the result is reused
        assert main.main(["run", *common]) == 0
        said = capsys.readouterr().out
        assert f"note: teacher resnet8: checkpoint ({taken})" in said
        assert f"note: student resnet8: from x.pth.tar: {taken}" in said
    assert said.count("reused") == 3  # data, teacher, distill
    recipe.write_text(RECIPE.format(weights="x.pth.tar", more=", weights_key: state_dict"))
    assert main.main(["run", *common]) == 0
    said = capsys.readouterr().out
    assert said.count("running") == 2 and "checkpoint (state_dict; not taken: state_dict_ema" in said
    recipe.write_text(RECIPE.format(weights="none", more=", weights_key: state_dict"))
    assert main.main(["check", str(recipe)]) == 2
    assert "chooses among the weights of a file, but weights is none: leave it out" in capsys.readouterr().err


def test_check_asks_which_of_two_networks_is_meant(cases, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder, _ = cases
    shutil.copy(folder / "two_networks.ckpt", tmp_path)
    recipe = tmp_path / "r.yaml"
    text = RECIPE.format(weights="two_networks.ckpt", more="").replace("model: resnet8", f"model: {NETWORK}")
    recipe.write_text(text)
    assert main.main(["check", str(recipe)]) == 2
    assert "say which: weights_key: state_dict.student" in capsys.readouterr().err
