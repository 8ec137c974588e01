"""Trees of XGBoost. After each ten trees, Ray's callback reports the metrics and a checkpoint."""

import os

import xgboost
from ray import tune
from ray.tune.integration.xgboost import TuneReportCheckpointCallback
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

TREES_PER_REPORT = 10


class ReportEachTenTrees(TuneReportCheckpointCallback):
    def after_iteration(self, model, epoch, evals_log):
        if model.num_boosted_rounds() % TREES_PER_REPORT == 0:  # `epoch` would count from 0 in a trial that goes on
            super().after_iteration(model, epoch, evals_log)


def load_table():
    """Rows for training, for comparing trials, and for the test. Read your own table here, for instance with numpy.loadtxt(…, delimiter=",")."""
    x, y = load_breast_cancer(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
    x_train, x_validation, y_train, y_validation = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
    return (x_train, y_train), (x_validation, y_validation), (x_test, y_test)


def train(config):
    """Train one trial. A trial that was interrupted goes on from its last checkpoint."""
    rows, validation, _ = (xgboost.DMatrix(x, y) for x, y in load_table())
    report = ReportEachTenTrees({"logloss": "validation-logloss"}, frequency=1, checkpoint_at_end=False)
    model, first = None, 0
    if checkpoint := tune.get_checkpoint():
        model = report.get_model(checkpoint)
        first = model.num_boosted_rounds()
    # With the same seed, `subsample` would draw for the new trees the same rows as for the first trees.
    params = {**config, "objective": "binary:logistic", "seed": int(os.environ["RAYSWEEP_SEED"]) + first}
    trees = int(os.environ["RAYSWEEP_MAX_EPOCHS"]) * TREES_PER_REPORT - first
    xgboost.train(params, rows, trees, evals=[(validation, "validation")], callbacks=[report], xgb_model=model, verbose_eval=False)


def confirm(config, seed, epochs):
    """Train the best configuration once more, with a new seed, on all rows except the test rows. Only this function uses the test rows."""
    (x_train, y_train), (x_validation, y_validation), (x_test, y_test) = load_table()
    rows = xgboost.DMatrix([*x_train, *x_validation], [*y_train, *y_validation])
    model = xgboost.train({**config, "objective": "binary:logistic", "seed": seed}, rows, epochs * TREES_PER_REPORT)
    return {"logloss": log_loss(y_test, model.predict(xgboost.DMatrix(x_test)))}
