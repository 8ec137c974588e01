"""Gradient-boosted trees of scikit-learn, ten more at each report."""

import os
import tempfile
from pathlib import Path

import joblib
from ray import tune
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import train_test_split

TREES_PER_REPORT = 10
MODEL_FILE = "model.joblib"


def load_table():
    """Rows for training, for comparing trials, and for the test. Read your own table here, for instance with numpy.loadtxt(…, delimiter=",")."""
    x, y = load_breast_cancer(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
    x_train, x_validation, y_train, y_validation = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
    return (x_train, y_train), (x_validation, y_validation), (x_test, y_test)


def train(config):
    """What a trial does. A trial that was interrupted goes on from its last checkpoint."""
    (x_train, y_train), (x_validation, y_validation), _ = load_table()
    seed = int(os.environ["RAYSWEEP_SEED"])
    model = HistGradientBoostingClassifier(**config, max_iter=TREES_PER_REPORT, early_stopping=False, warm_start=True, random_state=seed)
    first = 1
    if checkpoint := tune.get_checkpoint():
        with checkpoint.as_directory() as folder:
            model = joblib.load(Path(folder) / MODEL_FILE)
        first = model.n_iter_ // TREES_PER_REPORT + 1
    for epoch in range(first, int(os.environ["RAYSWEEP_MAX_EPOCHS"]) + 1):
        model.set_params(max_iter=epoch * TREES_PER_REPORT).fit(x_train, y_train)
        with tempfile.TemporaryDirectory() as folder:
            joblib.dump(model, Path(folder) / MODEL_FILE)
            tune.report({"accuracy": model.score(x_validation, y_validation)}, checkpoint=tune.Checkpoint.from_directory(folder))


def confirm(config, seed, epochs):
    """The best configuration once more, with a new seed, on all rows that are not of the test; the only place where those are looked at."""
    (x_train, y_train), (x_validation, y_validation), (x_test, y_test) = load_table()
    model = HistGradientBoostingClassifier(**config, max_iter=epochs * TREES_PER_REPORT, early_stopping=False, random_state=seed)
    model.fit([*x_train, *x_validation], [*y_train, *y_validation])
    return {"accuracy": model.score(x_test, y_test)}
