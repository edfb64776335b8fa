"""Adds `optimum-cli sti`. Installed as `optimum/commands/register/register_sti.py`, where optimum-cli finds it."""

from __future__ import annotations

from sti_hf.optimum_cli import STICommand

REGISTER_COMMANDS = [STICommand]
