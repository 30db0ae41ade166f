"""Results of ``bench.gpu`` as tables."""

from ..tables import NOTE, TITLES, Table, count, each_network, microseconds


def of_gpu(found):
    """All tables of ``bench.gpu``."""
    if "no_time" in found:
        return [Table("gpu", TITLES["gpu"], ("",), [(found["no_time"],)])]
    tables = [Table("gpu", TITLES["gpu"], ("backend", "device"), list(found["devices"].items()))]
    for part, make in PARTS.items():
        content = found.get(part)
        if content and "no_time" in content:
            tables.append(Table(f"gpu-{part}", f"GPU: {part}", ("",), [(content["no_time"],)]))
        elif content:
            tables += make(content)
    return [*tables, _summary(found)]


def _summary(found):
    """A few lines that say it all."""
    table = Table("gpu-summary", "GPU: in short", ("what", "found"))
    for name, operations in _sound(found, "checks", {}).items():
        passed = [each for each in operations.values() if "rejected" not in each]
        table.rows.append((f"operations of {name}", f"{len(passed)} of {len(operations)} right"))
    if rows := _sound(found, "epochs", []):
        right = sum("rejected" not in row for row in rows)
        table.rows.append(("trainings against float64 and cpu", f"{right} of {len(rows)} right"))
    timed = [row for row in _sound(found, "products", []) if "tflops" in row]
    for technique in dict.fromkeys(row["technique"] for row in timed):
        best = max((row for row in timed if row["technique"] == technique), key=lambda row: row["tflops"])
        what = f"{best['tflops']:.0f} TFLOP/s, {best['share']:.0%} of cuBLAS, {best['shape']} {best['form']}"
        table.rows.append((f"{technique} at its best", what))
    for network in _sound(found, "train", []):
        ours = [
            row for row in network["rows"] if row["side"].startswith("fastdigit") and "no_time" not in row
        ]
        for row in ours:
            ratio = row.get("ratio_to_best_peer")
            beside = f", {ratio['median']:.2f} × {network['best_peers'][row['precision']]}" if ratio else ""
            what = f"{count(row['images_per_second'])} images/s{beside}"
            table.rows.append((f"{network['name']}, {row['side']}", what))
    for row in _sound(found, "sanitizer", []):
        table.rows.append((row["tool"], row.get("no_time") or f"{row['errors']} errors"))
    failed = failures(found)
    table.rows.append(("failures", f"{len(failed)}" + (f", the first: {failed[0]}" if failed else "")))
    return table


def failures(found):
    """What was rejected, refused or could not be measured, a line each; a missing peer is none."""
    if "no_time" in found:
        return [found["no_time"]]
    lines = [f"{part}: {found[part]['no_time']}" for part in PARTS if "no_time" in (found.get(part) or ())]
    lines += [
        f"{part}, ended early: {found[f'{part}_ended']}"
        for part in PARTS
        if f"{part}_ended" in found and "no_time" not in found[part]
    ]
    for name, row in _rows(found):
        why = row.get("rejected") or row.get("no_time")
        lines += [f"{name}: {why}"] if why else []
    for row in _sound(found, "sanitizer", []):
        lines += [f"{row['tool']}: {row['errors']} errors"] if row.get("errors") else []
        lines += [f"{row['tool']}, {line}" for line in row.get("rejected", ())]
    return lines


def _rows(found):
    """(name, row) of all that can be rejected or refused a time."""
    for part in "checks", "cupy":
        for backend, operations in _sound(found, part, {}).items():
            yield from ((f"{backend}, {name}", row) for name, row in operations.items())
    parts = "epochs", "products", "bandwidth", "steps", "sanitizer"
    each = [(part, _sound(found, part, [])) for part in parts]
    for part, rows in [*each, *_sound(found, "goals", {}).items()]:
        for row in rows:
            named = (row.get(name) for name in NAMED)
            row = {**row, "rejected": None} if part == "sanitizer" else row
            yield ", ".join(str(name) for name in named if name is not None), row
    for network in _sound(found, "train", []):
        ours = (row for row in network["rows"] if row["side"].startswith("fastdigit"))
        yield from ((f"{network['name']}, {row['side']}", row) for row in ours)


# What a row is about.
NAMED = "training", "network", "technique", "shape", "form", "operation", "tool", "target", "precision"


def _sound(found, part, nothing):
    content = found.get(part)
    return nothing if not content or "no_time" in content else content


def _epochs(rows):
    columns = "training", "network", "precision", "from float64", "from cpu", "path"
    table = Table("gpu-epochs", "GPU: trainings", columns)
    for row in rows:
        about = row["training"], row["network"], row["precision"]
        if "rejected" in row:
            table.rows.append((*about, "rejected", row["rejected"], row.get("path", "")))
        else:
            off = f"{row['off_float64']:.1e}", f"{row['off_cpu']:.1e}"
            table.rows.append((*about, *off, row["path"]))
    yield table


def _checks(content):
    for name, operations in content.items():
        columns = "operation", "checks passed", "worst error / bound"
        table = Table(f"gpu-checks-{name}", f"GPU: checks of backend {name}", columns)
        for operation, result in operations.items():
            if "rejected" in result:
                table.rows.append((operation, "rejected", result["rejected"]))
            else:
                table.rows.append((operation, f"{result['checks']}", f"{result['worst']:.2f}"))
        yield table


def _products(rows):
    columns = "product", "technique", "time", "TFLOP/s", "of cuBLAS"
    table = Table("gpu-products", "GPU: products", columns)
    for row in rows:
        name = f"{row['shape']} {row['form']}"
        if "no_time" in row:
            table.rows.append((name, row["technique"], row["no_time"], "", ""))
            continue
        table.rows.append(
            (
                name,
                row["technique"] + (f" ({NOTE})" if row["noisy"] else ""),
                microseconds(row["microseconds"]),
                f"{row['tflops']:.1f}",
                f"{row['share']:.0%}",
            )
        )
    yield table


def _launches(found):
    table = Table("gpu-launches", "GPU: launches", ("what", "microseconds"))
    for name, what in (
        ("launch_on_host_microseconds", "a launch, time of the host"),
        ("launch_microseconds", "a launch, time of the GPU"),
        ("graph_node_microseconds", "a node of a CUDA graph"),
        ("barrier_microseconds", "a barrier of a block on each multiprocessor"),
    ):
        table.rows.append((what, f"{found[name]:.2f}"))
    yield table


def _train(networks):
    for table in each_network(networks):
        table.name, table.title = f"gpu-{table.name}", f"GPU: {table.title}"
        table.text += " Of the first call: all sides compiled at the same time."
        at = table.columns.index("of the limit")  # the processor's
        table.columns = table.columns[:at] + table.columns[at + 1 :]
        table.rows = [row[:at] + row[at + 1 :] for row in table.rows]
        yield table


def _goals(found):
    columns = "what", "precision", "time", "range or quartiles", "host while the GPU works", "beside"
    table = Table("gpu-goals", "GPU: whole trainings", columns, minor=("range or quartiles",))
    for row in found.get("epoch", ()):
        about = "an epoch of 784-128-10, batch 128", row["precision"]
        if "no_time" in row:
            table.rows.append((*about, row["no_time"], "", "", ""))
            continue
        low, high = row["milliseconds_quartiles"]
        beside = f"steps alone {row['milliseconds_of_steps']:.2f} ms, loss {row['loss_apart']:.1e} from cpu's"
        span, host = f"{low:.2f} to {high:.2f} ms", f"{row['host_share_while_gpu_works']:.1%}"
        table.rows.append((*about, f"{row['milliseconds']:.2f} ms", span, host, beside))
    for row in [*found.get("accuracy", ()), *found.get("comparison", ())]:
        what = f"to {row['target']:.0%}" if "target" in row else "784-1024-10, batch 32, 10 epochs of 10,000"
        about = what, row["precision"]
        if "no_time" in row:
            table.rows.append((*about, row["no_time"], "", "", ""))
            continue
        span = "{:.3f} to {:.3f} s".format(*row["seconds_range"])
        beside = f"{row['accuracy']:.2%}" if "accuracy" in row else f"{row['steps']:,} steps"
        table.rows.append((*about, f"{row['seconds']:.3f} s", span, "", beside))
    yield table


def _bandwidth(rows):
    columns = "operation", "MB", "time", "GB/s", "of a copy"
    table = Table("gpu-bandwidth", "GPU: passes over memory", columns)
    for row in rows:
        about = row["operation"], f"{row['megabytes']:.0f}"
        if "no_time" in row:
            table.rows.append((row["operation"], row["no_time"], "", "", ""))
            continue
        time, speed = microseconds(row["microseconds"]), f"{row['gigabytes_per_second']:.0f}"
        table.rows.append(
            (*about, time, speed + (f" ({NOTE})" if row["noisy"] else ""), f"{row['share']:.0%}")
        )
    yield table


def _steps(rows):
    columns = "network", "precision", "a step", "launches begin early", "the same weights"
    table = Table("gpu-steps", "GPU: steps as graphs of launches", columns)
    for row in rows:
        about = row["network"], row["precision"]
        if "no_time" in row:
            table.rows.append((*about, row["no_time"], "", ""))
            continue
        times = microseconds(row["microseconds"]), microseconds(row["microseconds_early"])
        table.rows.append((*about, *times, "yes" if row["same"] else "no"))
    yield table
    for row in rows:
        if "alone" in row:
            name = f"{row['network']}, {row['precision']}, launches"
            columns = "kernel", "blocks", "time"
            alone = Table(f"gpu-steps-{row['network']}", f"GPU: {name}", columns)
            alone.rows = [(kernel, blocks, microseconds(time)) for kernel, blocks, time in row["alone"]]
            yield alone


def _sanitizer(rows):
    table = Table("gpu-sanitizer", "GPU: compute-sanitizer", ("tool", "errors", "checked", "its first words"))
    for row in rows:
        if "no_time" in row:
            table.rows.append((row["tool"], row["no_time"], "", ""))
            continue
        checked = ", ".join(f"{count} {part}" for part, count in row["checked"].items())
        checked += f"; {len(row['unfinished'])} not finished" if row["unfinished"] else ""
        table.rows.append(
            (row["tool"], f"{row['errors']}", checked, row["lines"][0] if row["errors"] else "")
        )
    yield table


PARTS = {
    "checks": _checks,
    "launches": _launches,
    "goals": _goals,
    "epochs": _epochs,
    "products": _products,
    "bandwidth": _bandwidth,
    "steps": _steps,
    "train": _train,
    "sanitizer": _sanitizer,
    "cupy": _checks,
}
