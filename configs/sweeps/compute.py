"""What `compute` and `batch_norm_images` do to OKDPH's accuracy: 500 images, ResNet8.

    okdph sweep compute --root=runs/compute
    okdph report runs/compute --baseline="okdph, batch_norm_images=None, compute=float32"

The setting, seeds and draws of the images are those of `okdph` in the sweep `cifar10_small`,
which `float32` repeats. On a CPU `compute=bfloat16` rounds the operands of convolutions alone;
on an accelerator activations are bfloat16 too.
"""

SEEDS = 5
REPLICATE = ("seed", "data.seed")


def get_sweep():
  okdph = {"config": "limited:okdph,resnet8", "epochs": 100, "eval_every_epochs": 20}
  return {
    "float32": okdph,
    "bfloat16": okdph | {"compute": "bfloat16"},
    "batch_norm32": okdph | {"batch_norm_images": 32},
    "batch_norm16": okdph | {"batch_norm_images": 16},
  }
