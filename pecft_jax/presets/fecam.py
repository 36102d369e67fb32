"""dipamgoswami/FeCAM at d2479b7 (2024-05-31): the authors' code of FeCAM, on ViTs."""

from pecft_jax.presets.record import UNIT_RANGE, Preset

PRESETS = {
  'fecam': Preset(
    'fecam',
    {
      'fecam': {
        'features': 'unit', 'covariance': 'full', 'diagonal': 1.0, 'off_diagonal': 0.0,
        'normalised': True,
      },
    },
    None, None, epochs=1, batch_size=512, views=None, value_range=UNIT_RANGE,
    model='vit_base_patch16_224_in21k', data='CIFAR-100, 10 tasks of 10 classes, natural order',
    source='dipamgoswami/FeCAM at d2479b7',
    where={
      'FeCAM_vit_cifar100.py': ('method', 'epochs', 'batch_size', 'value_range', 'model', 'data'),
      'FeCAM_vit_cifar100.py, shrink_cov': (
        'options.fecam.diagonal', 'options.fecam.off_diagonal',
      ),
      'FeCAM_vit_cifar100.py, normalize_cov and the loop over tasks': (
        'options.fecam.normalised', 'options.fecam.features', 'options.fecam.covariance',
      ),
    },
    departs=('an epoch is the least there is, and is not trained',),
  ),
}  # fmt: skip
