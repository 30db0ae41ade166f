"""Model files and checkpoints: what goes in comes out, and nothing damaged gets in."""

import json
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import fastdigit as fd

from .conftest import same_bits


@pytest.fixture
def saved(tmp_path):
    """A network and the file that it was saved to."""
    net = fd.Network([6, 5, 2], backend="numpy", seed=8, dropout=0.25, classes=(3, 8))
    net.save(tmp_path / "net.safetensors")
    return net, tmp_path / "net.safetensors"


def described(file):
    """The JSON description in a file, read without fastdigit."""
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(json.loads(raw[8 : 8 + length])["__metadata__"]["fastdigit"])


def rewrite(file, change):
    """Replace the description (and tensors) by what ``change(description, tensors)`` makes of it."""
    tensors, description = load_file(file), described(file)
    change(description, tensors)
    save_file(tensors, file, {"fastdigit": json.dumps(description)})


def test_a_network_comes_back_as_it_was(make_network, blobs, tmp_path):
    net = make_network(dropout=(0.1, 0.2), input_dropout=0.3, classes=(0, 1, 2, 3))
    fd.fit(net, blobs, epochs=2)
    net.save(tmp_path / "net.safetensors")
    back = fd.Network.load(tmp_path / "net.safetensors", backend=net.backend)
    assert same_bits(net, back)
    for name in ("layer_sizes", "dropout", "input_dropout", "seed"):
        assert getattr(back, name) == getattr(net, name)
    net.temperature = 1.25
    net.save(tmp_path / "net.safetensors")
    back = fd.Network.load(tmp_path / "net.safetensors", backend=net.backend)
    assert back.temperature == 1.25
    np.testing.assert_array_equal(back.predict_proba(blobs.images), net.predict_proba(blobs.images))


def test_a_file_from_before_there_was_input_dropout(make_network, blobs, tmp_path):
    """A network, and a training to resume."""
    file, options = tmp_path / "c.safetensors", {"batch_size": 30, "schedule": fd.Constant()}
    whole, resumed = make_network(), make_network()
    fd.fit(whole, blobs, epochs=2, **options)
    fd.fit(make_network(), blobs, epochs=1, checkpoint=file, **options)

    def as_it_was(description, tensors):
        del description["network"]["input_dropout"], description["network"]["temperature"]
        description["network"]["format"] = 1
        for name in ("label_smoothing", "max_norm", "average"):
            del description["training"]["settings"][name]

    rewrite(file, as_it_was)
    assert fd.Network.load(file).input_dropout == 0
    fd.fit(resumed, blobs, epochs=2, checkpoint=file, resume=True, **options)
    assert same_bits(whole, resumed)


def test_a_file_is_plain_safetensors_with_unpadded_tensors(saved):
    net, file = saved
    tensors = load_file(file)
    assert {name: value.shape for name, value in tensors.items()} == {
        "w1": (6, 5),
        "b1": (5,),
        "w2": (5, 2),
        "b2": (2,),
    }
    np.testing.assert_array_equal(tensors["w2"], net.get_parameters()["w2"])
    assert described(file)["network"]["classes"] == [3, 8]


@pytest.mark.parametrize("precision", ["bf16", "bf16x3", "tf32"])
def test_a_model_is_for_any_backend_whatever_multiplied_in_training(saved, precision):
    net, file = saved
    rewrite(file, lambda description, _: description["network"].update(precision=precision))
    back = fd.Network.load(file, backend="numpy")
    assert back.precision == "float32"
    assert same_bits(net, back)
    net.precision = precision  # as where it is offered
    copy = pickle.loads(pickle.dumps(net))
    assert copy.precision == "float32"
    assert same_bits(net, copy)


def test_a_model_of_float64_is_not_for_a_backend_without(saved):
    _, file = saved
    fd.Network([6, 5, 2], backend="numpy", precision="float64").save(file)
    with pytest.raises(fd.CheckpointError, match="'cpu' does not offer precision 'float64'"):
        fd.Network.load(file, backend="cpu")


def test_a_checkpoint_is_a_model_too(make_network, blobs, tmp_path):
    net = make_network()
    fd.fit(net, blobs, epochs=1, optimizer=fd.Adam(), checkpoint=tmp_path / "c.safetensors")
    assert same_bits(fd.Network.load(tmp_path / "c.safetensors", backend=net.backend), net)


def test_a_model_is_not_a_checkpoint(make_network, blobs, tmp_path):
    net = make_network()
    net.save(tmp_path / "m.safetensors")
    with pytest.raises(fd.CheckpointError, match="no training to resume"):
        fd.fit(net, blobs, checkpoint=tmp_path / "m.safetensors", resume=True)


def test_cut_at_any_byte(saved):
    net, file = saved
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(fd.CheckpointError, match=r"net\.safetensors"):
            fd.Network.load(file)
    file.write_bytes(whole + b"more")
    with pytest.raises(fd.CheckpointError):
        fd.Network.load(file)
    file.write_bytes(whole)
    assert same_bits(fd.Network.load(file, backend="numpy"), net)


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=300))
def test_random_bytes(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "random.safetensors"
    file.write_bytes(content)
    with pytest.raises(fd.CheckpointError):
        fd.Network.load(file)


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 2000), value=st.integers(0, 255))
def test_one_byte_changed_in_the_header_is_an_error_or_the_same_shapes(tmp_path_factory, position, value):
    file = tmp_path_factory.getbasetemp() / "changed.safetensors"
    net = fd.Network([6, 5, 2], backend="numpy", seed=8)
    net.save(file)
    raw = bytearray(file.read_bytes())
    (length,) = struct.unpack("<Q", raw[:8])
    raw[position % (8 + length)] = value
    file.write_bytes(raw)
    try:
        back = fd.Network.load(file, backend="numpy")
    except fd.CheckpointError:
        return
    assert back.layer_sizes == (6, 5, 2)


def test_a_pickle_in_disguise_is_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    file = tmp_path / "net.safetensors"
    file.write_bytes(pickle.dumps(Attack()))
    with pytest.raises(fd.CheckpointError, match="not a safetensors file"):
        fd.Network.load(file)
    assert not (tmp_path / "executed").exists()


def test_a_huge_header_and_a_huge_claim_take_no_memory(saved):
    _, file = saved
    tracemalloc.start()
    try:
        file.write_bytes(struct.pack("<Q", 2**60) + b"{}")
        with pytest.raises(fd.CheckpointError):
            fd.Network.load(file)
        # A description of 4·10^14 weights over the tensors of a small network.
        header = {
            "__metadata__": {
                "fastdigit": json.dumps(
                    {
                        "network": {
                            "format": 1,
                            "layer_sizes": [20_000_000, 20_000_000],
                            "classes": [0, 1],
                            "dropout": [],
                            "precision": "float32",
                            "seed": 0,
                            "pixels": True,
                        }
                    }
                )
            },
            "w1": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]},
        }
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + b"\0\0\0\0")
        with pytest.raises(fd.CheckpointError, match="w1 is 1×1, expected 20000000×20000000"):
            fd.Network.load(file)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_overlapping_tensors(saved):
    _, file = saved
    header = {
        "w1": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b1": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
    }
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(12))
    with pytest.raises(fd.CheckpointError):
        fd.Network.load(file)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", 3, "format 3, this version reads up to 2: upgrade"),
        ("format", True, "metadata.network.format is True, expected int"),
        ("layer_sizes", [6, 5.0, 2], r"layer_sizes\[1\] is 5.0, expected int"),
        ("layer_sizes", "6-5-2", "layer_sizes is not a list"),
        ("layer_sizes", [6, -5, 2], "no usable network"),
        ("classes", [3, 3], "no usable network: classes must differ"),
        ("dropout", [1.5], "no usable network: dropout"),
        ("input_dropout", 1.0, "no usable network: input_dropout"),
        ("input_dropout", 0, "input_dropout is 0, expected float"),
        ("precision", "float8", "no usable network: .* precision 'float8'"),
        ("seed", -1, "no usable network: seed"),
        ("temperature", 0.0, "no usable network: temperature"),
        ("temperature", -1.5, "no usable network: temperature"),
        ("temperature", 1, "temperature is 1, expected float"),
        ("temperature", None, "temperature is None, expected float"),
        ("extra", 1, "has the fields"),
    ],
)
def test_descriptions_outside_the_schema(saved, field, value, message):
    _, file = saved
    rewrite(file, lambda description, tensors: description["network"].update({field: value}))
    with pytest.raises(fd.CheckpointError, match=message):
        fd.Network.load(file, backend="numpy")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999"])
def test_a_temperature_that_is_no_number(saved, text):
    _, file = saved
    description = json.dumps(described(file)).replace('"temperature": 1.0', f'"temperature": {text}')
    save_file(load_file(file), file, {"fastdigit": description})
    with pytest.raises(fd.CheckpointError, match=r"temperature is (nan|inf), expected float"):
        fd.Network.load(file, backend="numpy")


def test_a_file_without_a_temperature_has_none_only_if_it_is_old(saved):
    net, file = saved
    rewrite(file, lambda description, tensors: description["network"].pop("temperature"))
    with pytest.raises(fd.CheckpointError, match="has the fields"):
        fd.Network.load(file, backend="numpy")
    rewrite(file, lambda description, tensors: description["network"].update(format=1))
    back = fd.Network.load(file, backend="numpy")
    assert back.temperature == 1
    assert same_bits(back, net)


def test_a_checkpoint_of_before_temperatures_is_resumed(make_network, blobs, tmp_path):
    file, whole, net = tmp_path / "c.safetensors", make_network(), make_network()
    fd.fit(whole, blobs, epochs=2, schedule=fd.Constant())
    fd.fit(make_network(), blobs, epochs=1, schedule=fd.Constant(), checkpoint=file)
    rewrite(file, lambda d, t: (d["network"].pop("temperature"), d["network"].update(format=1)))
    net.temperature = 2.0  # no obstacle, and of no use after the training
    fd.fit(net, blobs, epochs=2, schedule=fd.Constant(), checkpoint=file, resume=True)
    assert same_bits(net, whole)
    assert net.temperature == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"network": []}', "[" * 5000, '{"network": 1}'])
def test_metadata_that_is_not_a_description(saved, text):
    _, file = saved
    save_file(load_file(file), file, {"fastdigit": text})
    with pytest.raises(fd.CheckpointError, match="metadata"):
        fd.Network.load(file)


def test_someone_elses_safetensors(saved):
    _, file = saved
    save_file({"weight": np.zeros(3, np.float32)}, file)
    with pytest.raises(fd.CheckpointError, match="not one of fastdigit's"):
        fd.Network.load(file)


def test_tensors_of_another_shape_type_or_with_nan(saved):
    _, file = saved

    def put(name, value):
        rewrite(file, lambda description, tensors: tensors.update({name: value}))

    put("w2", np.zeros((5, 3), np.float32))
    with pytest.raises(fd.CheckpointError, match="w2 is 5×3, expected 5×2"):
        fd.Network.load(file)
    put("w2", np.zeros((5, 2), np.float64))
    with pytest.raises(fd.CheckpointError, match="w2 is float64 5×2, expected float32"):
        fd.Network.load(file)
    put("w2", np.full((5, 2), np.nan, np.float32))
    with pytest.raises(fd.CheckpointError, match="w2 holds NaN"):
        fd.Network.load(file)
    put("w2", np.zeros((5, 2), np.float32))
    put("w3", np.zeros(2, np.float32))
    with pytest.raises(fd.CheckpointError, match="w3 is 2, expected absent"):
        fd.Network.load(file)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(fd.CheckpointError, match="is not there"):
        fd.Network.load(tmp_path / "absent.safetensors")
    with pytest.raises(fd.CheckpointError, match=r"is a folder: name the \.safetensors file"):
        fd.Network.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda d, t: d["training"].update(steps_done=99),
        lambda d, t: d["training"].update(epochs_done=1),
        lambda d, t: d["training"]["epochs"].clear(),
        lambda d, t: t.update({"log.step_losses": np.zeros(1)}),
        lambda d, t: t.update({"epoch.loss": np.zeros(7, np.float32)}),
        lambda d, t: [t.pop(name) for name in list(t) if name.startswith("state.velocity")],
        lambda d, t: t.update({"state.velocity.w9": np.zeros(1, np.float32)}),
        lambda d, t: t.pop("state.velocity.b2"),
        lambda d, t: t.pop("epoch.correct"),
        lambda d, t: t.update({"log.step_losses": np.zeros((2, 5))}),
    ],
)
def test_checkpoints_that_contradict_themselves(make_network, blobs, tmp_path, change):
    file = tmp_path / "c.safetensors"
    fd.fit(make_network(), blobs, epochs=2, checkpoint=file)
    rewrite(file, change)
    net, before = make_network(), make_network()
    with pytest.raises(fd.CheckpointError, match=r"c\.safetensors"):
        fd.fit(net, blobs, epochs=2, checkpoint=file, resume=True)
    assert same_bits(net, before)
