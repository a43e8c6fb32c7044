"""What `compute` and `batch_norm_images` do to OKDPH's accuracy: 500 images, ResNet8.

    okdph sweep compute --root=runs/compute
    okdph report runs/compute runs/cifar10_small/okdph-seed* \\
      --baseline="okdph, batch_norm_images=None, compute=float32"

The runs to compare with have neither option: `okdph` of the sweep `cifar10_small`, where the
setting is the same, and run k has the same seed and draw of the images. On a CPU
`compute=bfloat16` rounds the operands of convolutions alone; on an accelerator activations are
bfloat16 too.
"""

SEEDS = 5
REPLICATE = ("seed", "data.seed")


def get_sweep():
  okdph = {"config": "limited:okdph,resnet8", "epochs": 100, "eval_every_epochs": 20}
  return {
    "bfloat16": okdph | {"compute": "bfloat16"},
    "batch_norm32": okdph | {"batch_norm_images": 32},
    "batch_norm16": okdph | {"batch_norm_images": 16},
  }
