"""Elastic fine-tuning: one model whose n x m submodels keep its accuracy (DynaBERT; Hou et al., NeurIPS 2020)."""
