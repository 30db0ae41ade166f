"""A scikit-learn classifier around :class:`fastdigit.Network` and :func:`fastdigit.fit`."""

import warnings
from numbers import Integral

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state, compute_class_weight
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import check_is_fitted, validate_data

from .errors import ConfigError, DataError, check_count, check_number
from .inputs import as_weights
from .network import Network
from .optimizers import SGD, Adam
from .options import EarlyStopping, OptimizerState
from .progress import Progress
from .schedules import Constant
from .training import fit

# What X may arrive as: uint8 stays uint8, everything else becomes float32.
_DTYPES = (np.float32, np.uint8)


class DigitClassifier(ClassifierMixin, BaseEstimator):
    """A multilayer perceptron for scikit-learn's pipelines, searches and cross-validation.

    ``DigitClassifier(hidden_layer_sizes=(128,)).fit(X, y).predict(X)``

    What scikit-learn's ``MLPClassifier`` has too goes by the same name, with the same default
    (apart from the size of the hidden layer), so that one can take the place of the other:

    - ``hidden_layer_sizes``: of the ReLU layers; a single number for one layer.
    - ``solver``: "adam" or "sgd", with ``learning_rate_init``; ``momentum`` and
      ``nesterovs_momentum`` are for "sgd".
    - ``alpha``: the L2 penalty; as in MLPClassifier it is divided by the total weight of a batch.
      Biases are penalised as well.
    - ``batch_size``: "auto" for min(200, N).
    - ``max_iter``: epochs at most. Training ends earlier when the loss has not fallen by ``tol``
      in ``n_iter_no_change`` epochs running.
    - ``early_stopping``: hold back ``validation_fraction`` of the samples (stratified), end when
      their accuracy has not risen in ``n_iter_no_change`` epochs, keep the weights of the best
      epoch. ``tol`` then plays no part, and held-back samples count alike, whatever their weights.
    - ``random_state``: None, an integer or a RandomState. The same integer, backend and data give
      the same weights, bit for bit.
    - ``verbose``: show the progress of training.

    And what MLPClassifier lacks:

    - ``backend``, ``precision``, ``dropout``, ``input_dropout``: as in :class:`~fastdigit.network.Network`.
    - ``label_smoothing``, ``max_norm``, ``average``: as in :func:`~fastdigit.training.fit`.
    - ``augment``: the same; X must then be uint8, and each row a square picture.
    - ``class_weight``: None, "balanced" (every class gets the same total weight), or
      ``{label: weight}``.

    Equal samples are merged and their weights added before training, samples of weight 0 are left
    out, and a fixed order is given to the rest. Repeating a sample therefore is the same as giving
    it the weight 2, and the order of the rows does not matter: both to the bit.

    Shapes: X [N, I], y [N], sample_weight [N] or None.
    Dtypes: uint8 X holds pixels and is scaled by 1/255. **Every other dtype is taken literally**, as
    float32: fit and predict need X on the same scale. Labels may be anything with an order.
    Errors: ValueError and TypeError as scikit-learn raises them for X and y (sparse X is a
    TypeError), ConfigError (a ValueError) for parameters, DataError (a ValueError) for weights,
    BackendError, TrainingDivergedError.

    Attributes after fit: ``classes_`` [C], ``n_features_in_``, ``feature_names_in_`` (for data frames),
    ``network_`` (the Network, whose classes are indices into ``classes_``), ``n_iter_`` (epochs),
    ``loss_curve_`` (the mean cross-entropy of each epoch, without the penalty), ``loss_`` (the last
    one), ``best_loss_``; with ``early_stopping`` instead ``validation_scores_`` and
    ``best_validation_score_``. What does not apply is None.
    """

    def __init__(
        self,
        hidden_layer_sizes=(128,),
        *,
        solver="adam",
        alpha=1e-4,
        batch_size="auto",
        learning_rate_init=1e-3,
        max_iter=200,
        tol=1e-4,
        n_iter_no_change=10,
        momentum=0.9,
        nesterovs_momentum=True,
        early_stopping=False,
        validation_fraction=0.1,
        dropout=0.0,
        input_dropout=0.0,
        label_smoothing=0.0,
        max_norm=None,
        average=None,
        augment=None,
        class_weight=None,
        random_state=None,
        verbose=False,
        backend="auto",
        precision="float32",
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.max_iter = max_iter
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.dropout = dropout
        self.input_dropout = input_dropout
        self.label_smoothing = label_smoothing
        self.max_norm = max_norm
        self.average = average
        self.augment = augment
        self.class_weight = class_weight
        self.random_state = random_state
        self.verbose = verbose
        self.backend = backend
        self.precision = precision

    # --- training ---------------------------------------------------------------------------

    def fit(self, X, y, sample_weight=None):
        """Train from new random weights; returns self.

        Warns: ConvergenceWarning when ``max_iter`` epochs did not suffice. Shapes, dtypes and
        errors: see the class; after an error the estimator is what it was before.
        """
        before = dict(vars(self))
        try:
            self._fit(X, y, sample_weight)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise
        return self

    def _fit(self, X, y, sample_weight):
        self._check_parameters()
        X, y = self._labelled(X, y, reset=True)
        classes = np.unique(y)
        X, targets, weight = self._samples(X, y, sample_weight, classes)
        self._begin(classes)
        batch_size = self._batch_size(len(X))
        if self.early_stopping:
            stopping = {
                "validation": self.validation_fraction,
                "early_stopping": EarlyStopping(self.n_iter_no_change),
            }
        else:
            stopping = {"callbacks": [_LossStopping(self.tol, self.n_iter_no_change)]}
        log = fit(
            self.network_,
            (X, targets),
            epochs=self.max_iter,
            average=self.average,
            seed=self._seed,
            **self._how(batch_size, weight),
            **stopping,
        )
        self._record(log)
        if log.stopped is None:
            warnings.warn(
                f"training reached max_iter={self.max_iter} epochs without converging: "
                "raise max_iter, or scale X",
                ConvergenceWarning,
                stacklevel=3,
            )

    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """Go over the samples once, starting from the present weights; returns self.

        The optimizer goes on where the last call of fit or partial_fit left it.

        ``classes``: all labels there will ever be; needed in the first call, unless fit came before.
        Errors: ValueError for missing or changed ``classes``, a label that is not one of them,
        ``early_stopping``, ``average``, or ``class_weight="balanced"``, for which one would have to know
        what is still to come. For the rest see the class.
        """
        self._check_parameters()
        if self.early_stopping:
            raise ConfigError("partial_fit cannot stop early: set early_stopping=False")
        if self.average is not None:
            raise ConfigError("partial_fit cannot tell when a training ends: set average=None")
        if self.class_weight == "balanced":
            raise ConfigError(
                'partial_fit cannot balance classes: give class_weight as a dict, not "balanced"'
            )
        first = not hasattr(self, "network_")
        X, y = self._labelled(X, y, reset=first)
        if first and classes is None:
            raise ConfigError("classes must be passed on the first call to partial_fit")
        known = unique_labels(classes) if first else self.classes_
        if not (classes is None or np.array_equal(unique_labels(classes), known)):
            raise ConfigError(f"classes {classes} differ from those of the first call, {known}")
        X, targets, weight = self._samples(X, y, sample_weight, known)
        if first:
            self._begin(known)
        batch_size = self._batch_size(len(X))
        log = fit(
            self.network_,
            (X, targets),
            epochs=1,
            seed=self._seed + self.n_iter_,  # another order in every call
            **self._how(batch_size, weight),
        )
        self._record(log)
        return self

    def _begin(self, classes):
        """A new network, and nothing remembered of an earlier training."""
        sizes = self.hidden_layer_sizes
        try:
            hidden = (sizes,) if isinstance(sizes, Integral) else tuple(sizes)
        except TypeError:
            raise ConfigError(f"hidden_layer_sizes must be such as (128,), got {sizes!r}") from None
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.network_ = Network(
            (self.n_features_in_, *hidden, len(classes)),
            backend=self.backend,
            seed=self._seed,
            dropout=self.dropout,
            input_dropout=self.input_dropout,
            precision=self.precision,
            pixels=False,
        )
        self.classes_ = classes
        self.n_iter_, self.loss_curve_ = 0, []
        self._optimizer_state = OptimizerState()

    def _record(self, log):
        """Append the epochs of a training to the public record."""
        self.n_iter_ += len(log.epochs)
        self.loss_curve_ += [epoch.loss for epoch in log.epochs]
        self.loss_ = self.loss_curve_[-1]
        if self.early_stopping:
            self.validation_scores_ = [epoch.validation_accuracy for epoch in log.epochs]
            self.best_validation_score_ = max(self.validation_scores_)
            self.best_loss_ = None
        else:
            self.validation_scores_ = self.best_validation_score_ = None
            self.best_loss_ = min(self.loss_curve_)

    # --- parameters and data ----------------------------------------------------------------

    def _check_parameters(self):
        """Errors by the names that users of this class know, before anything is computed."""
        if self.solver not in ("adam", "sgd"):
            raise ConfigError(f'solver must be "adam" or "sgd", got {self.solver!r}')
        check_number("alpha", self.alpha, "[0, inf)")
        check_number("tol", self.tol, "[0, inf)")
        check_number("learning_rate_init", self.learning_rate_init, "(0, inf)")
        check_number("momentum", self.momentum, "[0, 1)")
        check_number("validation_fraction", self.validation_fraction, "(0, 1)")
        check_count("max_iter", self.max_iter)
        check_count("n_iter_no_change", self.n_iter_no_change)
        if self.batch_size != "auto":
            check_count("batch_size", self.batch_size)

    def _how(self, batch_size, weight):
        """What fit and partial_fit share of the arguments of :func:`~fastdigit.training.fit`."""
        return {
            "optimizer": self._optimizer(batch_size * weight.mean()),
            "schedule": Constant(),
            "batch_size": batch_size,
            "sample_weight": weight,
            "label_smoothing": self.label_smoothing,
            "max_norm": self.max_norm,
            "augment": self.augment,
            "optimizer_state": self._optimizer_state,
            "progress": Progress() if self.verbose else None,
        }

    def _optimizer(self, batch_weight):
        rate = float(self.learning_rate_init)
        decay = float(self.alpha / batch_weight)
        if self.solver == "adam":
            return Adam(rate, weight_decay=decay)
        momentum = float(self.momentum)
        return SGD(rate, momentum, nesterov=bool(self.nesterovs_momentum and momentum), weight_decay=decay)

    def _batch_size(self, count):
        return min(200 if self.batch_size == "auto" else self.batch_size, count)

    def _labelled(self, X, y, reset):
        X, y = self._validated(X, y, reset=reset)
        check_classification_targets(y)
        return X, y

    def _validated(self, *data, reset):
        with np.errstate(over="ignore"):  # what overflows float32 is an error just after
            return validate_data(self, *data, dtype=_DTYPES, reset=reset)

    def _samples(self, X, y, sample_weight, classes):
        """What to train on: distinct samples, targets as indices into ``classes``, and weights."""
        weight = np.ones(len(X)) if sample_weight is None else np.array(sample_weight, np.float64)
        as_weights(weight, len(X))  # for its errors; scaling to mean 1 comes after merging
        unknown = np.setdiff1d(y, classes)
        if len(unknown):
            raise DataError(f"y holds labels that are not among the classes {classes}: {unknown}")
        targets = np.searchsorted(classes, y)
        X, targets, weight = _distinct(X[weight > 0], targets[weight > 0], weight[weight > 0])
        if self.class_weight == "balanced":
            # From the weights that samples have, not their number: here, too, it must not matter
            # whether a sample comes twice or has the weight 2.
            of_class = np.bincount(targets, weight)
            factor = weight.sum() / (len(classes) * of_class[targets])
        else:
            factor = compute_class_weight(self.class_weight, classes=classes, y=y)[targets]
        return X, targets, weight * factor

    # --- prediction -------------------------------------------------------------------------

    def predict(self, X):
        """The label of the most probable class of each sample [N], of the dtype of ``classes_``."""
        X = self._inputs(X)
        return self.classes_[self.network_.predict(X)]

    def predict_proba(self, X):
        """The probability of each class [N, C] float32, in the order of ``classes_``."""
        X = self._inputs(X)
        return self.network_.predict_proba(X)

    def _inputs(self, X):
        check_is_fitted(self, "network_")
        return self._validated(X, reset=False)


def _distinct(X, targets, weight):
    """Each different pair of a row and its target once, with the sum of its weights.

    They come in an order that depends on nothing but the numbers in them, neither on the order nor
    on the number of the samples given. Cost: one pass over X, one sort of N numbers, one copy of X.
    """
    # A 64-bit hash of each pair, from whole numbers, so that equal pairs have equal hashes. Equal
    # hashes need not mean equal pairs: neighbours in the order are compared before they merge.
    words = np.ascontiguousarray(X).view(np.uint32 if X.dtype == np.float32 else np.uint8)
    factors = np.random.default_rng(0).integers(2**63, size=X.shape[1] + 1, dtype=np.uint64) | np.uint64(1)
    hashes = targets.astype(np.uint64) * factors[-1]
    for start in range(0, len(X), 1024):  # in pieces: the products take 8 bytes each
        part = words[start : start + 1024].astype(np.uint64)
        hashes[start : start + 1024] += np.einsum("ni,i->n", part, factors[:-1])
    order = np.argsort(hashes, kind="stable")
    X, targets, hashes, weight = X[order], targets[order], hashes[order], weight[order]
    new = np.ones(len(X), bool)
    same_hash = np.flatnonzero(hashes[1:] == hashes[:-1]) + 1
    new[same_hash] = (X[same_hash] != X[same_hash - 1]).any(1) | (
        targets[same_hash] != targets[same_hash - 1]
    )
    if new.all():
        return X, targets, weight
    return X[new], targets[new], np.bincount(new.cumsum() - 1, weight)


class _LossStopping:
    """A callback of fit: true once the loss has not fallen by ``tol`` in ``patience`` epochs running."""

    def __init__(self, tol, patience):
        self.tol, self.patience = tol, patience
        self.best, self.waited = np.inf, 0

    def __call__(self, net, log):
        self.waited = self.waited + 1 if log.loss > self.best - self.tol else 0
        self.best = min(self.best, log.loss)
        return self.waited >= self.patience
