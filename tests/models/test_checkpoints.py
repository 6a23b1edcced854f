from __future__ import annotations

import re
import shlex
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from compress.core.errors import MissingError, StageError, UsageError
from compress.models import build, pretrained, trusted_checkpoint
from compress.models.checkpoints import load_file, load_state, read_state, save_state


class Scheduler:
    """A class of a training script, as these like to save."""


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(tensor, other.state_dict()[key]) for key, tensor in one.state_dict().items())


def test_saved_weights_come_back(tmp_path: Path):
    model, fresh = build("resnet8", classes=10), build("resnet8", classes=10)
    save_state(model, tmp_path / "student.safetensors")

    kept = load_state(fresh, read_state(tmp_path / "student.safetensors"), source="student.safetensors")

    assert kept == ()
    assert equal(model, fresh)


def test_equal_weights_give_equal_bytes(tmp_path: Path):
    model = build("mobilenet_v2", classes=10)
    save_state(model, tmp_path / "a.safetensors")
    save_state(model.to(memory_format=torch.channels_last), tmp_path / "b.safetensors")

    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_half_precision_is_smaller_and_read_as_float32(tmp_path: Path):
    model = build("resnet8", classes=10)
    save_state(model, tmp_path / "full.safetensors")
    save_state(model, tmp_path / "half.safetensors", half=True)

    stored = safetensors.torch.load_file(tmp_path / "half.safetensors")
    state = read_state(tmp_path / "half.safetensors")

    assert (stored["conv1.weight"].dtype, stored["bn1.running_var"].dtype) == (torch.float16, torch.float32)
    assert {tensor.dtype for key, tensor in state.items() if "num_batches" not in key} == {torch.float32}
    torch.testing.assert_close(state["conv1.weight"], model.conv1.weight.detach(), atol=1e-3, rtol=1e-3)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * (tmp_path / "full.safetensors").stat().st_size


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state", "net", "weights"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model."])
def test_wrapped_and_prefixed_state_dicts_load(tmp_path: Path, wrapper: str | None, prefix: str):
    model, fresh = build("resnet8", classes=10), build("resnet8", classes=10)
    state = {prefix + key: tensor for key, tensor in model.state_dict().items()}
    torch.save(state if wrapper is None else {"epoch": 3, wrapper: state}, tmp_path / "teacher.pth")

    load_state(fresh, read_state(tmp_path / "teacher.pth"), source="teacher.pth")

    assert equal(model, fresh)


def test_prefix_that_only_some_keys_have_stays(tmp_path: Path):
    torch.save({"module.a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "x.pt")

    assert set(read_state(tmp_path / "x.pt")) == {"module.a", "b"}


def test_missing_batch_counters_are_tolerated():
    model, fresh = build("resnet8", classes=10), build("resnet8", classes=10)
    state = {key: tensor for key, tensor in model.state_dict().items() if not key.endswith("num_batches_tracked")}

    load_state(fresh, state, source="teacher.safetensors")

    assert equal(model, fresh)


@pytest.mark.parametrize(
    ("name", "new", "old"),
    [
        ("mobilenet_v2", "classifier.", "classifier.0."),
        ("shufflenet_v2", "fc.", "linear."),
        ("resnet8", "downsample.", "shortcut."),
        ("resnet8", "fc.", "classifier."),
    ],
)
def test_other_names_of_the_benchmarks_checkpoints_load(name: str, new: str, old: str):
    model, fresh = build(name, classes=10), build(name, classes=10)
    state = {key.replace(new, old): tensor for key, tensor in model.state_dict().items()}

    load_state(fresh, state, source="student.pth")

    assert set(state) != set(model.state_dict())
    assert equal(model, fresh)


def test_two_names_for_one_layer_are_refused():
    state = build("resnet8", classes=10).state_dict()
    for old in ("linear", "classifier"):
        state |= {f"{old}.weight": state["fc.weight"], f"{old}.bias": state["fc.bias"]}
    del state["fc.weight"], state["fc.bias"]

    with pytest.raises(StageError, match="2 unexpected"):
        load_state(build("resnet8", classes=10), state, source="teacher.pth")


def test_other_network_is_refused_with_the_first_keys():
    state = build("resnet14", classes=10).state_dict()

    with pytest.raises(StageError) as error:
        load_state(build("resnet8", classes=10), state, source="teacher.pth")

    assert str(error.value) == (
        "teacher.pth does not fit ResNet: 30 unexpected (layer1.1.conv1.weight, layer1.1.bn1.weight, "
        "layer1.1.bn1.bias, layer1.1.bn1.running_mean and 26 more); it is a checkpoint of another network"
    )


def test_missing_and_misshapen_keys_are_named_and_nothing_is_loaded():
    model = build("resnet8", classes=10)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state = {key: torch.full_like(tensor, 2) for key, tensor in before.items()}
    del state["bn1.bias"]
    state["conv1.weight"] = torch.zeros(16, 1, 3, 3)

    with pytest.raises(StageError) as error:
        load_state(model, state, source="teacher.pth")

    assert str(error.value) == (
        "teacher.pth does not fit ResNet: 1 missing (bn1.bias), 1 of another shape (conv1.weight is 16x1x3x3 in the "
        "file, 16x3x3x3 in the network); it is a checkpoint of another network"
    )
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_other_class_count_needs_a_new_head():
    trained = build("resnet8", classes=100)

    with pytest.raises(StageError) as error:
        load_state(build("resnet8", classes=10), trained.state_dict(), source="teacher.pth")

    assert str(error.value) == (
        "teacher.pth does not fit ResNet: 2 of another shape (fc.weight is 100x64 in the file, 10x64 in the network, "
        "fc.bias is 100 in the file, 10 in the network); it is a checkpoint for another number of classes"
    )


def test_new_head_keeps_its_fresh_weights_and_the_rest_is_loaded():
    trained, model = build("resnet8", classes=100), build("resnet8", classes=10)
    head = model.fc.weight.clone()

    kept = load_state(model, trained.state_dict(), source="teacher.pth", new_head=True)

    assert kept == ("fc.weight", "fc.bias")
    assert torch.equal(model.fc.weight, head)
    assert torch.equal(model.conv1.weight, trained.conv1.weight)
    with pytest.raises(StageError, match="another network"):
        load_state(build("resnet8x4", classes=10), trained.state_dict(), source="teacher.pth", new_head=True)


def test_values_that_are_not_finite_are_refused():
    state = build("resnet8", classes=10).state_dict()
    state["fc.bias"] = torch.full((10,), float("nan"))

    with pytest.raises(StageError, match="teacher.pth holds values that are not finite in fc.bias"):
        load_state(build("resnet8", classes=10), state, source="teacher.pth")


def trust(error: pytest.ExceptionInfo[UsageError]) -> Path:
    """Run the command that the message names, in this process; return the file that it writes."""
    python, *arguments = shlex.split(str(error.value).split(" with: ", 1)[1])
    assert [python, *arguments[:2]] == ["python", "-m", "compress.models.trusted_checkpoint"]
    assert trusted_checkpoint.main(arguments[2:]) == 0
    (written,) = Path(arguments[2]).parent.glob("*.tensors.pt")
    return written


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda model, ema: {"model": model.state_dict(), "when": Path("x")},
        lambda model, ema: {"model": model, "epoch": 3},
        lambda model, ema: nn.DataParallel(model),
        lambda model, ema: {"net": model.state_dict(), "args": Path("x")},
        lambda model, ema: {"state_dict": {key: value.numpy() for key, value in model.state_dict().items()}},
        lambda model, ema: {"state_dict": ema.state_dict(), "state_dict_ema": model.state_dict(), "args": Path("x")},
    ],
)
def test_pickle_with_code_is_refused_and_the_given_command_converts_it(tmp_path: Path, wrapped: Any):
    model, other = build("resnet8", classes=10), build("resnet8", classes=10)
    path = tmp_path / "my teacher.pth"
    torch.save(wrapped(model, other), path)

    with pytest.raises(UsageError, match="contains code .*, which is not run; .* take the tensors out of it") as error:
        read_state(path)

    fresh = build("resnet8", classes=10)
    load_file(fresh, trust(error))  # averaged weights before raw ones, as from any other file
    assert torch.equal(fresh.fc.weight, model.fc.weight) and torch.equal(fresh.conv1.weight, model.conv1.weight)


def test_what_holds_no_tensors_or_is_no_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.save({"when": Path("x")}, tmp_path / "x.pth")
    assert trusted_checkpoint.main([str(tmp_path / "x.pth")]) == 4 and "holds no tensors" in capsys.readouterr().err
    assert trusted_checkpoint.main([str(tmp_path / "nowhere.pth")]) == 2
    (tmp_path / "y.pth").write_bytes(b"no pickle")
    assert trusted_checkpoint.main([str(tmp_path / "y.pth")]) == 4


@pytest.mark.parametrize("head", ["head.", "head.fc.", "classifier."])
def test_a_backbone_and_a_head_are_one_network(tmp_path: Path, head: str):
    model = build("resnet8", classes=10)
    state = {f"backbone.{key}": value for key, value in model.state_dict().items() if not key.startswith("fc.")}
    state |= {f"{head}weight": model.fc.weight.detach(), f"{head}bias": model.fc.bias.detach()}
    torch.save({"state_dict": state}, tmp_path / "x.pt")
    fresh = build("resnet8", classes=10)
    note, kept = load_file(fresh, tmp_path / "x.pt")
    assert kept == () and f"its last layer from {head.rstrip('.')}" in note and "under backbone" in note
    assert torch.equal(fresh.fc.weight, model.fc.weight) and torch.equal(fresh.conv1.weight, model.conv1.weight)


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_file_without_the_last_layer_is_fine_where_a_new_one_is_fitted(tmp_path: Path, prefix: str):
    model = build("resnet8", classes=10)
    state = {f"{prefix}{key}": value for key, value in model.state_dict().items() if not key.startswith("fc.")}
    torch.save(state, tmp_path / "x.pt")
    fresh = build("resnet8", classes=7)
    assert load_file(fresh, tmp_path / "x.pt", new_head=True)[1] == ("fc.weight", "fc.bias")
    assert torch.equal(fresh.conv1.weight, model.conv1.weight)
    with pytest.raises(StageError, match="without its last layer; with `train` a new one is fitted"):
        load_file(build("resnet8", classes=10), tmp_path / "x.pt")


def test_another_network_with_a_backbone_is_still_refused(tmp_path: Path):
    state = {f"backbone.{key}": value for key, value in build("resnet20", classes=10).state_dict().items()}
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(StageError, match="another network"):
        load_file(build("resnet8", classes=10), tmp_path / "x.pt", new_head=True)


def test_pickled_classes_never_run(tmp_path: Path):
    torch.save({"model": {"a": torch.zeros(1)}, "scheduler": Scheduler()}, tmp_path / "x.pt")

    with pytest.raises(UsageError, match=r"contains code \(\S*Scheduler\)"):
        read_state(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x80\x02garbage"])
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(StageError, match="fetch it again") as error:
        read_state(tmp_path / name)

    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_cut_off_files_are_refused(tmp_path: Path, name: str):
    state: dict[str, Tensor] = build("resnet8", classes=10).state_dict()
    torch.save(state, tmp_path / "x.pt")
    safetensors.torch.save_file(state, tmp_path / "x.safetensors")
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:50_000])

    with pytest.raises(StageError, match="fetch it again"):
        read_state(tmp_path / name)


def test_files_without_a_state_dict(tmp_path: Path):
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "a.pt")
    torch.save([torch.zeros(1)], tmp_path / "b.pt")

    with pytest.raises(StageError, match=r"a\.pt has the keys epoch, lr and no state dict under state_dict, model"):
        read_state(tmp_path / "a.pt")
    with pytest.raises(StageError, match=r"b\.pt holds a list, not a state dict"):
        read_state(tmp_path / "b.pt")


def test_absent_file_and_unknown_ending(tmp_path: Path):
    (tmp_path / "x.h5").write_bytes(b"")

    with pytest.raises(MissingError, match=r"there is no file .*x\.pt"):
        read_state(tmp_path / "x.pt")
    with pytest.raises(
        UsageError, match=r"x\.h5 ends in '\.h5'; give a \.safetensors, \.pt, \.pth, \.bin, \.ckpt or \.pth\.tar file"
    ):
        read_state(tmp_path / "x.h5")


def test_pretrained_weights_come_from_the_cache_with_a_new_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    published = build("torchvision/shufflenet_v2_x0_5", classes=1000)
    (tmp_path / "checkpoints").mkdir()
    torch.save(published.state_dict(), tmp_path / "checkpoints" / "shufflenetv2_x0.5-f707e7126e.pth")

    model, fresh = pretrained("torchvision/shufflenet_v2_x0_5", "IMAGENET1K_V1", 7)

    assert set(fresh) == {"fc.weight", "fc.bias"}
    assert torch.equal(model.conv5[0].weight, published.conv5[0].weight)
    assert model.fc.weight.shape == (7, 1024)


def test_pretrained_weights_without_a_network_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)

    with pytest.raises(MissingError) as error:
        pretrained("torchvision/shufflenet_v2_x0_5", "IMAGENET1K_V1", 7)

    target = re.escape(str(tmp_path / "checkpoints" / "shufflenetv2_x0.5-f707e7126e.pth"))
    assert re.search(
        rf"could not be downloaded .*no route.*: curl -L --create-dirs -o {target} https://\S+/shufflenetv2_x0.5",
        str(error.value),
    )


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        (
            "torchvision/resnet18",
            "imagenet1k_v1",
            "has no weights 'imagenet1k_v1' (did you mean 'IMAGENET1K_V1'?); it has IMAGENET1K_V1, "
            "or give the path of a file",
        ),
        (
            "resnet20",
            "IMAGENET1K_V1",
            "has no weights 'IMAGENET1K_V1'; this network has no published weights, or give the path of a file",
        ),
    ],
)
def test_unknown_weights_name(name: str, weights: str, message: str):
    with pytest.raises(UsageError) as error:
        pretrained(name, weights, 10)

    assert str(error.value) == f"weights: {name} {message}"
