"""Networks of the package timm: names, weights, their input, taps, and the form that ships."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from compress.core.errors import MissingError, StageError, UsageError
from compress.core.records.base import File
from compress.core.records.training import Network, Normalization
from compress.models import build, catalog, checkpoints, timm_models
from compress.models.fused import fused
from compress.models.outline import outline
from compress.models.weight_choice import take_weights
from compress.training.build import build_for_training

timm = pytest.importorskip("timm", reason="timm is not installed")

VIT = "timm/test_vit"  # 0.3 million parameters, built for one size of images
TWO_HEADS = "timm/repvit_m0_9"


def record(name: str, size: int = 32, classes: int = 3) -> Network:
    return Network(name, None, classes, size, Normalization((0.5,) * 3, (0.5,) * 3))


def test_unknown_name_suggests_a_close_one():
    with pytest.raises(UsageError, match=r"has no network 'lcnet_0500' \(did you mean 'lcnet_050'\?\)"):
        build("timm/lcnet_0500", classes=3)


def test_without_timm_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)

    with pytest.raises(MissingError, match=r"pip install 'timm>=1.0'$"):
        build("timm/lcnet_050", classes=3)


def test_the_catalogue_knows_the_form_of_names():
    assert catalog.is_known("timm/lcnet_050") and not catalog.is_known("timm/lcnet_050.in1k")
    assert catalog.info("timm/lcnet_050").family == "timm"


@pytest.mark.parametrize(
    ("name", "weights", "mean", "size", "certain"),
    [
        ("timm/mobilevit_xxs", "pretrained", (0.0, 0.0, 0.0), 256, True),
        ("timm/mobilenetv3_small_050", "pretrained", (0.485, 0.456, 0.406), 224, True),
        ("timm/mobilenetv3_small_050", "mine.pth", (0.485, 0.456, 0.406), 224, True),
        ("timm/vit_base_patch16_224", "mine.pth", (0.5, 0.5, 0.5), 224, False),
        ("timm/vit_base_patch16_224", "vit_base_patch16_224.dino.pth", (0.485, 0.456, 0.406), 224, True),
    ],
)
def test_the_input_of_published_weights(name: str, weights: str, mean: tuple[float, ...], size: int, certain: bool):
    found = timm_models.published_input(name, weights)

    assert found is not None
    assert (found.normalization[0], found.image_size, found.certain) == (mean, size, certain)


def test_fresh_weights_have_no_input_of_their_own():
    assert timm_models.published_input("timm/lcnet_050", "none") is None


def test_unknown_weights_are_refused_with_those_that_there_are():
    with pytest.raises(UsageError, match=r"has no weights 'ra_in1k'.*it has pretrained, lamb_in1k"):
        timm_models.resolve_tag("timm/mobilenetv3_small_050", "ra_in1k")
    with pytest.raises(UsageError, match="timm has no published weights of timm/ghostnetv3_050"):
        timm_models.resolve_tag("timm/ghostnetv3_050", "pretrained")


def cached(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Put weights where timm looks for downloaded ones, and forbid downloads; return the weights."""
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    torch.manual_seed(0)
    state: dict[str, Tensor] = timm.create_model(name, pretrained=False).state_dict()
    place = folder / f"models--timm--{name}"
    (place / "snapshots" / "1").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("1", encoding="utf-8")
    save_file(state, place / "snapshots" / "1" / "model.safetensors")
    return state


def test_published_weights_come_from_timms_cache_with_a_new_last_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    state = cached(tmp_path, "test_vit.r160_in1k", monkeypatch)

    model, head = build_for_training(record(VIT), "r160_in1k", None, new_head=True, device="cpu")

    assert head == "head"
    own = model.state_dict()
    assert torch.equal(own["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.weight"])
    assert own["head.weight"].shape == (3, 64)
    with pytest.raises(StageError, match="is for another number of classes, so its last layer would answer at random"):
        build_for_training(record(VIT), "r160_in1k", None, new_head=False, device="cpu")
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)  # the position embedding was resized from 160 pixels


def test_weights_that_cannot_be_downloaded_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    with pytest.raises(MissingError, match=r"lcnet_050.ra2_in1k could not be downloaded .* name it in `weights`"):
        timm_models.pretrained("timm/lcnet_050", "pretrained", 3, 32)


def test_a_file_without_a_classifier_gets_a_new_one_and_its_embedding_is_resized(tmp_path: Path):
    path = tmp_path / "backbone.safetensors"
    backbone = timm.create_model("test_vit", num_classes=0)
    save_file(backbone.state_dict(), path)

    model, head = build_for_training(record(VIT), "file", File.of(path), new_head=True, device="cpu")

    assert head == "head"
    assert model.state_dict()["head.weight"].shape == (3, 64)
    assert model.state_dict()["pos_embed"].shape[1] < backbone.state_dict()["pos_embed"].shape[1]
    with pytest.raises(StageError, match="for another number of classes"):  # a finished teacher needs its own
        build_for_training(record(VIT), "file", File.of(path), new_head=False, device="cpu")


def test_a_file_of_another_network_is_refused(tmp_path: Path):
    path = tmp_path / "other.safetensors"
    save_file(timm.create_model("lcnet_035").state_dict(), path)
    model = build("timm/lcnet_050", classes=3)

    with pytest.raises(StageError, match="of another network"):
        checkpoints.load_file(model, path, new_head=True)


def test_weights_of_timms_own_training_script_are_taken_averaged(tmp_path: Path):
    model = build("timm/lcnet_035", classes=3)
    raw = {key: value.clone() for key, value in model.state_dict().items()}
    averaged = {key: value + 1 if value.is_floating_point() else value for key, value in raw.items()}
    torch.save({"arch": "lcnet_035", "state_dict": raw, "state_dict_ema": averaged}, tmp_path / "x.pth.tar")

    taken = take_weights(tmp_path / "x.pth.tar", model)

    assert torch.equal(taken.state["classifier.bias"], averaged["classifier.bias"])


def test_two_averaged_classifiers_are_both_new_and_neither_is_probed(tmp_path: Path):
    path = tmp_path / "two.pth"
    torch.save(timm.create_model("repvit_m0_9", num_classes=7).state_dict(), path)

    model, head = build_for_training(record(TWO_HEADS), "file", File.of(path), new_head=True, device="cpu")
    found = outline(TWO_HEADS, classes=3, width=None, image_size=32)

    assert head is None  # both answer, so a last layer alone has no floor to give
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert "head" not in found.shapes and found.shapes["pooled"] == (384,)
    assert [found.shapes[f"stages_post.{n}"][0] for n in (1, 2, 3, 4)] == [48, 96, 192, 384]


def test_tokens_are_no_maps_and_a_convolution_may_be_the_classifier():
    vit = outline(VIT, classes=3, width=None, image_size=32)
    dla = outline("timm/dla46_c", classes=3, width=None, image_size=64)

    assert set(vit.shapes) == {"pooled", "head"}
    assert dla.shapes["pooled"] == (256,) and "head" not in dla.shapes


def test_a_size_that_a_network_cannot_take_is_one_sentence():
    with pytest.raises(UsageError, match="timm/ghostnetv3_050 does not take images of 32 pixels"):
        outline("timm/ghostnetv3_050", classes=3, width=None, image_size=32)


def test_a_pooled_vector_that_is_no_mean_is_found():
    timm_models.check_pooling("timm/resnet10t", 32)
    with pytest.raises(UsageError, match="does not read the mean over its last map"):
        timm_models.check_pooling("timm/efficientvit_m0", 64)


def with_statistics(model: nn.Module) -> nn.Module:
    """Give every BatchNorm other statistics and weights than fresh ones, which would hide a wrong fusion."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                assert isinstance(tensor, Tensor)
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


def test_branches_are_fused_on_a_copy_with_the_same_answers():
    model = with_statistics(build("timm/repghostnet_050", classes=3, image_size=32))
    before = sum(value.numel() for value in model.parameters())

    form = fused(model, 32)

    pixels = torch.randn(2, 3, 32, 32)
    assert form.kept and form.modules > 0 and form.network is not model
    assert sum(value.numel() for value in form.network.parameters()) < before
    assert sum(value.numel() for value in model.parameters()) == before
    with torch.no_grad():
        wanted, got = model(pixels), form.network(pixels)
    assert torch.allclose(wanted, got, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    assert not form.network.training


def test_nothing_to_fuse_is_the_network_itself():
    model = build("timm/lcnet_035", classes=3).eval()

    assert fused(model, 32).network is model


class Branches(nn.Module):
    """A user's own block of two branches; `wrong`: deployed, it forgets one of them."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.wrong, self.deployed = wrong, False

    def switch_to_deploy(self) -> None:
        if not self.wrong:
            self.one.weight.add_(self.two.weight)
            self.one.bias.add_(self.two.bias)  # type: ignore[union-attr]
        del self.two
        self.deployed = True

    def fuse(self, other: Tensor) -> Tensor:
        return other  # a name that means something else in other packages

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) if self.deployed else self.one(x) + self.two(x)


@pytest.mark.parametrize("wrong", [False, True])
def test_a_users_own_branches_are_fused_only_where_the_answers_stay(wrong: bool):
    torch.manual_seed(0)
    model = nn.Sequential(Branches(wrong), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()

    form = fused(model, 8)

    assert form.kept is not wrong
    assert (form.network is model) is wrong
    assert form.difference is not None and (form.difference > form.limit) is wrong
