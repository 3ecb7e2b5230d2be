"""The list of errors: read off the source, and what is really raised is in it."""

import ast
import sys

import pytest
import torch

from lmm_lens import AblateHeads, Knockout, LensError, Read, errors, score_heads
from tests.docs.pages import DOCS

sys.path.insert(0, str(DOCS))
import raised
import tables


def template(source: str) -> str:
    return raised._text(ast.parse(source, mode="eval").body)


def test_what_differs_from_case_to_case_becomes_a_gap():
    assert template('f"head {head} of {n_layers} layers: {layer.index!r}" " in all"') == (
        "head ‹head› of ‹n layers› layers: ‹index› in all"
    )
    assert template('f"{len(rows)} rows of {type(model).__name__}"') == "‹number of rows› rows of ‹its class›"
    assert (
        template('unknown("metric", name, METRICS)')
        == "unknown metric ‹given›‹, did you mean …?›\n  valid: ‹all names›"
    )


def test_a_message_matches_its_own_template_alone():
    error = raised.Raised("HookError", "layer ‹layer› is out of range: the model has layers 0 to ‹n›", "heads.py")
    assert error.matches("layer 9 is out of range: the model has layers 0 to 5")
    assert not error.matches("head 9 is out of range: the model has layers 0 to 5")


def test_every_class_has_messages_and_an_introduction():
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, LensError)}
    assert set(raised.kinds()) == classes == {each.kind for each in raised.everything()}
    assert not [name for name in classes if f"**{name}**" not in page]


def test_every_place_that_raises_is_read():
    calls, starts = 0, tuple(f"raise {kind}(" for kind in raised.kinds())
    for path in [path for room in raised.ROOMS for path in (raised.ROOT / room).rglob("*.py")]:
        for line in path.read_text(encoding="utf-8").splitlines():
            calls += line.strip().startswith(starts)
    assert len(raised.everything()) > 0.95 * calls > 300  # the same text in two places is listed once


WRONG = {
    "a slot without its picture": lambda lens, prompt: lens.prompt("what is <image> this?"),
    "no such mask": lambda lens, prompt: prompt.mask("imge"),
    "no such patch": lambda lens, prompt: prompt.patch_at(500, 3),
    "no such hook point": lambda lens, prompt: lens.run(prompt, read=["q"]),
    "no such layer": lambda lens, prompt: lens.run(prompt, read=[Read("z", layers=[9])]),
    "no such head": lambda lens, prompt: lens.run(prompt, [AblateHeads([(1, 9)])]),
    "no heads": lambda lens, prompt: AblateHeads([]),
    "no such mode": lambda lens, prompt: AblateHeads([(1, 1)], mode="remove"),
    "rows of nothing": lambda lens, prompt: lens.run(prompt, [Knockout("image", torch.zeros(1, prompt.n_tokens) > 0)]),
    "no such metric": lambda lens, prompt: score_heads(lens, prompt, "mass"),
    "no boxes": lambda lens, prompt: score_heads(lens, prompt, "region_mass"),
    "another backend's face": lambda lens, prompt: lens.bridge,
    "no such file": lambda lens, prompt: type(score_heads(lens, prompt)).load("gone.safetensors"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_a_user_gets_to_see_is_in_the_list(lens, wrong):
    from lmm_lens.bundled import shapes

    example = shapes.examples(1, ["color"], seed=3)[0]
    with pytest.raises(LensError) as caught:
        WRONG[wrong](lens, lens.prompt(example.question, images=example.image))
    kind, text = type(caught.value).__name__, str(caught.value)
    assert [each for each in raised.everything() if each.kind == kind and each.matches(text)], text


def test_a_message_is_shown_as_text_and_never_as_markup():
    shown = tables._message("the text has <image> & *two* ‹n slots›\n  give one_more")
    assert shown == ("the text has &lt;image&gt; &amp; &#42;two&#42; <i>n slots</i><span>give one&#95;more</span>")
