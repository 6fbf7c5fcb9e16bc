"""Numbers of Lin et al. (Focal Loss for Dense Object Detection, arXiv 1708.02002): COCO AP of RetinaNet in %."""

# α → AP; γ = 0, prior bias π = 0.01.
TABLE_1A = {0.1: 0.0, 0.25: 10.8, 0.5: 30.2, 0.75: 31.1, 0.9: 30.8, 0.99: 28.7, 0.999: 25.1}

# γ → the best α, and its AP.
TABLE_1B = {
    0.0: ("0.75", 31.1),
    0.1: ("0.75", 31.4),
    0.2: ("0.75", 31.9),
    0.5: ("0.5", 32.9),
    1.0: ("0.25", 33.7),
    2.0: ("0.25", 34.0),
    5.0: ("0.25", 32.2),
}

# Table 1d: mining method → AP of its best batch size and NMS threshold, ResNet-101.
TABLE_1D = {"OHEM": 32.8, "OHEM 1:3": 31.1, "FL": 36.0}

# The same for OHEM by boxes per image, at an NMS threshold of 0.5.
OHEM_BY_BATCH = {128: 32.8, 256: 31.0, 512: 27.6}

# Table 3 of appendix A: loss, γ, β → AP.
TABLE_FL_STAR = {("CE", 0.0, None): 31.1, ("FL", 2.0, None): 34.0, ("FL*", 2.0, 1.0): 33.8, ("FL*", 4.0, 0.0): 33.9}


def percent(value: float | None) -> str | None:
    """Returns the AP as in the paper, with % to distinguish it from ours.

    >>> percent(34.0), percent(None)
    ('34.0 %', None)
    """
    return None if value is None else f"{value:.1f} %"
