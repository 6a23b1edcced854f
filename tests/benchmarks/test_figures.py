"""The figures in README and docs against the files in benchmarks/results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import compare_methods
import precision_accuracy
import pytest
import seeds
import torch
import train_speed

from compress import models
from compress.methods import build_method
from compress.models.count import params
from compress.models.outline import outline
from compress.recipe import loader
from compress.verdict import sample_size

ROOT = Path(__file__).parents[2]

README = (ROOT / "README.md").read_text(encoding="utf-8")
STARTED = (ROOT / "docs" / "get-started.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "benchmarks" / "index.md").read_text(encoding="utf-8")


def result(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def docs(page: str) -> str:
    return (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")


def prose(page: str) -> str:
    """Return a page of docs/ as one line, so that a sentence is found however it is wrapped."""
    return " ".join(docs(page).split())


def rows(text: str, head: str) -> list[list[str]]:
    """Return the cells of the table below the row that begins with `| head |`."""
    found = []
    for line in text.split(f"| {head} |")[1].splitlines()[2:]:
        if not line.strip().startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip().strip("|").split("|")])
    return found


def row(file: str) -> list[str]:
    """Return the rows of the table of results that come from one file, as text."""
    return [" | ".join(cells) for cells in rows(RESULTS, "what was measured") if cells[-1] == f"`{file}`"]


@pytest.mark.parametrize("page", [README, STARTED], ids=["README", "get started"])
def test_the_flagships_table_and_verdicts(page: str) -> None:
    flagship = result("flagship")
    against = {one["model"]: one for one in flagship["comparisons"] if one["against"] == "teacher.onnx"}
    for model in (one for one in flagship["models"] if one["role"] != "baseline"):
        low, high = (100 * end for end in model["top1_ci95"])
        said = next(line for line in page.splitlines() if line.startswith(model["file"] + " ")).split()
        assert said[1:6] == [f"{100 * model['top1']:.2f}", "%", f"{low:.2f}", "to", f"{high:.2f}"]
        assert f"{model['latency_ms']['p50']:.3f} ms" in " ".join(said) and said[-2:] == [
            f"{model['bytes']:,}",
            "bytes",
        ]
        if other := against.get(model["file"]):
            assert said[6] == f"{other['top1_drop_points']:+.2f}" and said[10] == f"{other['speedup_p50']:.2f}x"
    for requirement in flagship["requirements"]:
        assert f"{requirement['verdict']:<11}{requirement['name']}: {requirement['sentence']}" in page
    for part in ("distillation", "int8_against_float"):
        assert flagship[part]["sentence"] in page


def test_what_the_flagship_takes() -> None:
    flagship, said = result("flagship"), " ".join(STARTED.split())
    assert f"{flagship['run_seconds'] // 60} min {flagship['run_seconds'] % 60} s to run" in said
    assert f"{flagship['setup_seconds']:.0f} s to install" in said
    assert f"Peak memory was {result('memory')['peak_of_largest_process'] / 1e6:,.0f} MB" in said
    assert flagship["run_seconds"] < 10 * 60 and "six to ten minutes on two CPU cores" in " ".join(README.split())


def test_the_flagship_in_the_results() -> None:
    flagship = result("flagship")
    (teacher, int8), (other,) = (
        [
            next(one for one in flagship["models"] if one["file"] == file)
            for file in ("teacher.onnx", "student.int8.onnx")
        ],
        [
            one
            for one in flagship["comparisons"]
            if (one["model"], one["against"]) == ("student.int8.onnx", "teacher.onnx")
        ],
    )
    speed, (low, high) = other["speedup_p50"], other["speedup_ci95"]
    first, second = row("flagship.json")
    assert f"int8 {100 * int8['top1']:.2f} % against the teacher's {100 * teacher['top1']:.2f} %" in first
    faster = f"{speed:.1f}x [{low:.1f}, {high:.1f}] as fast"
    assert f"{faster}, {other['size_ratio']:.2f}x smaller; {flagship['run_seconds'] // 60} min" in first
    gain = flagship["distillation"]
    assert f"{gain['gain_points']:+.1f} [{gain['ci95'][0]:.1f}, {gain['ci95'][1]:.1f}] points" in second and (
        "not shown" in second
    ) == (gain["ci95"][0] <= 0)


def test_what_int8_gains_the_flagship() -> None:
    flagship = result("flagship")
    floats, int8 = (
        next(one for one in flagship["models"] if one["file"] == f"student.{name}.onnx") for name in ("fp32", "int8")
    )
    gain, said = flagship["int8_against_float"], prose("explanation/int8")
    times = f"{int8['latency_ms']['p50']:.3f} against {floats['latency_ms']['p50']:.3f} ms"
    assert f"{times}, {gain['speedup']:.2f}x [{gain['ci95'][0]:.2f}, {gain['ci95'][1]:.2f}]" in said
    assert f"size: {int8['bytes']:,} against {floats['bytes']:,} bytes" in said


def test_how_many_images_a_limit_needs() -> None:
    table = rows(docs("explanation/verdict"), "test images")
    smallest = {n: f"{sample_size.certifiable_margin(n, 0.1 * n):.1f} points" for n in (5000, 1000, 200)}
    assert table == [[f"{n:,}", margin] for n, margin in smallest.items()]
    fewer = f"5,000 images can certify a limit of {sample_size.certifiable_margin(5000, 0.05 * 5000):.1f} points"
    assert f"If only 5 % flip, {fewer}" in prose("explanation/verdict")


def test_the_second_recipe() -> None:
    measured = result("flagship-shufflenet")
    int8 = next(one for one in measured["models"] if one["file"] == "student.int8.onnx")
    other = next(
        one
        for one in measured["comparisons"]
        if (one["model"], one["against"]) == ("student.int8.onnx", "teacher.onnx")
    )
    low, high = other["speedup_ci95"]
    accuracy, faster = f"{100 * int8['top1']:.2f} %", f"{other['speedup_p50']:.1f}x [{low:.1f}, {high:.1f}] as fast"
    said = f"passed, int8 {accuracy}, {faster}, {measured['run_seconds']} s |"
    assert said in docs("benchmarks/index")


def test_the_methods_compared() -> None:
    name, compared = next(iter(result("compare_methods")["recipes"].items()))
    assert "\n".join(compare_methods.lines(name, compared)[2:]) in docs("benchmarks/methods")
    (said,) = row("compare_methods.json")
    assert said.startswith(f"{len(compared['table']) - 1} ways to distil")
    for method, ours in (("OFD", "ofd"), ("KD", "kd"), ("DHKD", "dhkd"), ("CRD", "crd")):
        gain = compared["table"][ours]["gain_points"]
        assert f" {method} {gain['mean']:+.2f} [{gain['ci95'][0]:.2f}, {gain['ci95'][1]:.2f}]" in said.replace(
            " points", ""
        )


def test_the_methods_on_the_flagship() -> None:
    table = rows(docs("benchmarks/methods"), "flagship's student")
    found = result("methods-mobilenet")["recipes"]["mobilenet"]["table"]
    assert len(table) == len(found) == 3
    for name, top1, gain in table:
        one = found[name]
        assert top1 == f"{one['top1']['mean']:.2f} ± {one['top1']['sd']:.2f}"
        points = one["gain_points"]
        assert gain == (
            "" if points is None else f"{points['mean']:+.2f} [{points['ci95'][0]:.2f}, {points['ci95'][1]:.2f}]"
        )


def ratio(numbers: dict[str, Any]) -> str:
    low, high = numbers["times_faster_ci95"]
    return f"{numbers['times_faster']:.2f}x [{low:.2f}, {high:.2f}]"


def test_int8_files_against_float() -> None:
    names = {"MobileNetV2": "mobilenet_v2", "MobileNetV3-small": "mobilenet_v3_small"}
    names |= {"ShuffleNetV2": "shufflenet_v2_x1_0", "EfficientNet-Lite0": "efficientnet_lite0"}
    measured = {one["network"]: one for one in result("deploy")["networks"]}
    table = {cells[0].removesuffix(" x1.0"): cells[1:] for cells in rows(docs("explanation/int8"), "network")}
    speed, accuracy = row("deploy.json")
    assert table.keys() == names.keys() and measured.keys() == set(names.values())
    for name, network in names.items():
        files, faster = measured[network]["files"], ratio(measured[network]["ours_against"]["float"])
        size = [f"{files[which]['bytes'] / 1e6:.1f}" for which in ("float", "ours")]
        memory = [f"{files[which]['peak_memory_bytes'] / 1e6:.0f}" for which in ("float", "ours")]
        times = [f"{files[which]['p50_ms']:.2f} ms" for which in ("float", "defaults", "ours")]
        assert table[name] == [*times, faster, f"{size[0]} to {size[1]} MB", f"{memory[0]} to {memory[1]} MB"]
        assert f"{name} {faster}" in speed
    lite = measured["efficientnet_lite0"]["files"]
    for file, words in (
        ("float", "in float"),
        ("ours", "in int8 as searched"),
        ("defaults", "with onnxruntime's defaults"),
    ):
        assert f"{100 * lite[file]['top1']:.2f} % {words}" in accuracy
        assert f"{100 * lite[file]['top1']:.2f} %" in docs("explanation/int8")


def test_training_speed() -> None:
    content = result("train_speed-cpu")
    (said,) = row("train_speed-cpu.json")
    assert "\n".join(train_speed.table(content)) in docs("benchmarks/training")
    for warm in (one["warm"]["ratio"] for one in content["rows"]):
        assert f"{warm['median']:.1f}x [{warm['low']:.1f}, {warm['high']:.1f}]" in said


def test_why_five_times_the_published_loop_is_not_reached() -> None:
    speed, roofline, said = (
        result("train_speed-cpu"),
        result("roofline-cpu"),
        prose("explanation/training-speed"),
    )
    (first, second), row = speed["rows"][:2], roofline["rows"][1]
    assert (row["teacher"], row["student"]) == (second["teacher"], second["student"]) == ("resnet32x4", "resnet8x4")
    reached, missed = first["warm"]["ratio"]["median"], second["warm"]["ratio"]["median"]
    assert (
        reached >= 3
        and missed < 5
        and "was 3x on the first pair and 5x on the second: the first is reached, the second is not."
        in prose("benchmarks/training")
    )

    theirs, ours, batch = row["gflop"] + row["teacher_gflop"], row["gflop"], roofline["batch"]
    exact, fast = (roofline["peak_gflop_per_s"][precision] for precision in ("float32", "bf16"))
    assert (
        f"teacher and student in float32, {theirs:.0f} GFLOP for this pair" in said
        and f"the student alone in bf16, {ours:.0f}." in said
    )
    assert (
        f"this processor does {exact:.0f} GFLOP/s in float32 and {fast:.0f} in bf16" in said
        and row["precision"] == "bf16"
    )
    # The share of the peak at five times the published loop's images per second.
    wanted = 5 * second["authors"]["median"] * ours / batch / fast
    possible = f"At the same share of these peaks that is {theirs / exact / (ours / fast):.1f}x;"
    assert f"{possible} 5x would take {100 * wanted:.0f} % of bf16's" in said
    assert f"where the step reaches {100 * row['share_of_peak']:.0f} %." in said and speed["batch"] == batch


def test_training_speed_on_a_gpu() -> None:
    content, steps = result("train_speed-cuda"), result("roofline-cuda-graph")
    page, (said,) = docs("benchmarks/gpu"), row("train_speed-cuda.json")
    assert "\n".join(train_speed.table(content)) in page
    assert {one["device"] for one in (content["environment"], steps["environment"])} == {"NVIDIA H200"} and content[
        "rounds"
    ] == 1
    for student, warm in zip(
        ("MobileNetV2", "ResNet-8x4"), (one["warm"]["ratio"] for one in content["rows"]), strict=True
    ):
        assert f"{warm['median']:.1f}x for {student}" in said
    assert f"{steps['peak_gflop_per_s']['bf16'] / 1e3:.0f} TFLOP/s in bf16" in " ".join(page.split())
    found = rows(page, "step into")
    assert [cells[0] for cells in found] == ["ResNet-8x4", "MobileNetV2", "ShuffleNetV2"]
    mobile, resnet, shuffle = steps["rows"]
    for cells, step in zip(found, (resnet, mobile, shuffle), strict=True):
        share = 100 * step["share_of_peak"]
        assert cells[1:] == [
            f"{step['step_ms']:.1f} ms",
            f"{step['plain_step_ms']:.1f} ms",
            f"{share:.0f} %" if share >= 1 else "below 1 %",
        ]


def test_students_that_share_a_gpu() -> None:
    content, page = result("sharing-cuda"), docs("benchmarks/gpu")
    together = [[str(one["trainings"]), f"{one['together']:,}"] for one in content["rows"]]
    for one in content["rows"]:
        assert (
            one["together"] == round(sum(each["images_per_second"] for each in one["each"]))
            and len(one["each"]) == one["trainings"]
        )
    assert rows(page, "students at once") == together
    page = " ".join(page.split())
    seconds = 240 * content["epoch_seconds_alone"]
    assert (
        f"takes {content['epoch_seconds_alone']} s per epoch" in page
        and f"240 are {seconds // 60:.0f} min {seconds % 60:.0f} s" in page
    )
    assert f"{content['teacher_rows']:,} rows, took {content['teacher_seconds']} s" in page


def test_published_numbers() -> None:
    page, (said,) = (
        rows(docs("benchmarks/papers"), "method | best epoch, %"),
        (
            one
            for one in RESULTS.split("## All benchmarks")[0].splitlines()
            if "reproduce-resnet56-resnet20-kd.json" in one
        ),
    )
    for cells, name in zip(page, ("kd", "dhkd"), strict=True):
        content = result(f"reproduce-resnet56-resnet20-{name}")
        (run,), band = content["runs"], " to ".join(f"{end:.2f}" for end in content["band"])
        assert cells == [
            name,
            f"{run['best']:.2f}",
            f"{content['published_top1']:.2f}",
            band,
            f"{run['last']:.2f}",
            f"{run['int8_of_last']:.2f}",
        ]
        assert content["verdict"] == "undecided" and not content["trial"] and run["epochs"] == 240
        assert (
            f"{name.upper()} {run['best']:.2f} % (" in said
            and f"{content['published_top1']:.2f}, " in said
            and band in said
        )
        assert f"teacher {run['teacher_top1']:.2f} %" in docs("benchmarks/papers")


def test_speed_by_precision() -> None:
    measured = result("precision-cpu")["rows"]
    networks = {row["network"]: row["bf16_over_float32"]["median"] for row in measured}
    resnets = [value for name, value in networks.items() if name.startswith("resnet")]
    said = prose("explanation/training-speed")
    assert (
        f"{min(resnets):.2f}x to {max(resnets):.2f}x for ResNets, {networks['mobilenet_v2']:.2f}x for MobileNetV2"
        in said
    )
    assert (
        f"{networks['shufflenet_v1']:.2f}x and {networks['shufflenet_v2']:.2f}x for ShuffleNets" in said
        and len(networks) == 7
    )
    assert "takes bf16 on CPUs that multiply it, which was the faster one for seven networks of seven" in said
    assert all(row["right"] and row["auto"] == "bf16" and row["bf16_over_float32"]["low"] > 1 for row in measured)


def test_accuracy_by_precision() -> None:
    measured = result("precision-accuracy")
    for line in precision_accuracy.lines(measured):
        assert f"\n{line}\n" in docs("explanation/training-speed")
    (said,) = row("precision-accuracy.json")
    gains = {name: found["gain_points"] for name, found in measured["dhkd_against_plain"].items()}
    told = {name: f"{gain['mean']:+.2f} [{gain['ci95'][0]:.2f}, {gain['ci95'][1]:.2f}]" for name, gain in gains.items()}
    assert f"{told['float32']} points in float32, {told['bf16']} in bf16" in said
    assert all(row["top1"]["n"] == 10 and not row["failed"] for row in measured["dhkd_against_plain"].values())


def test_start_up() -> None:
    seconds = {name: one["median_seconds"] for name, one in result("startup")["rows"].items()}
    names = {
        "`compress --help`": f"{seconds['help']:.2f}",
        "a wrong recipe": f"{seconds['recipe error']:.2f}",
        "`import torch` alone": f"{seconds['import torch']:.1f}",
        "`compress check`": f"{seconds['check']:.1f}",
        "a run whose every stage is in the cache": f"{seconds['cached run']:.1f}",
    }
    assert dict(rows(docs("benchmarks/training"), "what | seconds")) == names
    assert f"| {seconds['cached run']:.1f} s |" in row("startup.json")[0]


def test_two_losses_on_one_head() -> None:
    runs = {name: [one["columns"] for one in arm["runs"]] for name, arm in result("collapse")["arms"].items()}
    finals = {name: [100 * columns["top1_validation"][-1] for columns in each] for name, each in runs.items()}
    table = rows(docs("benchmarks/one-head"), "validation accuracy after 6 epochs")
    shown = [[float(cell.removesuffix(" %")) for cell in cells[1:]] for cells in table]
    assert shown == [pytest.approx(each, abs=0.05) for each in zip(*finals.values(), strict=True)]

    said, plain, alone, one, two = prose("benchmarks/one-head"), *finals.values()
    for (upper, lower, places), text in (
        ((two, one, 0), "points above one head"),
        ((plain, two, 1), "points below cross-entropy alone"),
        ((alone, one, 0), "points), which learns little"),
    ):
        differences = [high - low for high, low in zip(upper, lower, strict=True)]
        low, high = seeds.interval(differences) or (0.0, 0.0)
        assert f"{sum(differences) / 3:.{places}f} [{low:.{places}f}, {high:.{places}f}] {text}" in said
    worst = {
        key: min(min(columns[key]) for columns in runs["both on one head"])
        for key in ("cos_classifier", "cos_backbone")
    }
    assert (
        f"cosine {worst['cos_classifier']:.2f}) and never in the backbone (lowest {worst['cos_backbone']:+.2f})" in said
    )


def test_limited_views() -> None:
    measured = result("views")
    told = {name.split()[0]: cells for name, *cells in rows(docs("explanation/training-speed"), "`train.views`")}
    assert told.keys() == measured["table"].keys() and measured["pictures"] * 0.9 == 1800 and measured["epochs"] == 20
    for name, limited in measured["table"].items():
        gain = limited["gain_points"]
        said = f"{gain['mean']:+.2f} [{gain['ci95'][0]:.2f}, {gain['ci95'][1]:.2f}]" if gain else "-"
        assert told[name] == [
            f"{limited['top1']['mean']:.2f}",
            said,
            f"{limited['teacher_rows'][0]:,}",
            f"{limited['teacher_rows'][4]:,}",
        ]
        assert limited["top1"]["n"] == 5 and not limited["failed"]


def test_decoding() -> None:
    measured = result("decode_speed")
    one, two = (
        [f"{row['pictures_per_second'][side]:.0f}" for side in ("decoders", "dataloader")] for row in measured["rows"]
    )
    assert [row["workers"] for row in measured["rows"]] == [1, 2] and (
        measured["pictures"],
        measured["short"],
        measured["repeats"],
    ) == (1000, 375, 3)
    assert f"{one[0]} images/s and the DataLoader's {one[1]} with one process, {two[0]} and {two[1]} with two" in prose(
        "guides/large-data"
    )


def test_int8_in_a_browser() -> None:
    measured = {one["network"]: one for one in result("browser")["networks"]}
    said = prose("guides/browser")
    for name, network in (
        ("MobileNetV2", "mobilenet_v2"),
        ("MobileNetV3-small", "mobilenet_v3_small"),
        ("ShuffleNetV2", "shufflenet_v2_x1_0"),
    ):
        speed, (low, high) = measured[network]["int8_times_as_fast_as_float"], measured[network]["ci95"]
        assert any(
            f"{speed:.2f}x [{low:.2f}, {high:.2f}] {words}for {name}" in said for words in ("", "of float's speed ")
        )
        assert measured[network]["ok"]


def test_kernels_against_torch() -> None:
    measured, said = result("kernels"), prose("explanation/training-speed")
    for name, network in (
        ("MobileNetV2", "mobilenet_v2"),
        ("ShuffleNetV2", "shufflenet_v2"),
        ("ResNet-8x4", "resnet8x4"),
    ):
        (whole,) = (row["ratio"] for row in measured["networks"][network] if row["layer"] == "the whole network")
        figure = f"{whole['median']:.2f}x [{whole['low']:.2f}, {whole['high']:.2f}]"
        assert any(f"{figure} {words}for {name}" in said for words in ("", "as fast "))
    strided = [
        row
        for rows in measured["networks"].values()
        for row in rows
        if "depthwise" in row["layer"] and "stride 2" in row["layer"]
    ]
    (slow, quick) = ([row[side][1] for row in strided] for side in ("torch", "kernels"))
    assert f"took {min(slow):.1f} to {max(slow):.1f} ms, and takes {min(quick):.1f} to {max(quick):.1f} ms" in said


def test_where_a_steps_time_goes() -> None:
    measured, said = result("roofline-cpu"), prose("explanation/training-speed")
    rows = {row["student"]: row for row in measured["rows"]}
    mobile, dense = rows["mobilenet_v2"], rows["resnet8x4"]
    share = {
        name: [
            f"{100 * row['split_ms'][part] / row['step_ms']:.0f} %"
            for part in ("convolutions and products", "batch normalisation")
        ]
        for name, row in rows.items()
    }
    peak = {name: f"{100 * row['share_of_peak']:.0f} %" for name, row in rows.items()}
    assert f"{measured['peak_gflop_per_s'][dense['precision']]:.0f} GFLOP/s" in said
    assert (
        f"resnet8x4 runs at {peak['resnet8x4']} of it, with {share['resnet8x4'][0]} of the time in convolutions" in said
    )
    depthwise = f"shufflenet_v2 runs at {peak['shufflenet_v2']}, resnet56 -> mobilenet_v2 at {peak['mobilenet_v2']}"
    assert f"{depthwise}, with {share['mobilenet_v2'][0]}" in said
    assert (
        f"and {share['mobilenet_v2'][1]} in BatchNorm" in said
        and f"takes {mobile['two_pictures_ms']:.0f} of its {mobile['step_ms']:.0f} ms" in said
    )
    moved, rate = ({name: row["moved_gb"] for name, row in rows.items()}, measured["copy_gb_per_s"])
    assert f"writes {moved['mobilenet_v2']:.2f} GB for {mobile['gflop']:.1f} GFLOP," in said
    assert f"one into resnet8x4 {moved['resnet8x4']:.2f} GB for {dense['gflop']:.0f};" in said
    took = {name: f"{1e3 * gb / rate:.0f}" for name, gb in moved.items()}
    copied = f"{took['mobilenet_v2']} ms for the first and {took['resnet8x4']} of {dense['step_ms']:.0f} ms"
    assert f"at {rate:.0f} GB/s, would take {copied} for the second" in said
    assert f"They are {mobile['operators']:,} and {dense['operators']:,} operators." in said


def test_what_64_gpus_would_move() -> None:
    said = prose("guides/scale-out")
    distill = loader.load(ROOT / "recipes" / "imagenet" / "resnet34-resnet18.yaml").recipe.distill
    assert distill.method == ("dhkd",) and distill.dhkd.align == "none"  # one gradient travels
    student, teacher = (
        outline(f"torchvision/{name}", classes=1000, width=None, image_size=224) for name in ("resnet18", "resnet34")
    )
    method = build_method(distill, student=student, teacher=teacher, train_labels=torch.zeros(1))
    weights = params(models.build("torchvision/resnet18", classes=1000)) + params(method)
    message = 4 * weights  # bytes in float32
    within, between = (1e3 * 2 * message / rate for rate in (250e9, 25e9))  # ms; a ring moves nearly twice the message
    moved = f"moves 2 x {message / 1e6:.0f} MB per step: {within:.2f} ms at 250 GB/s, {between:.1f} ms at 25 GB/s"
    assert moved in said
    assert "8 machines of 8 GPUs, with a batch of 2,048 (" in said and 2048 // 64 == 32
    step = 1e3 * 32 / 2000
    assert f"32 images take {step:.0f} ms, so {between:.1f} ms more are a fifth of the time" in said
    assert round(between / (step + between), 1) == 0.2
    assert f"{64 * 2000:,} JPEGs a second: some {round(64 * 2000 // 100, -2):,} CPU cores" in said


def test_training_beside_busy_processes() -> None:
    table = {
        name.strip("`"): cells
        for name, *cells in rows(docs("benchmarks/training"), "images/s beside ... busy processes")
    }
    assert table == {
        name: [f"{found['median']:.0f}" for found in each.values()]
        for name, each in result("neighbours")["rows"].items()
    }


def test_few_photos_against_a_last_layer_alone() -> None:
    found = result("few_photos")["table"]
    for name, validation, float32, int8, gains in rows(docs("guides/fine-tuning"), "setting"):
        row = found[name.strip("`")]
        means = [f"{row[key]['mean']:.1f} %" for key in ("validation_top1", "fp32_top1", "top1")]
        assert [validation, float32, int8] == means, name
        if gains:
            assert [float(text) for text in gains.split(",")] == [round(gain["points"], 1) for gain in row["gain"]]
    recipe = found["recipes/photos.yaml"]
    assert all(low <= 0 <= high for gain in recipe["gain"] for low, high in [gain["ci95"]])
    assert recipe["minutes"]["mean"] < 15 and f"took {recipe['minutes']['mean']:.0f} minutes" in prose(
        "guides/fine-tuning"
    )
