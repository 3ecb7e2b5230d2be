"""Evaluation harnesses: a lens with interventions as a model of lmms-eval or VLMEvalKit, and their logs compared

Neither harness is imported before one of its own models is asked for.
"""

from .logs import compare_logs

__all__ = ["compare_logs"]
