"""Of `vlmeval/smp`: what the base class imports. `parse_file` is VLMEvalKit's, without addresses and base64."""

import mimetypes
import os.path as osp


def parse_file(s):
    if osp.exists(s) and s != ".":
        assert osp.isfile(s)
        suffix = osp.splitext(s)[1].lower()
        if suffix == ".webp":
            return ("image/webp", s)
        mime = mimetypes.types_map.get(suffix, "unknown")
        return (mime, s)
    return (None, s)


def concat_images_vlmeval(*arguments, **options):
    raise NotImplementedError


encode_image_to_base64 = listinstr = concat_images_vlmeval
