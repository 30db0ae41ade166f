"""fastdigit: train handwritten-digit classifiers with kernels written by hand in Python.

    import fastdigit as fd

    data = fd.load_digits()
    net = fd.Network([784, 128, 10], seed=0)
    fd.fit(net, data.train, optimizer=fd.SGD(0.1, momentum=0.9, nesterov=True), epochs=30)
    print(fd.evaluate(net, data.test).accuracy)

Everything is loaded on first use: importing this package loads neither Numba nor scikit-learn.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "augmentation": ("Augment",),
    "attacks": ("FGSM", "PGD", "attack"),
    "backend": ("Backend", "TrainPlan", "backends", "get_backend"),
    "corruptions": ("CorruptionRobustness", "corruption_robustness"),
    "calibration": (
        "Answered",
        "Reliability",
        "RiskCoverage",
        "fit_temperature",
        "log_loss",
        "reliability",
        "risk_coverage",
    ),
    "checkpoint": ("load_model",),
    "committee": ("Committee",),
    "datasets": (
        "Dataset",
        "Images",
        "load_digits",
        "load_folder",
        "load_mnist",
        "load_writers",
        "prepare_image",
        "prepare_steps",
        "read_idx",
        "write_idx",
    ),
    "errors": (
        "BackendError",
        "BusyError",
        "CheckpointError",
        "ConfigError",
        "DataError",
        "DeviceError",
        "DeviceMemoryError",
        "DownloadError",
        "FastdigitError",
        "MissingExtraError",
        "TrainingDivergedError",
    ),
    "estimator": ("DigitClassifier",),
    "evaluation": ("Evaluation", "evaluate"),
    "groups": ("GroupAccuracy", "accuracy_by", "balanced_sample", "balanced_weights"),
    "inputs": ("TrainingData",),
    "layout": ("Layout",),
    "log": ("TrainingLog",),
    "network": ("Network",),
    "optimizers": ("SGD", "Adam", "AdamW"),
    "progress": ("Progress",),
    "schedules": ("Constant", "Cosine", "OneCycle", "Step"),
    "options": ("EarlyStopping", "OptimizerState", "WeightAverage"),
    "robust": ("AdversarialRobustness", "UnderAttack", "adversarial_robustness"),
    "training": ("fit",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'fastdigit' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return __all__
