"""tyler-hayes/Deep_SLDA at bc15797 (2022-08-29): the authors' code of SLDA."""

from pecft_jax.presets.record import Preset, ValueRange

PRESETS = {
  'slda': Preset(
    'slda', {'slda': {'shrinkage': 1e-4}}, None, None, epochs=1, batch_size=256, views=None,
    value_range=ValueRange((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    model='resnet18', data='ImageNet, 10 tasks of 100 classes',
    source='tyler-hayes/Deep_SLDA at bc15797',
    where={
      'experiment.py, arguments': ('batch_size', 'data', 'options.slda.shrinkage'),
      'experiment.py, get_feature_extraction_model': ('model',),
      'experiment.py, run_experiment': ('method', 'epochs'),
      'utils.py, get_imagenet_loader': ('value_range',),
    },
    departs=(
      'an epoch is the least there is, and is not trained',
      'the covariance is exact, there by the mean of the class before each example',
      'nothing is estimated on base classes beforehand, there a covariance with OAS shrinkage',
    ),
  ),
}  # fmt: skip
