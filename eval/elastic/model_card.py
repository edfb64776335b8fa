"""What an elastic model says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCardData

from eval.elastic.scores import Scores
from eval.markdown import bullets, table
from sti_hf.model.depth import DEPTH_RULE
from sti_hf.profiling.tasks import Task

TEXT = """\
---
{metadata}
---

# {name}

{teacher}, fine-tuned on {task} so that its submodels keep its accuracy: those with the first n layers and the first m
slices of each (a slice is an attention head with its share of the FFN neurons; rule for layers: `{rule}`). Heads and
neurons stand in order of importance. The recipe is DynaBERT's (Hou et al., NeurIPS 2020), with sti_hf's
`eval.train_elastic`.

The stock Transformers class loads it at full size. `sti_hf` runs the largest submodel that answers in time:

```python
import sti_hf
from transformers import AutoModelForSequenceClassification

model = AutoModelForSequenceClassification.from_pretrained("{name}", sti_config={{"target_latency": "200ms"}})
```

## Results

{metric} on the {sentences} sentences of split {split}, in points, in full fidelity; the teacher has {teacher_score}.

{results}

## Training

{facts}
"""


def model_card(
    name: str,
    teacher: str,
    task: Task,
    scores: Scores,
    teacher_score: float,
    sentences: int,
    facts: dict[str, object],
) -> str:
    """The card in Markdown, metadata first. `scores` are fractions, of every submodel (n, m); `facts` of training."""
    on_hub = None if Path(teacher).exists() else teacher
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        base_model=on_hub,
        datasets=[task.dataset],
        metrics=list(task.keys),
        tags=["sti", "elastic", "dynabert"],
    )
    return TEXT.format(
        metadata=metadata.to_yaml(),
        name=name,
        teacher=on_hub or f"`{Path(teacher).name}`",
        task=task.name,
        rule=DEPTH_RULE,
        metric=task.leading,
        sentences=sentences,
        split=task.split,
        teacher_score=f"{100 * teacher_score:.1f}",
        results=score_table(scores),
        facts=bullets(facts),
    )


def score_table(scores: Scores) -> str:
    """Markdown: submodels' scores in points, a row for every depth n and a column for every width m."""
    depths, widths = (sorted({submodel[axis] for submodel in scores}) for axis in (0, 1))
    rows: list[Sequence[str]] = [
        [f"n = {depth}", *(f"{100 * scores[depth, width]:.1f}" for width in widths)] for depth in reversed(depths)
    ]
    return table(["", *(f"m = {width}" for width in widths)], rows)
