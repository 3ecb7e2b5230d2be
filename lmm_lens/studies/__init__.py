"""The two papers' studies on any models and data sets: what holds of their claims, with statistics and controls."""

from .claims import Claim
from .head_study import HeadSettings
from .record import Record
from .sink_settings import SinkSettings
from .study import Study, Subject, heads, sinks

__all__ = ["Claim", "HeadSettings", "Record", "SinkSettings", "Study", "Subject", "heads", "sinks"]
