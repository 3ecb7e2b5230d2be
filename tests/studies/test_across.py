"""Models side by side, on records that are made by hand."""

import pytest

from lmm_lens.studies.across import DEPTHS, correlations, profile, summary
from lmm_lens.studies.claims import by_interval, by_test, nothing_lost
from lmm_lens.studies.record import Record, plain

pytestmark = pytest.mark.long


def record(name, means, n_parameters=10, family="llava", depth=0.5):
    """A record with one data set, whose profile is known."""
    return Record(
        {
            "name": name,
            "study": "heads",
            "model": {"family": family, "n_parameters": n_parameters, "n_layers": len(means), "n_heads": 2},
            "settings": {"rank_by": "visual_mass", "queries": ["last"]},
            "sinks": {"dims": []},
            "layers": {"color": {"last": {"visual_mass": {"mean": means}}}},
            "depth": [{"value": depth}],
            "claims": [{"verdict": "open"}, {"verdict": "holds"}],
        }
    )


def test_profiles_are_linear_between_layers_and_go_by_relative_depth():
    assert profile(record("three", [0.0, 1.0, 0.0])) == pytest.approx([1 - abs(2 * x - 1) for x in DEPTHS])
    assert profile(record("five", [0.0, 0.5, 1.0, 0.5, 0.0])) == pytest.approx(
        profile(record("three", [0.0, 1.0, 0.0]))
    )
    missing = profile(record("a layer without heads", [0.0, None, 1.0]))
    assert missing == pytest.approx(list(DEPTHS))


def test_models_of_like_profiles_agree_and_opposite_ones_disagree():
    rising, falling = record("rising", [0.0, 0.4, 1.0]), record("falling", [1.0, 0.2], family="qwen2_vl")
    table = correlations([rising, record("too", [0.1, 0.2, 0.3, 0.9]), falling])
    assert table["correlation"].tolist() == pytest.approx([1, -1, -1])
    assert table["same family"].tolist() == [True, False, False]
    assert (table["p"] < 0.002).all()
    assert "size ~ depth of top heads" not in table["what"].tolist()


def test_size_is_set_against_depth_where_there_are_four_models():
    records = [record(str(i), [0.0, 1.0], n_parameters=10**i, depth=0.1 * i) for i in range(4)]
    row = correlations(records).iloc[-1]
    assert (row["what"], row["correlation"], row["n"]) == ("size ~ depth of top heads", pytest.approx(1), 4)
    assert row["p"] == pytest.approx(2 / 24, abs=0.03)  # of the 24 orders, two agree as well, in one sign or the other


def test_the_summary_counts_verdicts():
    row = summary([record("one", [0.0, 1.0], depth=0.25)]).iloc[0]
    assert (row["holds"], row["open"], row["contradicted"]) == (1, 1, 0)
    assert row["depth of top heads"] == 0.25
    assert row["sink dimensions"] == "none"


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (by_test(0.01, True, False), "holds"),
        (by_test(0.01, False, True), "contradicted"),
        (by_test(0.2, True, False), "open"),
        (by_interval(0.2, 0.4, 0.1), "holds"),
        (by_interval(0.2, 0.4, 0.5), "contradicted"),
        (by_interval(0.2, 0.4, 0.3), "open"),
        (nothing_lost(0.0, 0.0, 1.0, 59), "open"),  # 3 / 59 is more than the margin
        (nothing_lost(0.0, 0.0, 1.0, 60), "holds"),
        (nothing_lost(-0.01, 0.06, 1.0, 1000), "open"),
        (nothing_lost(0.01, 0.06, 1.0, 1000), "contradicted"),
        (nothing_lost(0.0, 0.0, 0.02, 1000), "not tested"),
    ],
)
def test_verdicts_by_hand(found, verdict):
    assert found == verdict


def test_records_hold_six_digits_and_null_for_what_is_no_number():
    assert plain({"a": (1 / 3, float("nan"), float("inf"), 12, None, True)}) == {
        "a": [0.333333, None, None, 12, None, True]
    }
