"""A tokenizer that reads any text, byte by byte, and knows the special tokens it is told of: for real processors."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def byte_tokenizer(*specials: str, **named: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges.

    Args:
        *specials: further special tokens, ids from 260 on in this order.
        **named: as transformers names them, as in `image_token="<image>"`; bos, eos, pad and unk have defaults.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", **named}
    core.add_special_tokens([*dict.fromkeys([*named.values(), *specials])])
    known = {"bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token"}
    extra = {name: token for name, token in named.items() if name not in known}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        extra_special_tokens=extra,
        padding_side="left",
        **{name: token for name, token in named.items() if name in known},
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(specials)}) if specials else None
    return tokenizer
