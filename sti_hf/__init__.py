"""Speedy Transformer Inference: run a Transformers model cold, within a target latency, from a few megabytes."""

from sti_hf.config import STIConfig
from sti_hf.errors import STIError, StoreError
from sti_hf.integrations.checkpoint import shard_checkpoint
from sti_hf.integrations.from_pretrained import install as _install
from sti_hf.planning import DeviceProfile, ExecutionPlan
from sti_hf.runtime.session import STISession
from sti_hf.shards.store import ShardStore

__version__ = "0.1.0"
__all__ = [
    "DeviceProfile",
    "ExecutionPlan",
    "STIConfig",
    "STIError",
    "STISession",
    "ShardStore",
    "StoreError",
    "shard_checkpoint",
]

_install()
