"""Committees, and the data that several trainings share."""

import copy
import mmap
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax

import fastdigit as fd
from fastdigit import checkpoint

from .conftest import same_bits
from .test_checkpoint import rewrite


@pytest.fixture
def members(blobs):
    """Three small trained networks, at different temperatures."""
    networks = [
        fd.Network([36, 12, 4], backend="numpy", seed=seed, classes=(0, 1, 2, 3)) for seed in range(3)
    ]
    for net, temperature in zip(networks, (1, 2.5, 0.5), strict=True):
        fd.fit(net, blobs, epochs=1)
        net.temperature = temperature
    return networks


@pytest.fixture
def saved(members, tmp_path):
    committee = fd.Committee(members, temperature=1.5)
    committee.save(tmp_path / "committee.safetensors")
    return committee, tmp_path / "committee.safetensors"


def mean_probability(members, images):
    each = [softmax(net.logits(images).astype(np.float64) / net.temperature, axis=1) for net in members]
    return np.mean(each, axis=0)


def test_a_committee_is_the_mean_of_its_members(members, blobs):
    committee = fd.Committee(members)
    mean = mean_probability(members, blobs.images)
    assert np.allclose(committee.predict_proba(blobs.images), mean, rtol=1e-6)
    assert np.allclose(committee.logits(blobs.images), np.log(mean), rtol=1e-9)
    assert np.array_equal(committee.predict(blobs.images), committee.classes[mean.argmax(axis=1)])
    assert committee.predict(blobs.images[0]).shape == (1,)
    assert len(committee) == 3
    assert repr(committee) == "<Committee of 3: 36-12-4, 36-12-4, 36-12-4>"


def test_the_temperature_of_a_committee(members, blobs):
    committee = fd.Committee(members, temperature=3)
    expected = softmax(np.log(mean_probability(members, blobs.images)) / 3, axis=1)
    assert np.allclose(committee.predict_proba(blobs.images), expected, rtol=1e-6)
    assert np.array_equal(committee.predict(blobs.images), fd.Committee(members).predict(blobs.images))
    with pytest.raises(fd.ConfigError, match="temperature"):
        committee.temperature = 0
    with pytest.raises(fd.ConfigError, match="temperature"):
        fd.Committee(members, temperature=float("nan"))


def test_an_evaluation_of_a_committee(members, blobs):
    evaluation = fd.evaluate(fd.Committee(members, temperature=2), blobs)
    mean = mean_probability(members, blobs.images)
    assert evaluation.accuracy == (mean.argmax(axis=1) == blobs.labels).mean()
    assert evaluation.loss == pytest.approx(-np.log(mean[np.arange(300), blobs.labels]).mean())
    assert np.allclose(evaluation.probabilities, softmax(np.log(mean) / 2, axis=1))


def test_members_that_are_sure_of_different_things():
    """Probabilities that underflow are no reason for a loss that is infinite."""
    networks = []
    for favourite in (0, 1):
        net = fd.Network([1, 3], backend="numpy", pixels=False)
        bias = np.zeros(3)
        bias[favourite] = 5000
        net.set_parameters({"w1": np.zeros((1, 3)), "b1": bias})
        networks.append(net)
    committee = fd.Committee(networks)
    assert committee.predict_proba([[1.0]]).tolist() == [[0.5, 0.5, 0]]
    assert fd.evaluate(committee, ([[1.0]], [2])).loss == pytest.approx(5000)


def test_networks_that_make_no_committee(members):
    for nothing in ([], 5, None, members[0]):
        with pytest.raises(fd.ConfigError, match="committee"):
            fd.Committee(nothing)
    for stranger, words in (
        ("net", "member 2 is str"),
        (fd.Network([35, 4], backend="numpy"), "same inputs: member 1 has 36, member 2 35"),
        (fd.Network([36, 4], backend="numpy", classes=(3, 2, 1, 0)), "same classes"),
        (fd.Network([36, 4], backend="numpy", pixels=False), "same kind of inputs"),
        (fd.Network([36, 4], backend="numpy", precision="float64"), "same precision"),
    ):
        with pytest.raises(fd.ConfigError, match=words):
            fd.Committee([members[0], stranger])


def test_a_committee_comes_back_as_it_was(saved, blobs):
    committee, file = saved
    pickled = pickle.loads(pickle.dumps(committee))
    for back in (
        fd.Committee.load(file),
        fd.load_model(file, backend="numpy"),
        pickled,
        copy.deepcopy(committee),
    ):
        assert len(back) == 3
        assert all(map(same_bits, back.networks, committee.networks))
        assert [net.temperature for net in back.networks] == [1, 2.5, 0.5]
        assert back.temperature == 1.5
        assert np.allclose(back.predict_proba(blobs.images), committee.predict_proba(blobs.images), rtol=1e-5)
    assert list(file.parent.iterdir()) == [file]


def test_files_of_networks_and_of_committees(saved, members, tmp_path):
    _, file = saved
    with pytest.raises(fd.CheckpointError, match=r"committee\.safetensors holds a committee.*load_model"):
        fd.Network.load(file)
    assert checkpoint.training_digest(file) is None
    members[1].save(tmp_path / "one.safetensors")
    alone = fd.Committee.load(tmp_path / "one.safetensors", backend="numpy")
    assert same_bits(*alone.networks, members[1])
    assert isinstance(fd.load_model(tmp_path / "one.safetensors"), fd.Network)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, t: d["committee"].update(temperature=0.0), "no usable committee: temperature"),
        (lambda d, t: d["committee"].update(temperature="1"), r"committee\.temperature is '1'"),
        (lambda d, t: d["committee"].update(members=[]), "no usable committee: .* at least one"),
        (lambda d, t: d["committee"].update(members={}), "members is not a list"),
        (lambda d, t: d["committee"]["members"].append(3), r"members\[3\] is not an object"),
        (lambda d, t: d["committee"]["members"][1].update(format=9), "format 9, this version"),
        (
            lambda d, t: d["committee"]["members"][1].update(temperature=-1.0),
            "no usable network: temperature",
        ),
        (
            lambda d, t: d["committee"]["members"][1].update(classes=[0, 1, 3, 2]),
            "committee: .* same classes",
        ),
        (
            lambda d, t: d["committee"]["members"][1].update(layer_sizes=[36, 10**9, 4]),
            r"member2\.w1 is 36×12",
        ),
        (lambda d, t: t.pop("member3.b2"), r"member3\.b2 is absent, expected 4"),
        (
            lambda d, t: t.update({"member1.w1": np.full((36, 12), np.nan, np.float32)}),
            r"member1\.w1 holds NaN",
        ),
        (lambda d, t: d.update(network=d["committee"]["members"][0]), "has the fields"),
        (lambda d, t: d.update(committee=1), "committee is not an object"),
    ],
)
def test_damaged_committees(saved, change, message):
    _, file = saved
    rewrite(file, change)
    with pytest.raises(fd.CheckpointError, match=message):
        fd.load_model(file, backend="numpy")


# --- data that several trainings share --------------------------------------------------------------


def test_shared_data_gives_the_same_bits_and_is_copied_once(blobs, backend):
    copies = []

    def counted(a, out=None):
        if out is None and a.shape == (240, 36):
            copies.append(a)
        return backend.to_device(a) if out is None else backend.to_device(a, out=out)

    counting = replace(backend, to_device=counted, on_host=False)
    networks = [fd.Network([36, 12, 4], backend=counting, seed=seed) for seed in range(3)]
    weight = np.linspace(1, 2, 300)
    data = fd.TrainingData.of(networks[0], blobs, validation=0.2, sample_weight=weight, seed=5)
    for seed, net in enumerate(networks):
        log = fd.fit(net, data, epochs=2, seed=seed)
        if seed == 5:
            continue
        alone = fd.Network([36, 12, 4], backend=backend, seed=seed)
        mine = fd.TrainingData.of(alone, blobs, 0.2, weight, 5)
        assert (
            fd.fit(alone, mine, epochs=2, seed=seed).epochs[-1].validation_loss
            == log.epochs[-1].validation_loss
        )
        assert same_bits(alone, net)
    assert len(copies) == 1


def test_data_on_the_host_are_not_copied(make_network, blobs):
    net = make_network()
    data = fd.TrainingData.of(net, blobs)
    if not net.backend.on_host:
        pytest.skip(f"{net.backend.name} does not compute where the images are")
    images, labels, _ = data.on(net.backend, net.dtype)
    assert np.shares_memory(images, blobs.images)
    assert labels is data.targets


@pytest.mark.parametrize("augment", [None, fd.Augment(rotation=10, elastic=1)])
@pytest.mark.parametrize("path", ["auto", "step"])
def test_images_are_trained_on_where_they_are(blobs, tmp_path, backend, path, augment):
    """In a file that cannot be written to, up to its end: the page behind has gone, a read of it is fatal."""
    file, before = tmp_path / "images", -blobs.images.nbytes % mmap.PAGESIZE
    file.write_bytes(bytes(before) + blobs.images.tobytes() + bytes(mmap.PAGESIZE))
    whole = np.memmap(file, np.uint8, "r")
    os.truncate(file, len(whole) - mmap.PAGESIZE)
    mapped = whole[before : -mmap.PAGESIZE].reshape(blobs.images.shape)
    trained = []
    for images in (blobs.images, mapped):
        net = fd.Network([36, 12, 4], backend=backend, seed=3)
        fd.fit(net, (images, blobs.labels), epochs=2, batch_size=32, path=path, augment=augment)
        trained.append(net)
    assert np.shares_memory(fd.TrainingData.of(net, (mapped, blobs.labels)).inputs, mapped)
    assert same_bits(*trained)


def test_data_split_before_is_the_split_of_fit(make_network, blobs):
    plain, prepared = make_network(), make_network()
    log = fd.fit(plain, blobs, epochs=2, validation=0.2, seed=5)
    data = fd.TrainingData.of(prepared, blobs, validation=0.2, seed=5)
    again = fd.fit(prepared, data, epochs=2, seed=5)
    assert same_bits(plain, prepared)
    assert again.epochs[-1].validation_accuracy == log.epochs[-1].validation_accuracy
    assert fd.evaluate(plain, data.validation).accuracy == log.epochs[-1].validation_accuracy


def test_data_made_for_another_network(make_network, blobs):
    net = make_network()
    data = fd.TrainingData.of(net, blobs)
    floats = fd.TrainingData.of(net, (blobs.images / 255, blobs.labels))
    with pytest.raises(fd.ConfigError, match="has its validation and weights already"):
        fd.fit(net, data, validation=0.1)
    with pytest.raises(fd.ConfigError, match="has its validation and weights already"):
        fd.fit(net, data, sample_weight=np.ones(300))
    numpy = {"backend": "numpy"}
    for other in (fd.Network([36, 4], classes=(3, 2, 1, 0), **numpy), fd.Network([18, 4], **numpy)):
        with pytest.raises(fd.ConfigError, match="another network"):
            fd.fit(other, data)
    with pytest.raises(fd.ConfigError, match="another network"):
        fd.fit(fd.Network([36, 4], precision="float64", **numpy), floats)
