"""GLM-5: GLM-4.6V's layout; most decoder layers are linear attention, and several residual streams go through them."""

from .glm4v import Glm4v


class Glm5Next(Glm4v):
    """GLM-5 with pictures and videos. Its residual streams are refused where one is asked for."""

    family = "glm5_next"
    model_types = ("glm5_next",)
    has_bridge = False  # a bridge has one residual stream, and takes linear attention for attention
