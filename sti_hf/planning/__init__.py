"""From a store, a device profile, T and S to a plan: which shards run, at which fidelity, and when.

NumPy only: planning knows no PyTorch module and no Transformers model.
"""

from sti_hf.planning.checked import CheckedPlans
from sti_hf.planning.cost import DeviceProfile
from sti_hf.planning.effects import EffectsImportance
from sti_hf.planning.importance import AdditiveImportance, ImportanceProfile, LayerOrder, default_importance
from sti_hf.planning.linear_cost import linear_profile
from sti_hf.planning.plan import ExecutionPlan, preload_changes
from sti_hf.planning.planner import make_plan
from sti_hf.planning.predict import predict_latency
from sti_hf.planning.protocol import OnePlan, Planner
from sti_hf.planning.request import PlanRequest
from sti_hf.planning.summary import missed_target
from sti_hf.planning.timeline import Timeline
from sti_hf.planning.workload import Workload

__all__ = [
    "AdditiveImportance",
    "CheckedPlans",
    "DeviceProfile",
    "EffectsImportance",
    "ExecutionPlan",
    "ImportanceProfile",
    "LayerOrder",
    "OnePlan",
    "PlanRequest",
    "Planner",
    "Timeline",
    "Workload",
    "default_importance",
    "linear_profile",
    "make_plan",
    "missed_target",
    "predict_latency",
    "preload_changes",
]
