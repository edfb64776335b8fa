"""Writes a competitor's files, for a checkpoint and for a tiny model of its family, and lets it tune itself."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from eval.coldstart.job import REAL, TINY, job_parser

TINY_SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}


def save_tiny(checkpoint: Path, folder: Path) -> None:
    """Saves a random model of the family of `checkpoint`: 2 layers, hidden 64, but the same longest input."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(checkpoint)
    config.update({**TINY_SIZES, "vocab_size": 99})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)


def write_files(prepare: Callable[[Path, Path], None], checkpoint: Path, folder: Path) -> None:
    """Prepares a checkpoint into `folder`, which is whole or absent."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        prepare(checkpoint, unfinished)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished)
        raise


def main() -> None:
    parser = job_parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    arguments = parser.parse_args()
    job, competitor = arguments.job, arguments.job.competitor()
    write_files(competitor.prepare, arguments.checkpoint, job.folder(competitor, REAL))
    with tempfile.TemporaryDirectory() as tiny:
        save_tiny(arguments.checkpoint, Path(tiny))
        write_files(competitor.prepare_tiny, Path(tiny), job.folder(competitor, TINY))
    competitor.tune(job.folder(competitor, REAL))
    competitor.load_tiny(job.folder(competitor, TINY), job.folder(competitor, REAL))
    competitor.close()


if __name__ == "__main__":
    main()
