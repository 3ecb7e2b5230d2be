"""The row of attention that VAR is worked by hand on."""

# keys: text sink, text, visual sink, visual, visual, text; of the visual mass .45 lies .7778 off the sinks
ROW = [0.30, 0.10, 0.10, 0.20, 0.15, 0.15]
VISUAL = [False, False, True, True, True, False]
SINK = [True, False, True, False, False, False]
BY_FRACTION = {
    0.6: [0.12, 0.10, 0.04, 0.337142857, 0.252857143, 0.15],  # the paper's p = .6
    0.4: [0.18, 0.10, 0.06, 0.291428571, 0.218571429, 0.15],  # the released code's p = .6
}
