"""Prints a competitor's accuracy on the sample that `eval.coldstart.sample` wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eval.coldstart.job import REAL, job_parser
from eval.coldstart.sample import SAMPLE


def main() -> None:
    parser = job_parser(__doc__)
    job = parser.parse_args().job
    competitor = job.competitor()
    sample = np.load(Path(job.work) / SAMPLE)
    competitor.load(job.folder(competitor, REAL))
    right = 0
    for ids, mask, label in zip(sample["input_ids"], sample["attention_mask"], sample["labels"]):
        logits = competitor.forward({"input_ids": ids[None], "attention_mask": mask[None]})
        right += int(logits[0].argmax() == label)
    competitor.close()
    print(right / len(sample["labels"]))


if __name__ == "__main__":
    main()
