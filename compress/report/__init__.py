"""The report of a run: `report.html` and `plots/` from `report.json` and the files beside it.

`report.json` holds the keys of the contract (`schema, recipe, status, teacher, student, models, comparisons, device, requirements, seconds,
reused, environment`). Everything below may be added; what is missing or null is left out of the page or shown as not measured.

    started        "2026-01-31T12:00:00Z", UTC
    command        "compress run recipes/mobilenet.yaml"
    data           {label: value}: source, pictures per split, image size; shown as they stand
    student        further keys "method", "shipped_epoch", "top1_validation", "precision", "threads", "images_per_second", "gpu" (the card that trained it),
                   "kernels" (who computed BatchNorms on a CPU: a C compiler's name, or "torch"),
                   "teacher_rows": views that the teacher was run on for logits (null: no teacher, or one whose maps are read);
                   "plain_params", "plain_macs": of the student as the recipe names it, where a method ships more
    teacher        further key "reason": why it won, one sentence; it and its candidates: "params", "macs", "seconds", "epochs", "origin", "gpu",
                   "kernels"
    classes        [name], in the order of the logits
    cautions       [sentence]: those of the warnings that say why the verdict may mean little; the page shows them beside it
    warnings       [sentence]
    unreadable     [{"path", "reason"}]
    distill, export, quantize, latency   {setting or finding: value}: shown as they stand
    export.rewrites   [{"name", "nodes", "kept", "reason", "files", "max_abs_diff", "limit", "images", "integer_share", "rewritten_share"}]: float-exact
                   rewrites, kept and refused; shares of integer kernels in the int8 file without and with it
    package        [{"file", "kind": "batch1|ort|operators", "source", "target", "sha256", "bytes", "max_abs_diff", "operators": [name] or null}]
    baseline       {"epochs", "top1_validation", "models": [rows like `models`, role "baseline"], "comparisons": [rows like `comparisons`]}
    distillation   {"gain_points", "ci95", "mcnemar_p", "model", "against", "sentence"}: the student against the baseline
    int8_against_float   {"speedup", "ci95", "sentence"}
    tuning         {"gain_points", "ci95", "mcnemar_p", "model", "against", "sentence": the tuned int8 file against static int8 of the same student;
                   "epochs", "lr", "top1_float", "top1_static", "top1_validation" (on validation pictures), "agreement", "mean_abs_diff": of the file
                   and what training simulated}; null without `quantize.scheme: qat`
    per_class      [{"class", "n", "teacher", "student"}], accuracies as fractions; computed from predictions.npz where missing; further keys
                   "lost", "gained", "drop_points", "drop_ci95", "mcnemar_p", "worse" (beyond chance after Holm's correction) against the teacher;
                   "float" and the same keys with "float_" against the float student
    slices         [{"slice", "share", "margin_below", "model", "against", "top1", "reference", "n", "lost", "gained", "drop_points", "drop_ci95",
                   "mcnemar_p"}]: the shipped student where the teacher's first answer is least ahead of its second
    latency        "contaminated", "other_cores", "round_other_cores", "drift" {file: last third of rounds / first}, "disturbances" [sentence],
                   "notes" [sentence], "interrupted" {file: further runs, which lost their core to another process and do not count}, "unfit" (why
                   they could not be left out; null), "attempts", "rounds", "threads", "spinning", "governor", "cpu_features", "sha256" {file: of the
                   bytes measured}, "photo" {"pictures", "decoder", ...}, "sustained" null or {"file", "seconds", "first_p50_ms", "last_p50_ms", "ratio",
                   "temperature_c_first", "temperature_c_last", "throttled", "slices_ms", "sentence", ...}
    analysis       of `compress analyze`: "gradients" {"every", "lowest" {"classifier", "backbone"}, "head" (DHKD's settings), "sentence"};
                   "correlations", "heads" [{"what", "split", "pictures", "mean_abs", "max_abs", "mean_logits_abs"}]: student minus teacher;
                   "calibration" [{"what", "file", "pictures", "bins", "resamples", "ece", "ece_ci95", "confidence", "top1", "nll"}]; "features"
                   {"pictures", "classes", "of_classes", "perplexity", "neighbours", "networks" [{"role", "model", "width",
                   "same_class_neighbours"}], "sentence"}; "against" [{"recipe", "run", "method", "loss", "top1_validation", "cosines"}]
    ships          {"file", "sentence"}: the student's file that ships, and what `quantize.keep: faster` decided (null: nothing to decide)
    quantize       further keys "search" (what it chose, one sentence), "trials" [{"name", "kl", "agreement", "bytes", "kept", "chosen", "reason"; of
                   the certified ones "drop_points", "drop_ci95", "mcnemar_p", "images"}]: KL in nats and agreement are against the float student;
                   "further" [the same for each other target]
    plan           {"choose": {"max_latency_ms", "chosen", "sentence"}, "networks": [{"role" (teacher, choice), "name", "model", "width", "params",
                   "macs", "fp32", "int8": {"bytes", "latency_ms", "peak_memory_bytes", ...}, "int8_speedup", "int8_speedup_ci95", "speedups",
                   "requirements", "status"}], "host", "sentences"}: what `student.choose` picked by, before any training
    requirements[] further keys "where" (path:line:column of the recipe), "sentence", "sha256", "precision"
    models[]       further keys "variant": "static" is int8 of a student before it was tuned, for comparison, it does not ship;
                   "photo_latency_ms" like `latency_ms`, from the bytes of a picture file to logits; "note": why a file was not timed here;
                   further keys in `latency_ms`: "p50_ci95" [low, high]; "islands" [name (operator)]: what runs in float inside int8;
                   "island_causes" [{"op", "cause", "count", "nodes"}]: why; "requantised" [name]: float layers that run in integers all the same
    comparisons[]  further keys "images", "lost", "gained", "speedup_ci95"
    device[]       further keys "role", "images", "peak_memory_bytes", "ok", "isa", "cores", "memory_bytes", "python", "built_for", "note",
                   "not_timed": why time is missing; "speedup_over": {file: [ratio, low, high]}; "photos": {"status", "sentence", "agreement"};
                   "provider" {"asked", "nodes", "of", "time_share", "elsewhere", "sentence"}: what ran in the execution provider (null: the CPU);
                   "photo_latency_ms" like `latency_ms` and "photo_to_answer" (what was timed, or why not) of the file for this device; "sustained" like
                   `latency.sustained`; "disturbances" [sentence]; "conditions" of the
                   measurement: "threads", "spinning", "governor", "cpu_features", "rounds", "attempts", "other_cores", "drift", "interrupted", "unfit";
                   "remarks": sentences about the host, for example which WebGPU a browser has
    requirements[] one row for each device that a limit on time or memory was judged on, named by "target"
    named_device   null, or {"target", "failure"}: the other device that the recipe names, and why it gave no answer (one sentence) or null

Files beside it, each optional:

    predictions.npz   labels (N,) int, sha256 (N,) str, `logits/<file>` (N, K) float for each model file
    latency.npz       `<file>`: times of the runs in ms, (R,) float, and `rounds/<file>`: the round of each, (R,) int
    history/*.csv     student.csv, baseline.csv, <candidate>.csv (its "/" as "-"): epoch, lr, one column per loss (the task loss first), with
                      train.trace_gradients cos_classifier and cos_backbone (cosines of gradients, mean over the traced steps),
                      top1_validation (fraction), images_per_second
    pictures.npz      what the shipped student gets wrong and the teacher right: images (M, H, W, 3) uint8 RGB, labels (M,), teacher (M,),
                      student (M,) int: the predicted classes; total (): how many there are in all; slice_images (S, H, W, 3), slice_labels,
                      slice_student (S,) int, slice_margin (S,) float, slice_name (S,) str: the same for single slices and classes

    analysis.npz      of `compress analyze`: correlation_<row> (K, K) float, differences; features_teacher, features_student (M, 2) float,
                      features_labels (M,) int; calibration_<row>_pictures, _confidence, _accuracy (15,); against_<run>_epoch, _top1, _task,
                      _cos_classifier, _cos_backbone (E,)

No time of rendering is written, so equal inputs give equal bytes.
"""
