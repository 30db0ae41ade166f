"""The table of what is asked of a GPU: what is met, missed, and not measured."""

import copy
import json
from pathlib import Path

import pytest

from fastdigit.bench import acceptance, checks
from fastdigit.bench.gpu import multiplication, sanitizer
from fastdigit.bench.gpu_acceptance import main, read, rows

PAGE = Path(__file__).resolve().parents[2] / "kernels" / "README.md"
TECHNIQUES = "simt", "mma tf32", "mma bf16", "wgmma bf16", "wgmma tf32"


def epoch(precision, milliseconds):
    quartiles = {"milliseconds_quartiles": [milliseconds, milliseconds]}
    shares = {"host_share_while_gpu_works": 0.01, "host_share_of_epoch": 0.4, "loss_apart": 1e-7}
    steps = {"milliseconds_of_steps": milliseconds / 2, "milliseconds": milliseconds}
    return {"precision": precision, **steps, **quartiles, **shares}


def seconds(precision, value, **more):
    return {"precision": precision, "seconds": value, "seconds_range": [value, value], **more}


def network(name, ours, peers, precision):
    ratio = {"ratio_to_best_peer": {"median": 4.0, "quartiles": [3.9, 4.1]}}
    sides = [{"side": peer, "precision": precision, "images_per_second": 1.0} for peer in peers]
    best = {"best_peers": {precision: peers[0]}}
    return {"name": name, **best, "rows": [{"side": ours, "precision": precision, **ratio}, *sides]}


DEEP = "fastdigit-cuda-bf16", ["torch-cuda-compile-bf16", "jax-cuda-bf16"], "bf16"
GOOD = {
    "devices": {"cuda": "NVIDIA H200, CUDA 13.0, and so on"},
    "driver": {"clocks.sm": "1980 MHz"},
    "checks": {
        "cuda": {
            name: {"checks": 1, "worst": 0.1}
            for name in (*checks.CHECKS, *(f"product, {way}" for way in TECHNIQUES))
        }
    },
    "epochs": [
        {"training": "SGD", "network": "784-128-10", "precision": "float32", "path": path}
        for path in ("epoch: one persistent kernel", "epoch: a graph of steps, as it cannot")
    ],
    "goals": {
        "epoch": [epoch("float32", 3.0), epoch("tf32", 5.0), epoch("bf16", 1.0)],
        "accuracy": [
            seconds("float32", 0.02, target=0.98, accuracy=0.979, accuracy_range=[0.97, 0.98], seeds=5)
            | {"reached": False},
            *(
                seconds("bf16", value, target=target, accuracy=0.99, accuracy_range=[0.98, 1.0], seeds=5)
                | {"reached": True}
                for target, value in ((0.98, 0.05), (0.99, 1.5))
            ),
        ],
        "comparison": [seconds("float32", 0.09, steps=3130)],
    },
    "products": [
        {"technique": way, "shape": f"{size}x{size}x{size}", "form": form, "share": 0.99, "tflops": 500.0}
        for way in TECHNIQUES
        for size in (4096, 8192)
        for form in ("nn", "nt", "tn")
    ],
    "bandwidth": [
        {"operation": name, "share": 0.9, "copy_gigabytes_per_second": 4000.0}
        for name in ("softmax_xent, 10 classes", "relu", "dropout", "sgd", "adam")
    ],
    "train": [
        network("small-128", "fastdigit-cuda", ["torch-cuda-graph", "jax-cuda"], "float32"),
        network("deep-512", *DEEP),
        network("deep-4096", *DEEP),
    ],
    "sanitizer": [
        {
            "tool": tool,
            "errors": 0,
            "rejected": [],
            "checked": {"epochs": 30, "products": 4, "checks": 18},
            "done": dict.fromkeys(sanitizer.ALL, ""),
            "unfinished": {},
            "lines": [],
        }
        for tool in ("memcheck", "racecheck")
    ],
}


def written(folder, name, found):
    file = folder / name
    file.write_text(json.dumps({"machine": {"commit": "abc"}, "gpu": found}))
    return file


def table(folder, found):
    merged, _ = read([written(folder, "gpu.json", found)])
    return list(rows(merged))


def test_all_can_be_met(tmp_path):
    found = table(tmp_path, GOOD)
    assert [asked for asked, _, met, _ in found if met is not True] == []
    assert len(found) == 17
    by_name = {asked: (measured, how) for asked, measured, _, how in found}
    measured, how = next(by_name[asked] for asked in by_name if asked.startswith("an epoch"))
    assert measured.startswith("3.00 ms (3.00 to 3.00) in float32")  # bf16 is not what is asked for
    assert how == "bench.gpu goals, NVIDIA H200"
    assert next(by_name[asked][0] for asked in by_name if asked.startswith("98%")).startswith(
        "0.050 s in bf16"
    )


def test_without_measurements_nothing_is_met(tmp_path):
    for found in ({}, {part: {"no_time": "no time was left for it"} for part in GOOD if part != "devices"}):
        lines = table(tmp_path, found)
        assert [met for _, _, met, _ in lines] == [None] * 17
        assert {measured for _, measured, _, _ in lines} == {"not measured"}


def at(found, *path):
    for step in path[:-1]:
        found = found[step]
    return found, path[-1]


@pytest.mark.parametrize(
    ("path", "value", "line", "said"),
    [
        (("checks", "cuda", "adam"), {"rejected": "far off"}, "every operation", "22 of 23; wrong: adam"),
        (("checks", "cuda", "adam"), None, "every operation", "22 of 23; not reached: adam"),
        (("epochs", 0, "rejected"), "lost", "weights of", "1 of 2; wrong: SGD, 784-128-10, float32"),
        (("epochs", 1), None, "weights of", "1 of 1; no graph of steps"),
        (("sanitizer", 1, "errors"), 2, "compute-sanitizer, racecheck", "2 errors in 30 epochs"),
        (("sanitizer", 0, "rejected"), ["relu: off"], "compute-sanitizer, memcheck", "wrong under it: relu"),
        (
            ("sanitizer", 0, "done", "product, simt"),
            None,
            "compute-sanitizer, memcheck",
            "not finished: product, simt",
        ),
        (("goals", "epoch"), [epoch("float32", 8.5)], "an epoch of", "8.50 ms"),
        (("goals", "accuracy", 1, "seconds"), 0.11, "98%", "0.110 s"),
        (("goals", "accuracy", 2, "reached"), False, "99%", "1.500 s"),
        (("goals", "comparison", 0, "seconds"), 0.2, "784-1024-10", "0.200 s"),
        (("goals", "epoch", 0, "host_share_while_gpu_works"), 0.06, "the host's time", "6.0%"),
        (("products", 1, "share"), 0.5, "simt", "least 50% (500 TFLOP/s, 4096x4096x4096 nt)"),
        (("products", 16, "share"), 0.4, "mma bf16", "least 40% (500 TFLOP/s, 8192x8192x8192 nt)"),
        (("products", 23), None, "wgmma bf16", "without a time: 8192x8192x8192 tn"),
        (("products", 25, "share"), 0.4, "tf32", "least 40% (500 TFLOP/s, 4096x4096x4096 nt, wgmma tf32)"),
        (("bandwidth", 2, "share"), 0.8, "softmax_xent", "least 80% of 4000 GB/s (dropout)"),
        (("bandwidth", 4), None, "softmax_xent", "least 90%"),
        (("train", 0, "rows", 2, "no_time"), "not installed", "784-128-10", "without a time: jax-cuda"),
        (("train", 2, "rows", 0, "ratio_to_best_peer", "median"), 0.9, "784-2500", "0.90 times torch-cuda"),
    ],
)
def test_each_line_can_be_missed(path, value, line, said, tmp_path):
    found = copy.deepcopy(GOOD)
    where, last = at(found, *path)
    if value is None:
        del where[last]
    else:
        where[last] = value
    missed = [row for row in table(tmp_path, found) if row[2] is not True]
    assert [(asked.startswith(line), met) for asked, _, met, _ in missed] == [(True, False)]
    assert said in missed[0][1]


def test_what_could_not_be_measured_says_why(tmp_path):
    found = copy.deepcopy(GOOD)
    found["sanitizer"][0] = {"tool": "memcheck", "no_time": "neither here nor there"}
    found["train"][1]["rows"][0] = {"side": DEEP[0], "precision": "bf16", "no_time": "refused: loss"}
    found["products"][:3] = [{**row, "no_time": "refused: error"} for row in found["products"][:3]]
    for row in found["products"][:3]:
        del row["share"]
    lines = {asked: measured for asked, measured, met, _ in table(tmp_path, found) if met is None}
    assert sorted(lines.values()) == [
        *("not measured: neither here nor there", "not measured: refused: error"),
        "not measured: refused: loss",
    ]


def test_several_files_count_as_one(tmp_path):
    parts = ("checks", "goals", "products", "train")
    first = {**GOOD, **{part: GOOD[part] for part in parts}, "train": GOOD["train"][:1]}
    first["bandwidth"] = [{"operation": "relu", "no_time": "refused"}]
    second = {
        "devices": {"cuda": "NVIDIA H100, more"},
        "train": GOOD["train"][1:],
        "bandwidth": GOOD["bandwidth"],
        "checks": {"no_time": "lost"},
    }
    late = {"side": "fastdigit-cuda", "precision": "float32", "no_time": "its time was over"}
    third = {"devices": second["devices"], "train": [{"name": "small-128", "best_peers": {}, "rows": [late]}]}
    given = first, second, third  # the last has no time of a network that another has
    files = [written(tmp_path, f"{number}.json", found) for number, found in enumerate(given)]
    merged, machines = read(files)
    found = list(rows(merged))
    assert all(met for _, _, met, _ in found)
    assert {how for _, _, _, how in found if "bandwidth" in how} == {"bench.gpu bandwidth, NVIDIA H100"}
    assert [each["gpu"] for each in machines] == [GOOD["devices"], *[second["devices"]] * 2]


def test_the_command_writes_its_table_and_says_what_is_open(tmp_path, capsys):
    page, out = tmp_path / "page.md", tmp_path / "out.json"
    page.write_text(f"before\n<!-- table: gpu -->\nold\n{acceptance.END}\nafter\n")
    options = ["--json", str(out), "--readme", str(page)]
    assert main([str(written(tmp_path, "gpu.json", GOOD)), *options]) == 0
    results = json.loads(out.read_text())
    assert all(row["met"] for row in results["rows"])
    assert results["measured_on"][0]["driver"] == GOOD["driver"]
    shown = page.read_text()
    assert "before" in shown
    assert "after" in shown
    assert "old" not in shown
    assert acceptance.markdown(results["rows"]) in shown
    capsys.readouterr()
    slow = copy.deepcopy(GOOD)
    slow["goals"]["comparison"][0]["seconds"] = 1.0
    del slow["products"]
    assert main([str(written(tmp_path, "gpu.json", slow)), *options]) == 1
    said = capsys.readouterr().out
    assert "MISSED: 784-1024-10" in said
    assert "OPEN: simt" in said
    shown = page.read_text()
    assert shown.count("**missed**") == 1
    assert shown.count("| not measured |") == 4


@pytest.mark.parametrize("content", [None, "{", "{}", '{"gpu": 3, "machine": {}}'])
def test_other_files_are_refused_in_one_line(content, tmp_path, capsys):
    file = tmp_path / "other.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SystemExit):
        main([str(file)])
    assert f"{file} holds no results of bench.gpu" in capsys.readouterr().err.splitlines()[-1]


def test_the_page_asks_for_what_the_command_asks_for():
    shown = PAGE.read_text(encoding="utf-8").split("<!-- table: gpu -->")[1].split(acceptance.END)[0]
    asked = [line.split(" | ")[0].removeprefix("| ") for line in shown.strip().splitlines()[2:]]
    assert asked == [row[0] for row in rows({})]
    assert set(multiplication.WAYS) == set(TECHNIQUES)


@pytest.mark.parametrize("timed", [True, False])
def test_a_peer_that_was_refused_for_its_losses_needs_a_time_all_the_same(timed, tmp_path):
    found = copy.deepcopy(GOOD)
    torch = found["train"][1]["rows"][1]
    torch |= {"no_time": "refused: loss differs"} | ({"turns": [7.0]} if timed else {})
    row = next(row for row in table(tmp_path, found) if "batch 512" in row[0])
    said = "refused for its losses, and a rival all the same: " if timed else "without a time: "
    assert row[1] == f"4.00 times torch-cuda-compile-bf16 (3.90 to 4.10); {said}{torch['side']}"
    assert row[2] is timed


@pytest.mark.parametrize(
    ("wgmma", "said", "met"),
    [
        ([], "least 50% (500 TFLOP/s, 4096x4096x4096 nn, mma tf32)", True),
        ([{"share": 0.44, "tflops": 440.0}], "least 44% (440 TFLOP/s, 4096x4096x4096 nt, wgmma tf32)", False),
        ([{"no_time": "refused"}], "without a time: 4096x4096x4096 nt", False),
    ],
    ids=["not there", "slower", "wrong"],
)
def test_of_tf32_the_way_that_is_taken_counts(wgmma, said, met, tmp_path):
    found, square = copy.deepcopy(GOOD), {"shape": "4096x4096x4096"}
    found["products"] = [
        *({"technique": "wgmma tf32", **square, "form": "nt", **row} for row in wgmma),
        *(
            {"technique": "mma tf32", **square, "form": form, "share": 0.5, "tflops": 500.0}
            for form in ("nn", "nt", "tn")
        ),
    ]
    (row,) = (row for row in table(tmp_path, found) if row[0].startswith("tf32 at"))
    assert said in row[1]
    assert row[2] is met


def test_of_passes_over_memory_the_last_of_each_operation_counts(tmp_path):
    again = {"operation": "sgd", "share": 0.95, "copy_gigabytes_per_second": 4000.0}
    files = []
    for name, found in ("first", GOOD), ("second", {"devices": GOOD["devices"], "bandwidth": [again]}):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps({"machine": {}, "gpu": found}))
    merged, _ = read(files)
    shares = {row["operation"]: row["share"] for row in merged["bandwidth"][0]}
    assert shares == {row["operation"]: 0.9 for row in GOOD["bandwidth"]} | {"sgd": 0.95}


def test_a_share_just_below_its_bound_is_not_rounded_to_it():
    good = copy.deepcopy(GOOD)
    for row in good["products"]:
        if row["technique"] == "mma bf16":
            row["share"] = 0.446
    merged = {part: (content, "") for part, content in good.items()}
    merged["train"] = {network["name"]: network for network in good["train"]}, ""
    said = {what: (measured, met) for what, measured, met, _ in rows(merged)}
    measured, met = next(line for what, line in said.items() if what.startswith("mma bf16"))
    assert measured.startswith("least 44.6% (")
    assert not met
