"""``fastdigit calibrate``."""

from dataclasses import replace

from ..errors import CheckpointError, ConfigError
from .common import BackendName, DataName, Debug, JsonFile, ModelName, load_model, percent, say, write_json


def calibrate(
    model: ModelName = None,
    data: DataName = None,
    backend: BackendName = None,
    json_file: JsonFile = None,
    debug: Debug = False,
):
    """Make a network as sure as it is right.

    Fits one number, the temperature, on images that the network was not trained on: those that its run
    held back, or the test images of --data. It is stored in the model's file; no answer changes by it, only
    how probable the answers are said to be.

    [bold]Examples[/bold]
      fastdigit train --data mnist --validation 0.1
      fastdigit calibrate
      fastdigit calibrate digits.safetensors --data mnist
    """
    from ..calibration import fit_temperature
    from ..checkpoint import training_digest
    from ..evaluation import evaluate

    net, path, run = load_model(model, backend)
    if training_digest(path) is not None:
        raise CheckpointError(
            f"{path} is a checkpoint, which is training's alone: calibrate the finished network, for which "
            "'fastdigit train --resume' goes on where it is not there yet"
        )
    images, source = _images(net, path, run, data)
    before = {"fitted on": evaluate(net, images)}
    if data is None:
        before["test"] = evaluate(net, _test_images(run.read_settings().data, net))
    temperatures = [net.temperature, fit_temperature(before["fitted on"])]
    net.temperature = temperatures[1]
    net.save(path)
    say("model", path)
    say("data", source)
    say("temperature", "{:.4g} → {:.4g}".format(*temperatures))
    result = {"model": str(path), "data": source, "temperature": temperatures}
    for name, evaluation in before.items():
        after = replace(evaluation, temperature=net.temperature)
        result[name.replace(" ", "_")] = _compared(name, evaluation, after)
    if json_file:
        write_json(json_file, result)
        say("figures", json_file)


def _images(net, path, run, data):
    """(images to fit the temperature on, what they are)."""
    if data is not None:
        images = _test_images(data, net)
        return images, f"{data}: {len(images):,} test images"
    if run is None:
        raise ConfigError(f"{path} does not say what it was trained on: add --data digits, mnist or a folder")
    held_back = run.held_back(net)
    if held_back is None:
        raise ConfigError(
            f"the training of {path} held no images back: train with --validation 0.1, or name other "
            "images with --data"
        )
    return held_back, f"{run.read_settings().data}: {len(held_back[1]):,} images that the training held back"


def _test_images(data, net):
    from ..runs import load_data, only_classes

    return only_classes(load_data(data).test, net.classes)


def _compared(name, before, after):
    """Say loss and calibration error before and after, and return them for JSON."""
    from ..calibration import log_loss, reliability

    losses = [log_loss(evaluation) for evaluation in (before, after)]
    errors = [reliability(evaluation).error for evaluation in (before, after)]
    say(
        name,
        f"{before.count:,} images: loss {losses[0]:.4f} → {losses[1]:.4f}, calibration error "
        f"{percent(errors[0])} → {percent(errors[1])}",
    )
    return {"images": before.count, "loss": losses, "calibration_error": errors}
