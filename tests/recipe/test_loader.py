"""Recipes: every mistake in one line each, YAML's traps, overrides, defaults, the way there and back."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from compress.core.errors import RecipeError, UsageError
from compress.core.records.base import key_content, sha256_of
from compress.recipe import loader
from compress.recipe.defaults import resolve, resolved_train
from compress.recipe.schema import Train, json_schema

RECIPES = Path(__file__).parents[2] / "recipes"

GOOD = """\
data: {source: fashion}
teacher:
  candidates:
    - {model: resnet20}
student: {model: mobilenet_v2}
"""

LISTS = "`compress models` lists all"

# what is wrong, what is said (without the path), as lines appended to GOOD
APPENDED = [
    ("trian: {epochs: 3}", ["6:1: trian: unknown key (did you mean 'train'?)"]),
    ("epochs: 3", ["6:1: epochs: unknown key here (did you mean 'train.epochs'?)"]),
    ("train: {epochs:20}", ["6:9: train.epochs:20: unknown key; put a space behind the colon: epochs: 20"]),
    ("train: {epochs: 0}", ["6:17: train.epochs: must be at least 1, got 0"]),
    ("train: {epochs: abc}", ["6:17: train.epochs: expected a whole number, got 'abc'"]),
    ("train: {epochs: 6.5}", ["6:17: train.epochs: expected a whole number, got 6.5"]),
    ('train: {epochs: "6"}', ["6:17: train.epochs: expected a whole number, got '6'"]),
    ("train: {lr: abc}", ["6:13: train.lr: expected a number, got 'abc'"]),
    ("train: {lr: -1}", ["6:13: train.lr: must be above 0, got -1"]),
    ("train: {lr: true}", ["6:13: train.lr: expected a number, got true"]),
    ("train: {lr: .inf}", ["6:13: train.lr: expected a number, got '.inf'"]),
    ("train: {lr: 1e999}", ["6:13: train.lr: expected a finite number, got inf"]),
    ("train: {momentum: 1}", ["6:19: train.momentum: must be below 1, got 1"]),
    ("train: {nesterov: on}", ["6:19: train.nesterov: expected true or false, got 'on'"]),
    ("train: {nesterov: 1}", ["6:19: train.nesterov: expected true or false, got 1"]),
    ("train: {batch_size: 70000}", ["6:21: train.batch_size: must be at most 65536, got 70000"]),
    (
        "train: {precision: fp16}",
        ["6:20: train.precision: expected one of auto, float32, bf16, got 'fp16' (did you mean 'bf16'?)"],
    ),
    *(
        (
            f"train: {{class_weights: {value}}}",
            ["6:24: train.class_weights: expected none, balanced or weights above 0 by class, such as {faulty: 3}"],
        )
        for value in ("equal", "{}", "{a: 0}", "{a: -1}", "{a: .inf}", "[1, 2]", "true", "{a: {b: 2}}")
    ),
    (
        "distill: {method: simkd}\ntrain: {class_weights: balanced}",
        ["7:24: train.class_weights: weighs the cross-entropy, which simkd leaves out; leave the weights out"],
    ),
    (
        "distill: {method: [dhkd, kd], dhkd: {gamma: 0}}\ntrain: {class_weights: {a: 2}}",
        ["7:24: train.class_weights: weighs the cross-entropy, which dhkd leaves out; leave the weights out"],
    ),
    (
        "train: {class_weights: balanced, sampling: balanced}",
        [
            "6:24: train.class_weights: balances the classes, as train.sampling: balanced does already; choose one of "
            "the two"
        ],
    ),
    (
        "distill: {method: crd}\ntrain: {sampling: balanced}",
        [
            "7:19: train.sampling: shows an image several times in a batch, but crd remembers one embedding of each; "
            "use class_weights, or another method"
        ],
    ),
    ("train: {metric: f1}", ["6:17: train.metric: expected one of top1, balanced_accuracy, macro_f1, got 'f1'"]),
    ("train: 5", ["6:8: train: expected a section (keys with values), got 5"]),
    ("train: {schedule: {kind: step, milestones: 5}}", ["6:44: train.schedule.milestones: expected a list, got 5"]),
    (
        "train: {epochs: 10, schedule: {kind: step, milestones: [5, 12]}}",
        ["6:56: train.schedule.milestones: 12 would have no effect: the training has 10 epochs"],
    ),
    ("train: {schedule: {milestones: [9, 3]}}", ["6:32: train.schedule.milestones: must ascend, got 9, 3"]),
    (
        "train: {batch_norm: frozen}",
        [
            "6:21: train.batch_norm: keeps the statistics of pretrained weights, but this training starts from "
            "scratch (weights)"
        ],
    ),
    (
        "train: {optimizer: adamw, nesterov: true}",
        ["6:37: train.nesterov: is a setting of sgd, but train.optimizer is adamw; leave it out"],
    ),
    (
        "train: {optimizer: adam}",
        ["6:20: train.optimizer: expected one of sgd, adamw, got 'adam' (did you mean 'adamw'?)"],
    ),
    ("train: {ema: 1}", ["6:14: train.ema: must be below 1, got 1"]),
    (
        "train: {probe: true}",
        [
            "6:16: train.probe: fits a layer to the features of pretrained weights, but this training starts from "
            "scratch (weights)"
        ],
    ),
    (
        "train: {epochs: 3, schedule: {warmup_epochs: 5}}",
        ["6:46: train.schedule.warmup_epochs: the warm-up (5 epochs) must be shorter than the training (3)"],
    ),
    (
        "train: {trace_gradients: 5}\ndistill: {method: none}",
        ["6:26: train.trace_gradients: compares the gradients of two losses, but this training has only one loss"],
    ),
    ("distill: {temprature: 3}", ["6:11: distill.temprature: unknown key (did you mean 'temperature'?)"]),
    (
        "distill: {head: nonliner}",
        ["6:17: distill.head: expected one of linear, nonlinear, none, got 'nonliner' (did you mean 'nonlinear'?)"],
    ),
    (
        "distill: {standardize: true}",
        ["6:11: distill.standardize: belongs to method 'kd', but distill.method is 'dhkd'"],
    ),
    (
        "distill: {method: dkhd, alpha: 2}",
        [
            (
                "6:19: distill.method: expected one of dhkd, kd, dkd, dist, fitnet, at, rkd, crd, ofd, "
                "reviewkd, simkd, catkd, none, auto, got 'dkhd' (did you mean 'dkd'?)"
            )
        ],
    ),
    (
        "distill: {method: [dhkd, dkd], alpha: 2}",
        [
            (
                "6:32: distill.alpha: several methods are listed, so their keys stand in their own sections: "
                "distill.dhkd.alpha or distill.dkd.alpha"
            )
        ],
    ),
    (
        "distill: {method: [dhkd, dkhd]}",
        [
            (
                "6:26: distill.method.1: expected one of dhkd, kd, dkd, dist, fitnet, at, rkd, crd, ofd, "
                "reviewkd, simkd, catkd, none, auto, got 'dkhd' (did you mean 'dkd'?)"
            )
        ],
    ),
    ("distill: {method: [kd, kd]}", ["6:19: distill.method: kd is named twice"]),
    ("distill: {method: []}", ["6:19: distill.method: expected at least one method, got none"]),
    (
        "distill: {method: [kd, none]}",
        [
            (
                "6:19: distill.method: none is plain cross-entropy, which every other method has already; "
                "leave it out of the list"
            )
        ],
    ),
    (
        "distill: {method: [simkd, kd]}",
        [
            (
                "6:19: distill.method: simkd ships the teacher's classifier and drops the student's, so "
                "nothing that trains the student's own can stand beside it"
            )
        ],
    ),
    (
        "distill: {method: [kd, rkd], kd: {ce: 0, kd: 0}, rkd: {distance: 0, angle: 0}}",
        ["6:10: distill: kd.ce and kd.kd and rkd.distance and rkd.angle are all 0: nothing would be learnt"],
    ),
    (
        "distill: {method: fitnet, mode: two_stage}\ntrain: {epochs: 5}",
        ["6:27: distill.fitnet.hint_epochs: 5 epochs of the hint alone leave none of train.epochs (5) for the rest"],
    ),
    ("distill: {kd: {temperature: 0}}", ["6:29: distill.kd.temperature: must be above 0, got 0"]),
    (
        "distill: {alpha: 1, dhkd: {alpha: 2}}",
        ["6:11: distill.alpha: given twice, also as distill.dhkd.alpha at {path}:6:28"],
    ),
    ("distill: {alpha: 0, gamma: 0}", ["6:10: distill: gamma and alpha are both 0: nothing would be learnt"]),
    ("quantize: {scheme: dynamic}", ["6:20: quantize.scheme: expected one of static, qat, none, got 'dynamic'"]),
    ("quantize: {epochs: 2, lr: 0.1}", ["6:11: quantize: epochs and lr belong to scheme: qat, but scheme is static"]),
    (
        "quantize: {scheme: qat, search: true}",
        [
            (
                "6:11: quantize: search: true looks for the best int8 without training, scheme: qat trains; "
                "leave one of them out"
            )
        ],
    ),
    (
        "quantize: {scheme: qat, bias_correction: true}",
        ["6:11: quantize: bias_correction: true corrects what scheme: qat learns; leave it out"],
    ),
    (
        "distill: {method: simkd}\nquantize: {scheme: qat}",
        [
            (
                "7:20: quantize.scheme: qat trains the network that ships, but simkd compares another network "
                "with the teacher; use scheme: static, or another method"
            )
        ],
    ),
    (
        "quantize: {calibrate: percentile, percentile: 99.9}",
        [
            (
                "6:47: quantize.percentile: must be at least 99.99 and below 100, got 99.9: lower ones cut off "
                "real activations (measured: 99.9 gives 66.97 %, 99.99 gives 76.91 %)"
            )
        ],
    ),
    (
        "quantize: {search: true, calibrate: entropy, float_layers: [first]}",
        ["6:11: quantize: search: true chooses calibrate and float_layers; leave them out"],
    ),
    (
        "quantize: {target: x86}",
        ["6:20: quantize.target: expected one of auto, x86-vnni, x86-avx2, arm64, web, or a list of them, got 'x86'"],
    ),
    ("quantize: {target: [arm64, web, arm64]}", ["6:20: quantize.target: names a target twice"]),
    (
        "device: {target: ssh://}",
        ["6:18: device.target: expected local, browser, ssh://user@host[:port][/folder] or adb://SERIAL"],
    ),
    (
        "device: {target: 'ssh://pi@board?config=here'}",
        ["6:18: device.target: config=here is a relative path; in a recipe it must be absolute or begin with ~"],
    ),
    (
        "quantize: {keep: fastest}",
        ["6:18: quantize.keep: expected one of always, faster, got 'fastest' (did you mean 'faster'?)"],
    ),
    (
        "quantize: {scheme: none}\nrequire: {min_int8_mac_share: 0.5}",
        ["7:31: require.min_int8_mac_share: asks for integer kernels, but quantize.scheme is none"],
    ),
    ("export: {min_runtime: 1.19}", ["6:23: export.min_runtime: expected text, got 1.19; put it in quotes"]),
    ("export: {min_runtime: newest}", ["6:23: export.min_runtime: expected a version such as '1.19', got 'newest'"]),
    (
        'name: "my recipe"',
        [
            (
                "6:7: name: expected a name of letters, digits, '.', '_' and '-' that begins with a letter or "
                "a digit, got 'my recipe'"
            )
        ],
    ),
    ("seed:", ["6:6: seed: expected a whole number, got nothing"]),
    ("seed: 1\nseed: 2", ["7:1: seed: given twice, first at {path}:6:1"]),
    (
        "device: {target: lokal}",
        [
            (
                "6:18: device.target: expected local, browser, ssh://user@host[:port][/folder] or adb://SERIAL "
                "(did you mean 'local'?)"
            )
        ],
    ),
    (
        "validate: {repeats: 3}\nvalidate_: {}",
        [
            "6:21: validate.repeats: must be at least 16, got 3",
            "7:1: validate_: unknown key (did you mean 'validate'?)",
        ],
    ),
    ("a: {? [b] : c}", ["6:1: a: unknown key here", "6:7: a: a key is a plain word, not a list or a section"]),
    (
        "seed: &s 1\ntrain: {seed: *s}",
        ["7:15: an alias (*name) is not supported; write the value out, or put the text in quotes"],
    ),
    ("name: !!python/object:os.system x", ["6:7: a tag (!name) is not supported; put the text in quotes"]),
    ("train:\n\tepochs: 3", ["7:1: a tab; YAML takes only spaces here"]),
    ("train: {epochs: 3", ["7:1: a bracket that is not closed, or a comma is missing"]),
    ("train\nseed: 1", ["7:1: expected `key: value`, with a space behind the colon"]),
    ("seed: 1: 2", ["6:8: unexpected ':' (check the indentation, or put the text in quotes)"]),
    ("---\nseed: 1", ["6:1: a file holds one recipe; a second document begins here"]),
    (
        "<<<<<<< ours\nseed: 1",
        ["6:1: a merge conflict is not resolved here; remove its <<<<<<<, ======= and >>>>>>> lines"],
    ),
]

# whole files
FILES = [
    ("", ["1:1: the recipe is empty; it needs at least data, teacher and student"]),
    ("- a\n", ["1:1: a recipe is made of sections (`data:`, `teacher:`, ...), not a list"]),
    ("hello\n", ["1:1: a recipe is made of sections (`data:`, `teacher:`, ...), not 'hello'"]),
    ("seed: 1\n", [f"1:1: {section}: missing; every recipe needs it" for section in ("data", "teacher", "student")]),
    (
        "data:\nteacher: {candidates: []}\nstudent: {}\n",
        [
            "1:1: data.source: missing; it has no default",
            "2:23: teacher.candidates: expected at least one entry, got none",
            "3:1: student.model: missing; it has no default",
        ],
    ),
    (
        GOOD.replace("fashion", "fashon, validation: 0, normalize: {mean: [1, 0], std: [1, 1, 1, 1]}"),
        [
            (
                "1:16: data.source: expected one of fashion, cifar10, cifar100, folder, npz, imagenet, "
                "webdataset, got 'fashon' (did you mean 'fashion'?)"
            ),
            "1:36: data.validation: expected a share between 0 and 1 or a whole number of images, got 0",
            "1:57: data.normalize.mean: expected 3 entries, got 2",
            "1:70: data.normalize.std: expected 3 entries, got 4",
        ],
    ),
    (GOOD.replace("fashion", "npz"), ["1:1: data.root: missing; source: npz needs it: the .npz file"]),
    (
        GOOD.replace("fashion", "fashion, root: photos"),
        [
            (
                "1:31: data.root: is not read, because the images of source: fashion are embedded; leave it "
                "out, or name another source"
            )
        ],
    ),
    (
        GOOD.replace("fashion", "cifar10").replace("resnet20", "resnet8x4, weights: embedded"),
        [
            (
                "4:35: teacher.candidates.0.weights: embedded weights know the classes of source fashion, not "
                "those of cifar10: leave them out, or train them further (train)"
            )
        ],
    ),
    (
        GOOD.replace("resnet20", "shufflenet_v2_x1_0").replace("mobilenet_v2", "mobilenet_v2, width: 3"),
        [
            "4:15: teacher.candidates.0.model: there is no network 'shufflenet_v2_x1_0' "
            f"(did you mean 'torchvision/shufflenet_v2_x1_0'?); {LISTS}",
            "5:39: student.width: mobilenet_v2 takes 0.1 to 2, not 3",
        ],
    ),
    (
        GOOD.replace("resnet20", "timm/lcnet_050.ra2_in1k").replace("mobilenet_v2", "timm/lcnet_050, width: 3"),
        [
            "4:15: teacher.candidates.0.model: timm/lcnet_050.ra2_in1k names weights too: write model: timm/lcnet_050 "
            "and weights: ra2_in1k",
            "5:41: student.width: timm/lcnet_050 has no width option; leave `width` out",
        ],
    ),
    (
        GOOD.replace("resnet20", "resnt20, train: {lr: x}"),
        [
            f"4:15: teacher.candidates.0.model: there is no network 'resnt20' (did you mean 'resnet20'?); {LISTS}",
            "4:36: teacher.candidates.0.train.lr: expected a number, got 'x'",
        ],
    ),
    (
        GOOD.replace("resnet20", "resnet20, width: 2, expect_top1: 0.9"),
        [
            "4:32: teacher.candidates.0.width: resnet20 has no width option; leave `width` out",
            "4:48: teacher.candidates.0.expect_top1: is the accuracy that a checkpoint must reach, but weights is none",
        ],
    ),
    (
        GOOD.replace("fashion", "fashion, image_size: 12, augment: none") + "train: {views: 3}\n",
        [
            "5:18: student.model: mobilenet_v2 needs images of at least 16 pixels, but data.image_size is 12",
            "6:16: train.views: limits the augmentation, but data.augment is none",
        ],
    ),
    (
        GOOD.replace("fashion", "fashion, augment: none, color_jitter: {}, rand_augment: {magnitude: 9}"),
        [
            "1:54: data.color_jitter: changes nothing: give brightness, contrast, saturation or hue a range above 0",
            (
                "1:72: data.rand_augment: distorts training views, but data.augment is none, so each image has "
                "one view; choose crop_flip, crop, flip or resized_crop"
            ),
        ],
    ),
    (
        GOOD.replace(
            "fashion", "fashion, color_jitter: {hue: 0.6, contrst: 1}, rand_augment: {operations: 0, magnitude: 31}"
        ),
        [
            "1:45: data.color_jitter.hue: must be at most 0.5, got 0.6",
            "1:50: data.color_jitter.contrst: unknown key (did you mean 'contrast'?)",
            "1:90: data.rand_augment.operations: must be at least 1, got 0",
            "1:104: data.rand_augment.magnitude: must be at most 30, got 31",
        ],
    ),
    (
        GOOD.replace("fashion", "fashion, normalize: {mean: [0.5, 127, -1], std: [58, 0, 1]}"),
        [
            "1:49: data.normalize.mean.1: must be of pixels in [0, 1]: divide by 255",
            "1:54: data.normalize.mean.2: must be at least 0, got -1",
            "1:65: data.normalize.std.0: must be of pixels in [0, 1]: divide by 255",
            "1:69: data.normalize.std.1: must be above 0, got 0",
        ],
    ),
    (
        GOOD.replace("fashion", "webdataset, root: shards, augment: resized_crop") + "train: {views: 3}\n",
        ["6:16: train.views: lets cached teacher logits be reused, but none are cached for webdataset: leave it out"],
    ),
    (
        GOOD.replace("fashion", "fashion, labelled: 400") + "distill: {method: [dkd, crd]}\n",
        ["1:35: data.labelled: leaves images without a label, but dkd and crd need a label for every image"],
    ),
    (
        GOOD.replace("fashion", "imagenet, root: photos, augment: resized_crop, labelled: 400"),
        [
            "1:73: data.labelled: leaves images without a label, but images of imagenet are decoded in training, where "
            "all have their label"
        ],
    ),
    (
        GOOD.replace("fashion", "fashion, shards_at_once: 4"),
        ["1:41: data.shards_at_once: images of fashion are not in shards: leave it out"],
    ),
    (
        GOOD.replace("mobilenet_v2", "torchvision/mobilenet_v2, weights: IMAGENET1K_V3"),
        [
            (
                "5:53: student.weights: expected none, IMAGENET1K_V1, IMAGENET1K_V2 or a file (.safetensors, "
                ".pt, .pth, .bin, .ckpt, .pth.tar), got 'IMAGENET1K_V3' (did you mean 'IMAGENET1K_V2'?)"
            )
        ],
    ),
]

# overrides, and what is said behind the last one's flag
OVERRIDES = [
    (["distill.temprature=3"], "distill.temprature: unknown key (did you mean 'temperature'?)"),
    (["train.epochs=abc"], "train.epochs: expected a whole number, got 'abc'"),
    (["train.epochs"], "expected key=value, such as train.epochs=2"),
    (["=3"], "expected key=value, such as train.epochs=2"),
    (["seed="], "seed: expected a whole number, got nothing"),
    (["train={epochs: 2"], "train: a bracket that is not closed, or a comma is missing"),
    (
        ["teacher.candidates.3.model=x"],
        "teacher.candidates.3.model: teacher.candidates is a list of 1, counted from 0; 3 is not in it",
    ),
    (["data.source.a=1"], "data.source.a: data.source is a single value, not a section"),
    (
        ["distill.method=kd", "distill.alpha=2"],
        "distill.alpha: belongs to method 'dhkd' or 'dkd', but distill.method is 'kd'",
    ),
    (["trian.seed=1"], "trian: unknown key (did you mean 'train'?)"),
    (
        ["student.model=mobilnet_v2"],
        f"student.model: there is no network 'mobilnet_v2' (did you mean 'mobilenet_v2'?); {LISTS}",
    ),
]


def warnings_of(loaded: loader.Loaded) -> tuple[str, ...]:
    return tuple(str(warning) for warning in loaded.warnings)


def write(folder: Path, text: str) -> Path:
    path = folder / "some.yaml"
    path.write_text(text)
    return path


def said(path: Path, overrides: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(RecipeError) as raised:
        loader.load(path, overrides)
    assert raised.value.exit_code == 2
    return str(raised.value).splitlines()


@pytest.mark.parametrize(("text", "expected"), [*((GOOD + line + "\n", lines) for line, lines in APPENDED), *FILES])
def test_a_bad_recipe_is_answered_with_every_mistake_and_its_place(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    path = write(tmp_path, text)
    lines = said(path)
    wanted = [f"{path}:{line.replace('{path}', str(path))}" for line in expected]
    assert len(lines) == len(wanted)
    for line, want in zip(lines, wanted, strict=True):
        assert line == want or (want.endswith("unknown key here") and "unknown key; known are" in line)


@pytest.mark.parametrize(("overrides", "expected"), OVERRIDES)
def test_a_bad_override_is_answered_with_its_flag(tmp_path: Path, overrides: list[str], expected: str) -> None:
    assert said(write(tmp_path, GOOD), tuple(overrides)) == [f"--set {overrides[-1]}: {expected}"]


def test_a_missing_file_a_folder_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no\.yaml: No such file"):
        loader.load(tmp_path / "no.yaml")
    with pytest.raises(UsageError, match="this is a folder, not a recipe"):
        loader.load(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"name: \xff\n")
    assert said(tmp_path / "bytes.yaml") == [f"{tmp_path}/bytes.yaml: not UTF-8 text (byte 7)"]


@pytest.mark.parametrize(
    ("written", "value"), [("5e-4", 5e-4), ("5.0e-4", 5e-4), ("1e-2", 0.01), (".5", 0.5), ("1", 1.0), ("+0.1", 0.1)]
)
def test_numbers_as_people_write_them(tmp_path: Path, written: str, value: float) -> None:
    assert loader.load(write(tmp_path, GOOD + f"train: {{lr: {written}}}\n")).recipe.train.lr == value


@pytest.mark.parametrize(("written", "value"), [("2_000_000", 2_000_000), ("2e6", 2_000_000), ("010", 10)])
def test_whole_numbers_with_underscores_exponents_and_leading_zeros(tmp_path: Path, written: str, value: int) -> None:
    assert loader.load(write(tmp_path, GOOD + f"require: {{max_bytes: {written}}}\n")).recipe.require.max_bytes == value


def test_on_and_sexagesimals_are_text(tmp_path: Path) -> None:
    loaded = loader.load(write(tmp_path, GOOD.replace("fashion", "cifar10, root: on")), ["student.weights=1:30.pt"])
    assert (loaded.recipe.data.root, loaded.recipe.student.weights) == ("on", str(Path.cwd() / "1:30.pt"))


def test_six_lines_make_a_recipe_and_an_empty_section_has_its_defaults(tmp_path: Path) -> None:
    loaded = loader.load(write(tmp_path, GOOD + "require:\n  # max_top1_drop: 2\n"))
    assert loaded.name == "some"
    assert loaded.recipe.require.max_top1_drop is None
    assert loaded.recipe.export.min_runtime == "1.19"
    assert loaded.warnings == ()


def test_a_network_for_small_pictures_at_a_large_size_is_remarked(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("fashion", "folder, root: photos").replace("resnet20", "resnet18"))
    assert warnings_of(loader.load(path)) == (
        f"{path}:4:8: resnet18 is a network for small images and slow at 224 pixels; "
        "torchvision/resnet18 is meant for this size",
        f"{path}:5:11: mobilenet_v2 is a network for small images and slow at 224 pixels; "
        "torchvision/mobilenet_v2 is meant for this size",
    )
    assert loader.load(path, ["data.image_size=64"]).warnings == ()


def test_images_that_leave_the_machine_after_all_are_remarked(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "report: {images: false}\n")
    (said,) = warnings_of(loader.load(path))
    assert said.startswith(f"{path}:") and "the bundle beside it holds test images" in said
    assert loader.load(path, ["bundle.images=synthetic"]).warnings == ()
    (said,) = warnings_of(loader.load(path, ["bundle.images=synthetic", "device.photos=4"]))
    assert "device.photos is not read" in said


def test_sections_on_images_enter_no_key_where_they_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    plain = loader.load(path).recipe
    assert plain.shows_images and plain.bundles_images and {"report", "bundle"}.isdisjoint(key_content(plain))
    for key in ("report.images=false", "bundle.images=synthetic"):
        changed = loader.load(path, [key]).recipe
        assert (changed.shows_images, changed.bundles_images) == ("report" not in key, "bundle" not in key)
        assert sha256_of(changed) != sha256_of(plain)
    empty = loader.load(write(tmp_path, GOOD + "report:\nbundle:\n")).recipe
    assert empty.shows_images and empty.bundles_images


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "folder, root: x",
            (
                "workers is not read: images of folder are decoded once",
                "download is not read: there is nothing to download",
            ),
        ),
        ("imagenet, root: x", ("download is not read",)),
        ("cifar10", ("workers is not read",)),
    ],
)
def test_a_key_that_the_source_does_not_read_is_remarked(tmp_path: Path, source: str, said: tuple[str, ...]) -> None:
    path = write(tmp_path, GOOD.replace("fashion", f"{source}, image_size: 64, workers: 2, download: true"))
    found = [notice for notice in warnings_of(loader.load(path)) if "is not read" in notice]
    assert len(found) == len(said), found
    assert all(
        notice.startswith(f"{path}:1:") and f": data.{one}" in notice for one, notice in zip(said, found, strict=True)
    ), found


def test_overrides_reach_sections_lists_and_whole_values(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    flags = [
        "teacher.candidates.0.train.epochs=1",
        "train.epochs=2",
        "require={max_top1_drop: 1.5}",
        "train.epochs=3",
        "validate.repeats=16",
    ]
    loaded = loader.load(path, flags)
    assert loaded.recipe.teacher.candidates[0].train == Train(epochs=1)
    assert loaded.recipe.train.epochs == 3  # the last one counts
    assert loaded.recipe.require.max_top1_drop == 1.5
    assert loaded.recipe.validate_.repeats == 16
    assert loaded.where("require.max_top1_drop") == "--set require={max_top1_drop: 1.5}"


def test_where_names_the_line_of_a_key_or_of_what_is_around_it(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "distill:\n  temperature: 3\nrequire:\n  min_speedup: 2\n")
    loaded = loader.load(path)
    assert loaded.where("require.min_speedup") == f"{path}:9:3"
    assert loaded.where("require.max_bytes") == f"{path}:8:1"
    assert loaded.where("distill.temperature") == f"{path}:7:3"
    assert loaded.where("teacher.candidates.0.model") == f"{path}:4:8"


def test_flat_keys_go_to_the_selected_method(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "distill: {method: [kd], temperature: 3, kd: 0.5, dhkd: {alpha: 2}}\n")
    distill = loader.load(path).recipe.distill
    assert (distill.name, distill.kd.temperature, distill.kd.kd, distill.dhkd.alpha) == ("kd", 3, 0.5, 2)
    assert distill.settings("kd") == distill.kd


def test_another_method_by_flag_leaves_the_recipes_flat_keys_out_with_one_notice(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "distill: {temperature: 3, head: linear, kd: {ce: 0.2}}\n")
    loaded = loader.load(path, ["distill.method=kd", "distill.kd=0.5"])
    assert warnings_of(loaded) == ("distill.method is kd: temperature, head belong to dhkd and are not used",)
    assert loaded.recipe.distill.kd.model_dump() == {"temperature": 4.0, "ce": 0.2, "kd": 0.5, "standardize": False}
    assert loader.load(path, ["distill.temperature=5"]).warnings == ()
    assert loader.load(path, ["distill.method=none"]).recipe.distill.plain


def test_a_whole_distill_by_flag_replaces_the_recipes(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "distill: {temperature: 3}\n")
    loaded = loader.load(path, ["distill={method: kd, temperature: 7}"])
    assert (loaded.recipe.distill.kd.temperature, loaded.warnings) == (7, ())


def test_a_short_trial_of_a_step_schedule_is_a_notice_only(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "train: {epochs: 240, schedule: {kind: step}}\n")
    assert loader.load(path).warnings == ()
    notices = warnings_of(loader.load(path, ["train.epochs=2"]))
    assert notices == (
        f"{path}:6:22: train.schedule.milestones: 150, 180, 210 would have no effect: the training has 2 epochs",
    )


def test_resolve_fills_what_follows_from_other_keys(tmp_path: Path) -> None:
    text = (
        GOOD.replace("{model: resnet20}", "{model: resnet20}\n    - {model: resnet8x4, weights: embedded}")
        + "seed: 7\n"
    )
    settings = resolve(loader.load(write(tmp_path, text)).recipe)
    trained, given = settings.teacher.candidates
    assert (settings.data.image_size, settings.data.augment) == (32, "crop_flip")
    assert (settings.train.epochs, settings.train.lr, settings.train.seed, settings.train.schedule.warmup_epochs) == (
        240,
        0.01,
        7,
        0.0,
    )
    assert trained.train is not None and (trained.train.epochs, trained.train.lr, trained.train.seed) == (60, 0.05, 0)
    assert given.train is None and trained.train.threads is None
    assert resolve(settings) == settings


def test_a_candidate_trains_on_as_many_threads_as_the_student_unless_it_says_so(tmp_path: Path) -> None:
    loaded = write(tmp_path, GOOD + "train: {threads: 1}\n")
    for own, threads in (((), 1), (("teacher.candidates.0.train.threads=2",), 2)):
        settings = resolve(loader.load(loaded, own).recipe)
        (candidate,) = settings.teacher.candidates
        assert candidate.train is not None and (candidate.train.threads, settings.train.threads) == (threads, 1)


def test_a_pretrained_start_trains_short_and_gently() -> None:
    train = resolved_train(None, mobile=True, pretrained=True, seed=3)
    assert (train.epochs, train.lr, train.seed, train.schedule.warmup_epochs) == (20, 0.001, 3, 1.0)
    short = resolved_train(Train(epochs=2, lr=0.1), mobile=True, pretrained=True, seed=3)
    assert (short.epochs, short.lr, short.schedule.warmup_epochs) == (2, 0.1, 0.5)
    assert resolved_train(None, mobile=False, pretrained=False, seed=0).lr == 0.05
    assert [resolved_train(Train(optimizer="adamw"), mobile=True, pretrained=p, seed=0).lr for p in (True, False)] == [
        0.0001,
        0.001,
    ]


@pytest.mark.parametrize(
    ("asked", "pretrained", "scratch"),
    [
        (None, "frozen", None),
        ("auto", "frozen", None),
        ("running", "running", None),  # from scratch the key is what it was before there was a choice
        ("recomputed", "recomputed", "recomputed"),
        ("frozen", "frozen", "frozen"),
    ],
)
def test_batch_norm_follows_the_start_and_is_resolved_once(asked, pretrained, scratch) -> None:
    for start, expected in ((True, pretrained), (False, scratch)):
        train = resolved_train(Train(batch_norm=asked), mobile=True, pretrained=start, seed=0)
        assert train.batch_norm == expected
        assert resolved_train(train, mobile=True, pretrained=start, seed=0) == train


@pytest.mark.parametrize(
    ("weights", "settings", "scale"),
    [
        ("IMAGENET1K_V1", (), (0.35, 1.0)),
        ("IMAGENET1K_V1", ("train.epochs=20",), (0.35, 1.0)),
        ("IMAGENET1K_V1", ("train.epochs=21",), None),  # long enough for small parts
        ("IMAGENET1K_V1", ("data.crop_scale=[0.1, 0.5]",), (0.1, 0.5)),
        ("IMAGENET1K_V1", ("data.augment=crop_flip",), None),
        ("none", ("train.epochs=3",), None),
    ],
)
def test_a_short_fine_tuning_sees_larger_parts_of_its_images(tmp_path, weights, settings, scale) -> None:
    text = (
        "data: {source: folder, root: photos}\nteacher: {candidates: [{model: torchvision/resnet18}]}\n"
        f"student: {{model: torchvision/mobilenet_v2, weights: {weights}}}\n"
    )
    found = resolve(loader.load(write(tmp_path, text), settings).recipe)
    assert found.data.crop_scale == scale and resolve(found) == found


def test_folder_data_have_their_own_defaults(tmp_path: Path) -> None:
    text = GOOD.replace("fashion", "folder, root: photos")
    loaded = loader.load(write(tmp_path, text))
    settings = resolve(loaded.recipe)
    assert (settings.data.image_size, settings.data.augment) == (224, "resized_crop")
    assert loaded.file("photos") == tmp_path / "photos"
    assert loaded.file("~/photos") == Path.home() / "photos"


def test_whatever_is_typed_the_answer_is_a_recipe_error(tmp_path: Path) -> None:
    rng = random.Random(0)
    marks = [*"{}[]:,-#\"'&*!|>%@\t\0?~\n", ": ", "- ", "  ", "null", "on", "5", ".nan", "kd", "distill:"]
    keys = [
        "distill",
        "distill.method",
        "distill.kd",
        "distill.kd.kd",
        "teacher.candidates.a",
        "train.epochs.0",
        "0",
        "data.normalize.mean.1",
    ]
    values = ["null", "{}", "[]", "5", "[kd]", "[[]]", "{method: kd, kd: 3}", "", "1e400", "{a: {b: c}}", '"x']
    answers: set[type] = set()
    for _ in range(300):
        text = list(GOOD + "distill: {method: kd, kd: 0.4}\n")
        for _ in range(rng.randint(0, 2)):
            start = rng.randrange(len(text))
            text[start : start + rng.randint(0, 8)] = [rng.choice(marks)]
        flags = [f"{rng.choice(keys)}={rng.choice(values)}" for _ in range(rng.randint(0, 2))]
        try:
            answers.add(type(loader.load(write(tmp_path, "".join(text)), flags)))
        except RecipeError as error:
            assert str(error).strip()
            answers.add(RecipeError)
    assert answers == {loader.Loaded, RecipeError}


def random_value(rng: random.Random) -> str:
    texts = [
        "on",
        "5e4",
        "1e-3",
        "no",
        "1:30",
        "~",
        "null",
        "true",
        "007",
        "a: b",
        "# x",
        "'",
        '"',
        "\u00e9t\u00e9",
        " ",
        "-",
        "*a",
        "!t",
        "0x1F",
        ".5",
        "1_0",
    ]
    return rng.choice(texts)


@pytest.mark.parametrize("seed", range(40))
def test_dump_loads_to_the_same_recipe(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    text = GOOD.replace("{model: resnet20}", f"{{model: resnet20, train: {{epochs: {rng.randint(1, 99)}}}}}")
    settings = loader.load(write(tmp_path, text)).recipe
    settings = settings.model_copy(
        update={
            "name": rng.choice(["a", "1.0", "5e4", "on", "2024"]),
            "data": settings.data.model_copy(
                update={"source": "cifar10", "root": random_value(rng), "validation": rng.choice([0.25, 7, 1e-9])}
            ),
            "train": settings.train.model_copy(update={"lr": rng.choice([1e-12, 3e-05, 1e20, rng.random() + 1e-9])}),
        }
    )
    for one in (settings, resolve(settings)):
        again = tmp_path / "again.yaml"
        again.write_text(loader.dump(one), encoding="utf-8")
        assert loader.load(again).recipe.plain() == one.plain()


def test_the_json_schema_allows_flat_keys_and_no_others() -> None:
    distill = json_schema()["$defs"]["Distill"]
    assert {"method", "baseline", "alpha", "temperature", "ce", "kd", "dhkd"} <= set(distill["properties"])
    assert distill["additionalProperties"] is False
    assert "validate" in json_schema()["properties"]


def test_every_shipped_recipe_loads() -> None:
    paths = sorted(RECIPES.rglob("*.yaml"))
    assert sorted(path.stem for path in RECIPES.glob("*.yaml")) == [
        "folder",
        "mobilenet",
        "photos",
        "shufflenet",
        "unlabelled",
    ]
    for path in paths:
        loaded = loader.load(path)
        assert loaded.warnings == ()
        assert path.read_text().startswith("# ")
        assert f"compress run recipes/{path.relative_to(RECIPES)}" in path.read_text()


def test_the_collapse_pair_differs_in_where_its_losses_stand_alone() -> None:
    paths = sorted((RECIPES / "collapse").glob("*.yaml"))
    assert [path.stem for path in paths] == ["one_head", "two_heads"]
    one, two = (loader.load(path).recipe.model_dump(mode="json", by_alias=True) for path in paths)
    heads = [
        tuple(settings["distill"]["dhkd"].pop(key) for key in ("head", "loss", "align")) for settings in (one, two)
    ]
    assert heads == [("none", "binary_kl", "none"), ("nonlinear", "binary_kl_norm", "all")]
    assert (one.pop("name"), two.pop("name")) == ("one_head", "two_heads")
    assert one == two and one["train"]["trace_gradients"] == 10
