"""What fidelity costs models that are trained here: a ViT on scikit-learn's digits, and, on SST-2, small models that
are shaped as ModernBERT and DeBERTa v3 are.

    python -m eval.bench_families --glue GLUE --tokenizer FOLDER [--markdown FILE]

Each is trained from nothing, in minutes, and evaluated on data that it has not seen: accuracy, and in brackets
agreement with the checkpoint, at full fidelity and at 4, 3 and 2 bits, of codes that are calibrated and that are not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from transformers import (
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

import sti_hf  # noqa: F401 - from_pretrained takes sti_config
from eval.markdown import table
from sti_hf.profiling.examples import load_split
from sti_hf.shards.layout import FULL
from sti_hf.shards.quantizers import CALIBRATED, get_quantizer
from sti_hf.shards.quantizers.calibrated import calibrate
from sti_hf.shards.sharding import write_store
from sti_hf.shards.store import ShardStore

SIZES = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
FIDELITIES = (FULL, 4, 3, 2)
LONGEST_SENTENCE = 48
BATCH = 128
TRAINING_IMAGES = 640
CALIBRATION_INPUTS, CALIBRATION_BATCH = 512, 32
PEAK_LEARNING_RATE = 1e-3

Batch = dict[str, Tensor]


@dataclass
class Task:
    """A model that is not trained yet, and its data: inputs with `labels`."""

    name: str
    model: PreTrainedModel
    training: list[Batch]
    held_out: list[Batch]
    epochs: int


def digits() -> Task:
    """Images of 8 x 8 pixels, a patch of 2 x 2 a token."""
    data = load_digits()
    pixels = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))

    def batches(images: Tensor, size: int) -> list[Batch]:
        return [{"pixel_values": pixels[part], "labels": labels[part]} for part in images.split(size)]

    model = ViTForImageClassification(ViTConfig(**SIZES, image_size=8, patch_size=2, num_channels=1, num_labels=10))
    training, held_out = batches(order[:TRAINING_IMAGES], 64), batches(order[TRAINING_IMAGES:], BATCH)
    return Task("ViT, digits", model, training, held_out, epochs=40)


def sentences(name: str, model: PreTrainedModel, glue: str, tokenizer: Any) -> Task:
    """SST-2. Sentences of about the same length share a batch."""

    def batches(split: str) -> list[Batch]:
        rows = load_split(glue, "sst2", split)
        encoded = tokenizer(
            list(rows["sentence"]), truncation=True, max_length=LONGEST_SENTENCE, padding=True, return_tensors="pt"
        )
        labels, lengths = torch.tensor(rows["label"]), encoded["attention_mask"].sum(1)
        parts = lengths.argsort(stable=True).split(BATCH)
        return [
            {k: encoded[k][part, : lengths[part].max()] for k in ("input_ids", "attention_mask")}
            | {"labels": labels[part]}
            for part in parts
        ]

    return Task(name, model, batches("train"), batches("validation"), epochs=1)


def tasks(glue: str, tokenizer: Any) -> Iterator[Task]:
    """All three."""
    yield digits()
    special = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    ends = {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
    ends |= {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    modern = ModernBertConfig(**SIZES, **special, **ends, num_labels=2)
    yield sentences("ModernBERT's shape, SST-2", ModernBertForSequenceClassification(modern), glue, tokenizer)
    deberta = DebertaV2Config(
        **SIZES,
        **special,
        num_labels=2,
        relative_attention=True,
        position_buckets=32,
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
        max_position_embeddings=64,
    )
    yield sentences("DeBERTa v3's shape, SST-2", DebertaV2ForSequenceClassification(deberta), glue, tokenizer)


def train(task: Task) -> None:
    """Trains a task's model."""
    steps = task.epochs * len(task.training)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    task.model.train()
    for _ in range(task.epochs):
        for index in torch.randperm(len(task.training), generator=generator).tolist():
            task.model(**task.training[index]).loss.backward()
            torch.nn.utils.clip_grad_norm_(task.model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    task.model.eval()


def calibration_batches(training: list[Batch]) -> list[Batch]:
    """Some training inputs, drawn from batches of all lengths, in small batches, without their labels."""
    small = [
        {name: values[part] for name, values in batch.items() if name != "labels"}
        for batch in training
        for part in torch.arange(len(batch["labels"])).split(CALIBRATION_BATCH)
    ]
    count = CALIBRATION_INPUTS // CALIBRATION_BATCH
    return [small[index] for index in torch.randperm(len(small), generator=torch.Generator().manual_seed(0))[:count]]


@torch.no_grad()
def predictions(model: Any, batches: list[Batch]) -> Tensor:
    """The class of every input."""
    inputs = ({name: values for name, values in batch.items() if name != "labels"} for batch in batches)
    return torch.cat([model(**of_batch).logits.argmax(-1) for of_batch in inputs])


def evaluated(task: Task, progress: Callable[[str], object]) -> dict[str, str]:
    """A row of the table."""
    progress(f"{task.name}: training")
    train(task)
    labels = torch.cat([batch["labels"] for batch in task.held_out])
    expected = predictions(task.model, task.held_out)
    row = {"model": task.name, "checkpoint": _percent(expected == labels)}
    for name in (CALIBRATED, "lloyd"):
        progress(f"{task.name}: {name}")
        calibrated = name == CALIBRATED
        quantizer = calibrate(task.model, calibration_batches(task.training)) if calibrated else get_quantizer(name)
        with tempfile.TemporaryDirectory() as folder:
            store = write_store(task.model, Path(folder) / "store", quantizer=quantizer, quantizer_name=name)
            for bits in FIDELITIES if calibrated else FIDELITIES[1:]:
                got = predictions_at(store, type(task.model), task.held_out, bits)
                column = "full" if bits == FULL else f"{bits} bits, {name}"
                row[column] = f"{_percent(got == labels)} ({_percent(got == expected)})"
    return row


def predictions_at(store: ShardStore, model_class: type[PreTrainedModel], batches: list[Batch], bits: int) -> Tensor:
    """The class of every input, as a store's model gives it with all shards at one fidelity."""
    config = {"strategy": "std_pipeline", "fidelity": bits, "target_latency": "1s"}
    model: Any = model_class.from_pretrained(store.path, sti_config=config)
    with model.sti:
        return predictions(model, batches)


def _percent(right: Tensor) -> str:
    return f"{100 * right.float().mean():.1f}"


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue", required=True, help="a folder with GLUE's SST-2, or nyu-mll/glue")
    parser.add_argument("--tokenizer", required=True, help="a checkpoint's folder or id, for its tokenizer")
    parser.add_argument("--markdown", type=Path, help="write the table here, too")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    rows = []
    for task in tasks(options.glue, tokenizer):
        rows.append(evaluated(task, lambda step: print(step, file=sys.stderr, flush=True)))
        text = table(list(rows[0]), [list(row.values()) for row in rows])
        if options.markdown:
            options.markdown.write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
