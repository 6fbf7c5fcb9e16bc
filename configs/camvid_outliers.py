"""CamVid without pedestrians and bicyclists, with outlier exposure to drawn fragments.

Source: Hendrycks et al., "Deep Anomaly Detection with Outlier Exposure", ICLR 2019, arXiv 1812.04606, whose weight for
  images is 0.5. There, outliers come from other data sets; these fragments are drawn.
DATA: camvid
COMMAND: segjax train --config=camvid_outliers --workdir=runs/camvid_outliers
"""

from segjax.configs.camvid_unseen import get_config as unseen_classes


def get_config():
    """Returns the config of unseen classes with two fragments per training image."""
    config = unseen_classes()
    config.augment.outliers = 2
    config.objective.outlier_weight = 0.5
    return config
