"""Time and memory of sharding a checkpoint, and the size of its store.

python -m eval.bench_sharding --model CHECKPOINT [--quantizer NAME]
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch

from sti_hf import shard_checkpoint
from sti_hf.shards.quantizers import DEFAULT_QUANTIZER, QUANTIZERS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--quantizer", choices=sorted(QUANTIZERS), default=DEFAULT_QUANTIZER)
    arguments = parser.parse_args()
    checkpoint = sum(file.stat().st_size for file in arguments.model.glob("*.safetensors"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        store = shard_checkpoint(arguments.model, Path(folder, "store"), quantizer=arguments.quantizer)
        seconds = time.perf_counter() - begun
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        encoder, shards = store.grid.weights * 4, store.layer_path(0).stat().st_size
        print(f"{arguments.quantizer}, {torch.get_num_threads()} threads: {seconds:.1f} s")
        print(f"memory grew by {grown / 1e6:.0f} MB: {grown / checkpoint:.2f} x the checkpoint")
        print(
            f"shards file {shards / 1e6:.1f} MB: {shards / encoder:.4f} x the fp32 encoder (to be at most {40 / 32})"
        )


if __name__ == "__main__":
    main()
