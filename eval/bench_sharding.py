"""Time and memory of sharding a checkpoint, and the size of its store.

python -m eval.bench_sharding --model CHECKPOINT [--quantizer NAME | --calibration TEXT [--calibration-config NAME]]

With calibration text (see `sti shard --help`) that is the calibrated quantizer, and calibration is part of the work.
Memory is the growth of the largest resident set, mapped pages of the checkpoint included, from when all code is
imported: that of the datasets library, of tokenizers and of the model's family is no part of it.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import datasets  # noqa: F401 (its memory is not sharding's)
import torch
from transformers import AutoConfig, AutoTokenizer  # noqa: F401 (likewise)

from sti_hf import shard_checkpoint
from sti_hf.integrations.calibration_text import CalibrationText
from sti_hf.integrations.model_classes import stock_class
from sti_hf.shards.quantizers import DEFAULT_QUANTIZER, QUANTIZERS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--quantizer", choices=sorted(QUANTIZERS), default=DEFAULT_QUANTIZER)
    parser.add_argument("--calibration", metavar="TEXT", help="a file, a text a line; or a dataset: its id or folder")
    parser.add_argument("--calibration-config", metavar="NAME", help="the dataset's configuration")
    arguments = parser.parse_args()
    text = CalibrationText(arguments.calibration, arguments.calibration_config) if arguments.calibration else None
    checkpoint = sum(file.stat().st_size for file in arguments.model.glob("*.safetensors"))
    stock_class(AutoConfig.from_pretrained(arguments.model))  # imports the family's code
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        quantizer = None if text else arguments.quantizer
        store = shard_checkpoint(arguments.model, Path(folder, "store"), quantizer=quantizer, calibration=text)
        seconds = time.perf_counter() - begun
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        encoder, shards = store.grid.weights * 4, store.layer_path(0).stat().st_size
        print(f"{store.index.quantizer}, {torch.get_num_threads()} threads: {seconds:.1f} s")
        layers = (grown - checkpoint) / (encoder / store.grid.layers)
        print(f"memory grew by {grown / 1e6:.0f} MB: the checkpoint and {layers:.1f} fp32 layers")
        print(
            f"shards file {shards / 1e6:.1f} MB: {shards / encoder:.4f} x the fp32 encoder (to be at most {40 / 32})"
        )


if __name__ == "__main__":
    main()
