"""DeepSeek-VL: one square a picture, which was resized to fit and padded to a square."""

from lmm_lens.prompts.spans import Box

from .picture import Size
from .square import Square, fitted


class DeepseekVL(Square):
    """DeepSeek-VL with one tower."""

    family = "deepseek_vl"
    model_types = ("deepseek_vl",)

    def region(self, size: Size) -> Box:
        return fitted(self.image_processor.size["height"], size, self.image_processor.min_size)


class DeepseekVLHybrid(DeepseekVL):
    """DeepSeek-VL with a second tower of high resolution; the picture is padded at that resolution.

    The second tower's convolutions look a little beyond a token's box; the box is what the first tower sees.
    """

    family = "deepseek_vl_hybrid"
    model_types = ("deepseek_vl_hybrid",)

    def region(self, size: Size) -> Box:
        return fitted(self.image_processor.high_res_size["height"], size, self.image_processor.min_size)
