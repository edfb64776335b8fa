"""GLUE's metrics as an `evaluate.Metric`, for machines without the Hub: keys and values of `evaluate.load("glue")`.

evaluate.load("eval/metrics/glue", "mrpc").compute(predictions=[0, 1], references=[0, 1])
"""

from __future__ import annotations

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef

CITATION = """\
@inproceedings{wang2019glue,
  title={{GLUE}: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding},
  author={Wang, Alex and Singh, Amanpreet and Michael, Julian and Hill, Felix and Levy, Omer and Bowman, Samuel R.},
  booktitle={ICLR},
  year={2019}
}
"""
ACCURACY = ("sst2", "mnli", "mnli_matched", "mnli_mismatched", "qnli", "rte", "wnli")
ACCURACY_AND_F1 = ("mrpc", "qqp")
CONFIGURATIONS = (*ACCURACY, *ACCURACY_AND_F1, "cola", "stsb")


class Glue(evaluate.Metric):
    """Accuracy; accuracy and F1 (mrpc, qqp); Matthews' correlation (cola); Pearson's and Spearman's (stsb)."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in CONFIGURATIONS:
            raise KeyError(f"Choose a configuration from {', '.join(CONFIGURATIONS)}, not {self.config_name!r}.")
        value = datasets.Value("float32" if self.config_name == "stsb" else "int64")
        return evaluate.MetricInfo(
            description=self.__class__.__doc__ or "",
            citation=CITATION,
            inputs_description="predictions and references: class indices, for stsb similarities.",
            features=datasets.Features({"predictions": value, "references": value}),
            format="numpy",
        )

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        if self.config_name == "cola":
            return {"matthews_correlation": float(matthews_corrcoef(references, predictions))}
        if self.config_name == "stsb":
            return {
                "pearson": float(pearsonr(predictions, references)[0]),
                "spearmanr": float(spearmanr(predictions, references)[0]),
            }
        accuracy = {"accuracy": float((np.asarray(predictions) == np.asarray(references)).mean())}
        if self.config_name in ACCURACY_AND_F1:
            return accuracy | {"f1": float(f1_score(references, predictions))}
        return accuracy
