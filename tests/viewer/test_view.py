"""`view`: what it takes, what it gives, and that its page is whole and fetches nothing."""

import base64
import hashlib
import html
import re

import numpy as np
import pytest

from lmm_lens import HeadScores, HeadSet, Lens, LensError, score_heads
from lmm_lens.bundled import shapes
from lmm_lens.errors import HookError, PromptError, ScoreError
from lmm_lens.viewer import View, view
from tests.support.cases import case
from tests.support.page import Page
from tests.viewer.pages import Shown


@pytest.fixture(scope="module")
def asked(lens):
    example = shapes.examples(1, kinds=("color",), seed=1)[0]
    return lens.prompt(example.question, images=example.image)


@pytest.fixture(scope="module")
def made(lens, asked):
    return view(asked, lens)


def refused(error, text, *arguments, **options):
    with pytest.raises(error) as caught:
        view(*arguments, **options)
    assert str(caught.value) == text
    assert len(text.splitlines()) <= 3


# ---------------------------------------------------------------------- the page


def test_the_page_is_one_document_that_fetches_nothing(made):
    page = Page(made.html.replace("<input type", "<br data-input").replace('autoescape="', ""))
    assert made.html.startswith("<!doctype html>")
    assert page.fetched == []
    # the name of SVG's vocabulary and a ramp within a drawing are no addresses
    assert not re.search(
        r"https?://(?!www\.w3\.org/2000/svg\")|@import|url\((?!#)|fetch\(|XMLHttpRequest|WebSocket|import\(", made.html
    )


def test_its_policy_allows_its_own_style_and_script_and_nothing_else(made):
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', made.html)
    for kind, tag in (("style", "style"), ("script", "script")):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", made.html, re.S)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert " style=" not in made.html  # it would be blocked
    assert not re.search(r"\son[a-z]+=", made.html.split("<script", 1)[0])


def test_the_sequence_of_the_page_is_that_of_the_prompt(made, asked):
    about = Shown(made.html).about
    assert about["texts"] == list(asked.tokens[0])
    assert about["roles"] == ["bos", "before_image", *["image"] * 36, *["question"] * 6, "answer_turn"]
    assert [(p["kind"], p["first"], p["last"]) for p in about["pieces"]] == [
        ("text", 0, 1),
        ("visual", 2, 37),
        ("text", 38, 44),
    ]
    assert about["pieces"][1]["label"] == "image 0: 36 tokens, 6 x 6, at 2 to 37"


@pytest.mark.parametrize("name", ["pixtral_llava", "llava_next", "idefics3"])
def test_markers_inside_a_picture_belong_to_its_block_and_every_token_stands_once(name):
    known = case(name) if name != "idefics3" else None
    if known is None:
        from tests.support.families import lens_of, prompt_of

        lens, prompt = lens_of(name), prompt_of(name)
    else:
        lens, prompt = known.lens, known.prompt
    pieces = Shown(view(prompt, lens).html).about["pieces"]
    assert [key for piece in pieces for key in range(piece["first"], piece["last"] + 1)] == list(range(prompt.n_tokens))
    n_visual = len([span for span in prompt.spans[0] if span.kind != "marker"])
    assert len([piece for piece in pieces if piece["kind"] == "visual"]) == n_visual


def test_a_prompt_without_pictures_has_words_and_heads(lens):
    about = Shown(view(lens.prompt("what comes after three?"), lens).html).about
    assert about["panels"] == []
    assert {piece["kind"] for piece in about["pieces"]} == {"text"}


# ---------------------------------------------------------------------- scores


def test_scores_come_first_on_the_map_of_heads(lens, asked):
    scores = score_heads(lens, [asked, asked], "concentration")
    shown = Shown(view(asked, scores, lens=lens, layers=[2, 3], heads=[7, 0], queries=[41]).html)
    first = shown.about["maps"][0]
    assert (first["name"], first["label"]) == ("scores", "scores: concentration")
    assert first["meaning"].endswith("mean of 2 prompts, query last")
    expected = scores.values[[2, 3]][:, [7, 0]].numpy()
    assert np.allclose(shown.map("scores"), expected)
    assert shown.map("scores").shape == (2, 2, 2)


def test_scores_of_another_model_are_refused(lens, asked):
    others = HeadScores(
        "visual_mass", "last", score_heads(lens, asked).per_prompt, {"model": "Llava", "weights": "abc"}
    )
    refused(
        ScoreError,
        "this map of scores was made with another model: the model's class differs\n"
        "  made with: Llava\n  lens:      LlavaForConditionalGeneration 6 x 8",
        asked,
        others,
        lens=lens,
    )
    known = case("llava")
    with pytest.raises(ScoreError, match="these scores of 3 x 4 heads are of another model"):
        view(asked, score_heads(known.lens, known.prompt), lens=lens)


# ---------------------------------------------------------------------- what comes back


def test_a_view_says_what_it_is_and_writes_itself(made, tmp_path):
    assert repr(made).startswith("View of 1 query, 6 layers x 8 heads, 45 tokens: 0.1 MB of HTML")
    path = made.save(tmp_path / "a view.html")
    assert path.read_text(encoding="utf-8") == made.html
    assert path.stat().st_size == made.size
    assert (made.shape, made.error) == ((1, 6, 8, 45), 1 / 65535)
    with pytest.raises(LensError, match=r"there is no folder '.*nowhere' to save the view in"):
        made.save(tmp_path / "nowhere" / "view.html")


def test_the_notebook_gets_a_sandboxed_frame_of_the_height_asked_for(lens, asked):
    made = view(asked, lens, height=432)
    frame = made._repr_html_()
    assert isinstance(made, View)
    assert "sandbox='allow-scripts allow-downloads'" in frame
    assert "height:432px" in frame
    assert html.unescape(re.search(r"srcdoc='([^']*)'", frame).group(1)) == made.html


def test_a_page_of_many_weights_says_that_it_is_coarser(lens, asked, monkeypatch):
    from lmm_lens.viewer import packing

    monkeypatch.setattr(packing, "MAX_FINE", 6 * 8 * 45 - 1)
    made = view(asked, lens)
    assert made.error == 1 / 255
    assert 'within 1/<span id="steps">255</span> of the largest of its head' in made.html
    fine = Shown(view(asked, lens, layers=[0, 1, 2, 3, 4]).html)
    coarse = Shown(made.html)
    assert coarse.about["steps"] == 255
    largest = fine.weights.max(-1, keepdims=True)
    assert (np.abs(coarse.weights[:, :5] - fine.weights) <= largest * (1 / 255 + 1 / 65535)).all()


def test_a_title_and_heads_to_mark(lens, asked):
    made = view(asked, lens, title="1 < 2", mark=HeadSet([(3, 1), (0, 2)], 6, 8))
    assert '<h1 id="heading">1 &lt; 2</h1>' in made.html
    assert Shown(made.html).about["mark"] == [[3, 1], [0, 2]]
    refused(
        HookError,
        "these heads to mark are of 3 layers x 4 heads, the model has 6 x 8",
        asked,
        lens,
        mark=HeadSet([(2, 1)], 3, 4),
    )


# ---------------------------------------------------------------------- refusals


def test_what_cannot_be_viewed_is_refused_with_what_can(lens, asked):
    refused(
        LensError,
        "cannot view str: expected a Lens, a Run with patterns, or HeadScores\n"
        "  view(prompt, lens), view(prompt, run), view(prompt, scores, lens=lens)",
        asked,
        "demo",
    )
    refused(
        LensError,
        "scores hold no attention over the prompt, so the model is needed too\n"
        "  view(prompt, scores, lens=lens), scores as given to the map of heads",
        asked,
        score_heads(lens, asked),
    )
    refused(PromptError, "expected a prompt made by lens.prompt(...), given Lens", lens, asked)
    other = Lens(lens.model, lens.processor)
    refused(LensError, "two lenses were given: view(prompt, lens) needs no lens=", asked, lens, lens=other)
    refused(ScoreError, "sinks is True, False or a SinkRule, given 'auto'", asked, lens, sinks="auto")
