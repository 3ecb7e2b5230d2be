"""The result: means and intervals, tables, figures, files."""

import pytest
import torch

from lmm_lens import InformationFlow, Lens
from lmm_lens.errors import ScoreError


def made(n=8, control=True):
    """Two routes over three layers, with numbers that can be told apart."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(n, 2, 3, generator=generator, dtype=torch.float64)
    means = torch.tensor([[-80.0, -40.0, 0.0], [-1.0, -2.0, -3.0]], dtype=torch.float64)
    nothing = torch.full_like(noise, torch.nan)
    return InformationFlow(
        routes=("image -> last", "question -> last"),
        layers=(0, 4, 8),
        window=9,
        per_prompt=means + noise,
        control_per_prompt=-5 + noise if control else nothing,
        base=torch.full((n,), 0.7, dtype=torch.float64),
        n_keys=torch.full((n, 2), 10),
        n_random_keys=torch.full((n, 2), 5 if control else 0),
        n_tokens=torch.ones(n, dtype=torch.long),
        ids=tuple(f"prompt {i}" for i in range(n)),
        left_out={"prompt 9": "cyan"},
        how="8 single rows",
        model={"n_layers": 9, "n_heads": 2},
        settings={"n_random": int(control)},
    )


def test_means_intervals_and_the_table_are_those_of_the_numbers():
    flow = made()
    torch.testing.assert_close(flow.values, flow.per_prompt.mean(0))
    low, high = flow.interval()
    assert (low < flow.values).all()
    assert (flow.values < high).all()
    assert flow.matched.tolist() == [0.5, 0.5]
    table = flow.to_pandas()
    assert list(table.columns) == [
        *("route", "layer", "change", "low", "high", "control", "control_low", "control_high", "matched")
    ]
    row = table[(table.route == "question -> last") & (table.layer == 8)].iloc[0]
    assert row.change == pytest.approx(float(flow.values[1, 2]))
    assert row.low == pytest.approx(float(low[1, 2]))
    assert row.control == pytest.approx(float(flow.control_per_prompt[:, 1, 2].mean()))


def test_what_it_says_of_itself():
    assert repr(made()).splitlines()[0].endswith("mean of 8 prompts answered rightly, 1 left out that are not")
    text = repr(made())
    own, control = (float(x[0, 0]) for x in (made().values, made().control))
    assert f"image -> last: {own:+.0f}% at layer 0 (random keys {control:+.0f}%, 50% as many)" in text
    assert "computed: 8 single rows" in text
    assert "(random keys" not in repr(made(control=False))
    assert "<table" in made()._repr_html_()


def test_the_figure_has_a_line_a_route_and_its_control_dashed():
    ax = made().plot()
    curves = [line for line in ax.get_lines() if len(line.get_xdata()) == 3]
    assert [line.get_linestyle() for line in curves] == ["-", "--", "-", "--"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        *("image -> last", "random keys, 50% as many", "question -> last", "random keys, 50% as many")
    ]
    assert curves[0].get_ydata() == pytest.approx(made().values[0].tolist())
    assert curves[0].get_color() == curves[1].get_color() != curves[2].get_color()
    assert ax.get_xlabel() == "middle of 9 layers"
    bare = made(control=False).plot()
    assert len([line for line in bare.get_lines() if len(line.get_xdata()) == 3]) == 2


def test_what_is_saved_is_read_back(tmp_path):
    flow = made()
    flow.save(tmp_path / "flow.safetensors")
    again = InformationFlow.load(tmp_path / "flow.safetensors")
    assert repr(again) == repr(flow)
    for name in ("per_prompt", "control_per_prompt", "base", "n_keys", "n_random_keys", "n_tokens"):
        assert torch.equal(getattr(again, name), getattr(flow, name))
    assert (again.ids, again.left_out, again.settings) == (flow.ids, flow.left_out, flow.settings)
    bare = made(control=False)
    bare.save(tmp_path / "bare.safetensors")
    assert InformationFlow.load(tmp_path / "bare.safetensors").control.isnan().all()


def test_changed_files_and_other_models_are_refused(tmp_path):
    path = tmp_path / "flow.safetensors"
    made().save(path)
    with pytest.raises(ScoreError, match="another"):
        InformationFlow.load(path, Lens.demo())
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ScoreError, match="does not have the checksum it was written with"):
        InformationFlow.load(path)
