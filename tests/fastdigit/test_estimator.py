"""DigitClassifier: scikit-learn's own checks, MLPClassifier beside it, and what it promises itself."""

import copy
import pickle

import joblib
import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.special import softmax
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import recall_score
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import fastdigit as fd
from fastdigit import DigitClassifier

from .conftest import same_bits

# Many trainings here end at max_iter on purpose, and scikit-learn's checks end wherever they end.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def digits():
    """(X_train, X_test, y_train, y_test): the 8×8 digits as floats in 0 … 1."""
    X, y = load_digits(return_X_y=True)
    return train_test_split(X / 16, y, test_size=0.3, stratify=y, random_state=0)


@pytest.fixture
def small(digits):
    """The first 150 training samples: fewer than a batch, so every step sees them all."""
    X, _, y, _ = digits
    return X[:150], y[:150]


def quick(**parameters):
    """A classifier that trains in a moment, always the same way."""
    return DigitClassifier(**{"hidden_layer_sizes": (16,), "max_iter": 8, "random_state": 0, **parameters})


# --- scikit-learn's checks: none is waived. Some skip themselves where pandas is not installed or
# SCIPY_ARRAY_API is not set. ----------------------------------------------------------------------


@parametrize_with_checks([DigitClassifier()])
def test_scikit_learn_check(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    "parameters",
    [
        {"solver": "sgd", "learning_rate_init": 0.1, "label_smoothing": 0.1, "max_norm": 1.0},
        {"hidden_layer_sizes": (24, 12), "dropout": 0.2, "input_dropout": 0.1},
    ],
    ids=lambda parameters: " ".join(parameters),
)
def test_scikit_learn_sample_weight_check_with_other_parameters(parameters):
    from sklearn.utils.estimator_checks import check_sample_weight_equivalence_on_dense_data

    check_sample_weight_equivalence_on_dense_data("DigitClassifier", DigitClassifier(**parameters))


# --- beside MLPClassifier -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters", [{}, {"solver": "sgd", "learning_rate_init": 0.1}], ids=["adam", "sgd"]
)
def test_as_accurate_as_mlp_classifier(digits, parameters):
    X, X_test, y, y_test = digits
    parameters = {"hidden_layer_sizes": (128,), "max_iter": 60, "random_state": 0, **parameters}
    ours = DigitClassifier(**parameters).fit(X, y).score(X_test, y_test)
    theirs = MLPClassifier(**parameters).fit(X, y).score(X_test, y_test)
    assert ours > 0.95
    assert ours > theirs - 0.015


def test_parameters_shared_with_mlp_classifier_have_its_defaults():
    ours, theirs = DigitClassifier().get_params(), MLPClassifier().get_params()
    shared = ours.keys() & theirs.keys()
    assert ours.keys() - shared == {
        *("dropout", "input_dropout", "label_smoothing", "max_norm", "average", "augment"),
        *("class_weight", "backend", "precision"),
    }
    assert {name for name in shared if ours[name] != theirs[name]} == {"hidden_layer_sizes"}


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_what_is_against_overfitting_is_passed_on(small, method):
    X, y = small

    def trained(**parameters):
        options = {"classes": np.unique(y)} if method == "partial_fit" else {}
        return getattr(quick(max_iter=1, **parameters), method)(X, y, **options)

    plain = trained()
    shortened = trained(max_norm=0.7).network_.get_parameters()
    lengths = np.concatenate([np.linalg.norm(shortened[name], axis=0) for name in ("w1", "w2")])
    assert lengths.max() == pytest.approx(0.7, rel=1e-6)
    assert trained(input_dropout=0.5).network_.input_dropout == 0.5
    assert trained(input_dropout=0.5).loss_ != plain.loss_
    assert trained(label_smoothing=0.5).loss_ != plain.loss_


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_pictures_are_deformed_as_the_network_s_own_training_deforms_them(method):
    X, y = load_digits(return_X_y=True)
    X, y = (16 * X[:60]).clip(0, 255).astype(np.uint8), y[:60]
    options = {"classes": np.unique(y)} if method == "partial_fit" else {}
    moved = fd.Augment(shift=2)

    def weights(**parameters):
        return getattr(quick(max_iter=1, **parameters), method)(X, y, **options).network_

    assert not same_bits(weights(augment=moved), weights())
    assert same_bits(weights(augment=moved), weights(augment=fd.Augment(shift=2)))
    assert same_bits(weights(augment=True), weights(augment=fd.Augment.standard()))
    with pytest.raises(ValueError, match="augment needs images of uint8"):
        getattr(quick(augment=moved), method)(X / 255, y, **options)
    with pytest.raises(ValueError, match="60 pixels are no square"):
        getattr(quick(augment=moved), method)(X[:, :60], y, **options)


def test_the_weights_of_a_whole_training_are_averaged(small):
    last, mean = (quick(average=average).fit(*small) for average in (None, fd.WeightAverage(0.9)))
    assert last.loss_curve_ == mean.loss_curve_  # it is the same training
    assert not same_bits(last.network_, mean.network_)


def test_the_precision_is_the_network_s(small):
    assert quick(precision="float64", backend="numpy").fit(*small).network_.dtype == "float64"
    with pytest.raises(ValueError, match="does not offer precision 'float8'"):
        quick(precision="float8").fit(*small)


def test_alpha_shrinks_the_weights_by_the_formula_of_mlp_classifier(small):
    # One full-batch step of plain gradient descent: w ← (1 - rate · alpha / N) · w - rate · gradient.
    step = {"solver": "sgd", "momentum": 0.0, "learning_rate_init": 0.5, "max_iter": 1}
    without = quick(**step, alpha=0.0).fit(*small).network_.get_parameters()
    with_alpha = quick(**step, alpha=30.0).fit(*small).network_.get_parameters()
    start = quick(**{**step, "learning_rate_init": 1e-30}).fit(*small).network_.get_parameters()
    for name, value in with_alpha.items():
        np.testing.assert_allclose(value, without[name] - 0.5 * 30 / 150 * start[name], rtol=1e-4, atol=1e-6)


# --- where people use it --------------------------------------------------------------------------


def test_pipeline_grid_search_and_cross_validation_in_parallel(digits):
    X, X_test, y, y_test = digits
    pipeline = make_pipeline(StandardScaler(), quick(max_iter=25))
    grid = {"digitclassifier__hidden_layer_sizes": [(4,), (48,)], "digitclassifier__alpha": [1e-4]}
    search = GridSearchCV(pipeline, grid, cv=2, n_jobs=2).fit(X, y)
    assert search.best_params_["digitclassifier__hidden_layer_sizes"] == (48,)
    assert search.score(X_test, y_test) > 0.9
    parallel = cross_val_score(pipeline, X, y, cv=2, n_jobs=2)
    assert np.array_equal(parallel, cross_val_score(pipeline, X, y, cv=2))


def test_calibration(digits):
    X, X_test, y, y_test = digits
    calibrated = CalibratedClassifierCV(quick(max_iter=25, learning_rate_init=0.01), cv=2).fit(X, y)
    assert calibrated.score(X_test, y_test) > 0.85


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), "joblib"],
    ids=["deepcopy", "pickle", "joblib"],
)
def test_a_copy_predicts_the_same_bits_and_trains_on_alike(small, copied, tmp_path):
    X, y = small
    model = quick().partial_fit(X, y, classes=range(10))
    if copied == "joblib":
        joblib.dump(model, tmp_path / "model.joblib")
        twin = joblib.load(tmp_path / "model.joblib")
    else:
        twin = copied(model)
    assert twin.predict_proba(X).tobytes() == model.predict_proba(X).tobytes()
    assert same_bits(twin.partial_fit(X, y).network_, model.partial_fit(X, y).network_)


def test_the_temperature_of_its_network_is_heeded(small):
    X, y = small
    model = quick().fit(X, y)
    logits, before = model.network_.logits(X).astype(np.float64), model.predict(X)
    model.network_.temperature = 3
    model = pickle.loads(pickle.dumps(model))
    np.testing.assert_allclose(model.predict_proba(X), softmax(logits / 3, axis=1), atol=1e-6)
    np.testing.assert_array_equal(model.predict(X), before)


def test_clone_forgets_the_training_but_not_the_parameters(small):
    model = quick(class_weight={0: 2.0}, hidden_layer_sizes=[8])
    twin = clone(model.fit(*small))
    assert twin.get_params() == model.get_params()
    with pytest.raises(NotFittedError):
        twin.predict(small[0])


def test_every_backend(backend, small):
    model = quick(backend=backend.name).fit(*small)
    assert model.network_.backend.name == backend.name
    assert model.loss_ < model.loss_curve_[0]


# --- labels, values, weights ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [
        np.array([f"digit {i}" for i in range(10)]),
        np.array([f"digit {i}" for i in range(10)], object),
        np.arange(10) * 1000 - 5000,
        np.arange(10) >= 5,
    ],
    ids=["strings", "objects", "integers", "booleans"],
)
def test_labels_of_any_kind(small, labels):
    X, y = small
    model = quick(max_iter=100, learning_rate_init=0.02).fit(X, labels[y])
    assert np.array_equal(model.classes_, np.unique(labels))
    assert model.predict(X).dtype == labels.dtype
    assert model.score(X, labels[y]) == 1
    assert model.predict_proba(X).shape == (len(X), len(model.classes_))


def test_pixels_are_scaled_and_other_numbers_are_not(small):
    X, y = small
    pixels = np.rint(X * 255).astype(np.uint8)
    scaled = pixels * np.float32(1 / 255)
    model = quick().fit(pixels, y)
    by_hand = quick().fit(scaled, y)
    np.testing.assert_allclose(model.predict_proba(pixels), by_hand.predict_proba(scaled), atol=1e-5)
    np.testing.assert_allclose(model.predict_proba(pixels), model.predict_proba(scaled), atol=1e-5)
    integers = pixels.astype(np.int64)
    assert same_bits(quick().fit(integers, y).network_, quick().fit(pixels.astype(float), y).network_)
    assert not np.array_equal(model.predict_proba(pixels), model.predict_proba(integers))


def test_float32_and_float64_are_the_same(small):
    X, y = small
    X = X.astype(np.float32)
    a, b = quick().fit(X, y), quick().fit(X.astype(np.float64), y)
    assert same_bits(a.network_, b.network_)
    assert a.predict_proba(X).tobytes() == b.predict_proba(X.astype(np.float64)).tobytes()


def test_weights_are_repetitions_and_order_does_not_matter(digits):
    X, _, y, _ = digits  # more than a batch
    random = np.random.default_rng(0)
    weight = random.integers(0, 4, len(X))
    weighted = quick(class_weight="balanced").fit(X, y, sample_weight=weight)
    rows = random.permutation(np.arange(len(X)).repeat(weight))
    repeated = quick(class_weight="balanced").fit(X[rows], y[rows])
    assert same_bits(weighted.network_, repeated.network_)


def test_weight_zero_leaves_a_sample_out(small):
    X, y = small
    weight = np.ones(len(X))
    weight[100:] = 0
    model = quick().fit(X, y, sample_weight=weight)
    assert same_bits(model.network_, quick().fit(X[:100], y[:100]).network_)


def test_conflicting_labels_of_equal_samples_stay_apart():
    X, y = np.ones((4, 3)), [0, 1, 1, 1]
    model = quick(solver="sgd", learning_rate_init=0.1, max_iter=300, n_iter_no_change=300, alpha=0).fit(X, y)
    np.testing.assert_allclose(model.predict_proba(X[:1]), [[0.25, 0.75]], atol=0.01)


def test_balanced_classes_lift_the_recall_of_a_rare_one():
    random = np.random.default_rng(0)
    X = np.vstack([random.normal(0, 1, (570, 2)), random.normal(1.5, 1, (30, 2))])
    y = np.repeat([0, 1], [570, 30])
    plain = quick(max_iter=60).fit(X, y)
    balanced = quick(max_iter=60, class_weight="balanced").fit(X, y)
    assert recall_score(y, balanced.predict(X)) > recall_score(y, plain.predict(X)) + 0.3
    by_hand = quick(max_iter=60, class_weight={0: 600 / (2 * 570), 1: 600 / (2 * 30)}).fit(X, y)
    np.testing.assert_allclose(balanced.predict_proba(X), by_hand.predict_proba(X), atol=1e-3)


# --- when training ends ---------------------------------------------------------------------------


def test_random_state(small):
    X, y = small
    assert same_bits(quick().fit(X, y).network_, quick().fit(X, y).network_)
    assert not same_bits(quick().fit(X, y).network_, quick(random_state=1).fit(X, y).network_)
    drawn = [quick(random_state=np.random.RandomState(5)).fit(X, y).network_ for _ in range(2)]
    assert same_bits(*drawn)
    state = np.random.RandomState(5)
    moving = [quick(random_state=state).fit(X, y).network_ for _ in range(2)]
    assert not same_bits(*moving)
    assert not same_bits(*[quick(random_state=None).fit(X, y).network_ for _ in range(2)])


def test_training_ends_when_the_loss_stands_still(small):
    model = quick(max_iter=500, tol=1e-2, n_iter_no_change=3).fit(*small)
    assert 3 < model.n_iter_ < 500
    assert model.n_iter_ == len(model.loss_curve_)
    assert model.best_loss_ == min(model.loss_curve_)
    assert model.best_loss_ > min(model.loss_curve_[:-3]) - 3e-2
    assert model.validation_scores_ is None


def test_warns_when_it_did_not_converge(small):
    with pytest.warns(ConvergenceWarning, match="max_iter=2"):
        quick(max_iter=2).fit(*small)


def test_early_stopping_keeps_the_best_weights(digits):
    X, X_test, y, y_test = digits
    model = quick(max_iter=200, early_stopping=True, n_iter_no_change=4, learning_rate_init=0.01).fit(X, y)
    assert len(model.validation_scores_) == model.n_iter_ < 200
    assert model.best_validation_score_ == max(model.validation_scores_)
    assert model.validation_scores_.index(model.best_validation_score_) == model.n_iter_ - 5
    assert model.best_loss_ is None
    assert model.score(X_test, y_test) > 0.9


# --- partial_fit ----------------------------------------------------------------------------------


def test_partial_fit_learns_in_pieces(digits):
    X, X_test, y, y_test = digits
    model = quick(hidden_layer_sizes=(64,), batch_size=32)
    pieces = np.array_split(np.arange(len(X)), 4)
    for _ in range(10):
        for rows in pieces:
            model.partial_fit(X[rows], y[rows], classes=np.arange(10))
    assert model.n_iter_ == len(model.loss_curve_) == 40
    assert model.score(X_test, y_test) > 0.9


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_partial_fit_goes_on_with_the_state_of_the_optimizer(small, solver):
    # With one batch an epoch and no dropout, the order of the samples is only a matter of rounding.
    X, y = small
    model = quick(solver=solver, max_iter=6)
    for _ in range(6):
        model.partial_fit(X, y, classes=np.arange(10))
    np.testing.assert_allclose(
        model.predict_proba(X), quick(solver=solver, max_iter=6).fit(X, y).predict_proba(X), atol=1e-4
    )
    forgetful = quick(solver=solver)
    for _ in range(6):
        forgetful.partial_fit(X, y, classes=np.arange(10))
        forgetful._optimizer_state = fd.OptimizerState()
    assert np.abs(forgetful.predict_proba(X) - model.predict_proba(X)).max() > 1e-3


def test_partial_fit_counts_updates_over_pieces_of_any_size(small):
    X, y = small
    model = quick(batch_size=40)
    model.partial_fit(X[:100], y[:100], classes=np.arange(10)).partial_fit(X[100:], y[100:])
    assert model._optimizer_state.updates == 3 + 2


def test_fit_starts_over_and_partial_fit_goes_on(small):
    X, y = small
    model = quick().fit(X, y)
    once = model.network_.get_parameters()
    assert same_bits(model.fit(X, y).network_, quick().fit(X, y).network_)
    model.partial_fit(X, y)
    assert model.n_iter_ == 9
    assert model.loss_curve_[-1] < model.loss_curve_[0]
    assert not np.array_equal(model.network_.get_parameters()["w1"], once["w1"])


def test_partial_fit_errors(small):
    X, y = small
    with pytest.raises(ValueError, match="classes must be passed"):
        quick().partial_fit(X, y)
    with pytest.raises(ValueError, match=r"not among the classes.*9"):
        quick().partial_fit(X, y, classes=range(9))
    with pytest.raises(ValueError, match="differ from those of the first call"):
        quick().partial_fit(X, y, classes=range(10)).partial_fit(X, y, classes=range(11))
    with pytest.raises(ValueError, match="early_stopping"):
        quick(early_stopping=True).partial_fit(X, y, classes=range(10))
    with pytest.raises(ValueError, match="average"):
        quick(average=fd.WeightAverage()).partial_fit(X, y, classes=range(10))
    with pytest.raises(ValueError, match="class_weight"):
        quick(class_weight="balanced").partial_fit(X, y, classes=range(10))


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"solver": "lbfgs"}, "solver must be"),
        ({"alpha": -1}, "alpha must be"),
        ({"alpha": np.nan}, "alpha must be"),
        ({"tol": -1}, "tol must be"),
        ({"max_iter": 0}, "max_iter must be"),
        ({"n_iter_no_change": 0}, "n_iter_no_change must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"batch_size": "all"}, "batch_size must be"),
        ({"learning_rate_init": 0}, "learning_rate_init must be"),
        ({"momentum": 1.0, "solver": "sgd"}, "momentum must be"),
        ({"hidden_layer_sizes": (0,)}, "layer sizes must be"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"input_dropout": 1.0}, "input_dropout must be"),
        ({"label_smoothing": 1.0}, "label_smoothing must be"),
        ({"max_norm": 0}, "max_norm must be"),
        ({"class_weight": "equal"}, "class_weight"),
        ({"early_stopping": True, "validation_fraction": 1.5}, "validation_fraction must be"),
    ],
    ids=str,
)
def test_parameters_that_make_no_sense(small, parameters, message):
    with pytest.raises(ValueError, match=message):
        quick(**parameters).fit(*small)


@pytest.mark.parametrize(
    ("weight", "message"),
    [(-1.0, "row 7"), (np.nan, "row 7"), (np.inf, "row 7")],
    ids=["negative", "nan", "infinite"],
)
def test_weights_that_make_no_sense(small, weight, message):
    weights = np.ones(150)
    weights[7] = weight
    with pytest.raises(fd.DataError, match=message):
        quick().fit(*small, sample_weight=weights)


def test_a_backend_that_does_not_exist(small):
    with pytest.raises(fd.BackendError, match="abacus"):
        quick(backend="abacus").fit(*small)


def test_inputs_that_make_no_sense(small):
    X, y = small
    with pytest.raises(TypeError, match="dense data is required"):
        quick().fit(csr_array(X), y)
    with pytest.raises(ValueError, match="NaN"):
        quick().fit(np.where(X > 0.9, np.nan, X), y)
    with pytest.raises(ValueError, match="too large for dtype"):
        quick().fit(X * 1e300, y)
    with pytest.raises(ValueError, match="64 features"):
        quick().fit(X, y).predict(X[:, 1:])
    with pytest.raises(NotFittedError):
        quick().predict(X)


def test_a_failed_fit_leaves_the_model_as_it_was(small):
    X, y = small
    model = quick().fit(X, y)
    before = model.predict_proba(X)
    with pytest.raises(fd.DataError):
        model.fit(X, y > 4, sample_weight=np.zeros(len(X)))
    with pytest.raises(fd.TrainingDivergedError):
        model.set_params(learning_rate_init=1e30, solver="sgd").fit(X, y > 4)
    np.testing.assert_array_equal(model.predict_proba(X), before)
    fresh = quick(learning_rate_init=1e30, solver="sgd")
    with pytest.raises(fd.TrainingDivergedError):
        fresh.fit(X, y)
    with pytest.raises(NotFittedError):
        fresh.predict(X)


def test_a_divergence_in_a_worker_process_comes_back_as_what_it_is(small):
    X, y = small
    model = quick(solver="sgd", learning_rate_init=1e30)
    with pytest.raises(fd.TrainingDivergedError, match="diverged"):
        cross_val_score(model, X, y, n_jobs=2, cv=2, error_score="raise")


@pytest.mark.parametrize(
    "parameters",
    [
        {"hidden_layer_sizes": None},
        {"hidden_layer_sizes": 128.0},
        {"learning_rate_init": None},
        {"alpha": "a"},
        {"momentum": None, "solver": "sgd"},
        {"validation_fraction": 2, "early_stopping": True},
    ],
    ids=lambda parameters: next(iter(parameters)),
)
def test_parameters_of_the_wrong_kind(small, parameters):
    with pytest.raises(fd.ConfigError):
        quick(**parameters).fit(*small)


def test_verbose_shows_the_epochs(small, capsys):
    quick(max_iter=2, verbose=True).fit(*small)
    assert "epoch 2/2" in capsys.readouterr().out
