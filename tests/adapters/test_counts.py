"""Tensors of more pictures or videos than the text has tokens of are refused in every family, and so are fewer."""

import pytest
import torch

from lmm_lens.errors import PromptError
from tests.support.evidence import picture
from tests.support.families import EVERY, SIZE, lens_of

OF_THE_TEXT = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids", "cross_attention_mask")
MESSAGES = (
    "hold",  # ... 2 images, but the text has the tokens of 1
    "image_grid_thw has",
    "image tokens, but the model makes",
    "whole number of pictures",
    "image tokens and pictures do not match",
    "belongs? to no picture",
    "more than 1 images",
    "are not known: expected",
    "places of the pictures",
)
TWICE = ["blip-2", "instructblip"]  # whose processors take one picture a row


def asked(name, n_pictures):
    return dict(lens_of(name).prompt("What is this?", images=[picture(*SIZE)] * n_pictures).inputs)


def mixed(name, n_in_text, n_in_tensors):
    """The text of a prompt with the tensors of another."""
    if name in TWICE:
        tensors = {key: torch.cat([value] * n_in_tensors) for key, value in asked(name, 1).items()}
        return {key: value[:1] if key in OF_THE_TEXT else value for key, value in tensors.items()}
    text, tensors = asked(name, n_in_text), asked(name, n_in_tensors)
    shared = {key: value for key, value in tensors.items() if key not in OF_THE_TEXT}
    return shared | {key: value for key, value in text.items() if key in OF_THE_TEXT}


@pytest.mark.parametrize("name", EVERY)
def test_a_picture_without_tokens_is_refused(name):
    with pytest.raises(PromptError, match="|".join(MESSAGES)) as caught:
        lens_of(name).prompt(inputs=mixed(name, 1, 2))
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("name", [name for name in EVERY if name not in TWICE])
def test_tokens_without_a_picture_are_refused(name):
    with pytest.raises(PromptError, match="|".join(MESSAGES)):
        lens_of(name).prompt(inputs=mixed(name, 2, 1))


@pytest.mark.parametrize("name", EVERY)
def test_videos_without_tokens_are_refused_and_so_are_videos_of_who_takes_none(name):
    lens, films = lens_of(name), [[picture(56, 56)] * 4, [picture(56, 56, (3, 3, 9, 9))] * 4]
    if not (lens.adapter.takes_videos and lens.adapter.video_slot):
        with pytest.raises(PromptError, match="video"):
            lens.prompt("What happens?", videos=films)
        return
    one, two = (dict(lens.prompt("What happens?", videos=films[:n]).inputs) for n in (1, 2))
    for text, tensors in ((one, two), (two, one)):
        given = {key: (text if key in OF_THE_TEXT else tensors)[key] for key in tensors}
        with pytest.raises(PromptError) as caught:
            lens.prompt(inputs=given)
        assert len(str(caught.value).splitlines()) <= 3
