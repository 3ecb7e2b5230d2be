"""What the studies of these tests are made of."""

from lmm_lens.data import shapes
from lmm_lens.studies import HeadSettings, SinkSettings

HEADS = HeadSettings(queries=("last", "answer"), ks=(1, 2), controls=1)
SINKS = SinkSettings(metric="log_prob", tasks={"exist": "hallucination"}, fractions=(0.6,), ratios=(0.8,))
DATA = {"color": shapes(4, kinds="color"), "exist": shapes(4, kinds="exist")}
TEXT = {"sums": shapes(2, kinds="arith")}
