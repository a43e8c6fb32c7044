"""Distil from a torchvision or timm ResNet.

Where you have PyTorch, fine-tune a ResNet-18, -34 or -50 on your images and save its weights:

    import safetensors.torch, timm
    model = timm.create_model("resnet18", pretrained=True, num_classes=10)
    ...
    safetensors.torch.save_file(model.state_dict(), "teacher.safetensors")

An ONNX file of the network works as well. Here a small student learns from it, with the method
`kd`:

    python examples/pretrained_teacher.py

or, with the images in `pictures/` as `own_images.py` writes them,

    okdph train --config=digits:kd,resnet8 --config.teacher=teacher.safetensors \\
      --config.teacher_network=resnet18 --config.data.name=folder --config.data.dir=pictures \\
      --config.data.image_size=64 --workdir=runs/taught

The teacher must have the same classes in the same order: alphabetical, as in torchvision's
`ImageFolder`. It sees the student's augmented images, normalised as in torchvision and timm
(with ImageNet's mean and standard deviation); grey images become three equal channels. Reading
the files needs `pip install '.[export]'` in a checkout.
"""

import okdph_jax

TEACHER, ARCHITECTURE = "teacher.safetensors", "resnet18"
EPOCHS, IMAGE_SIZE = 20, 64

config = okdph_jax.load_config("digits:kd,resnet8")
config.epochs = EPOCHS
config.teacher, config.teacher_network = TEACHER, ARCHITECTURE
config.data.name, config.data.dir, config.data.image_size = "folder", "pictures", IMAGE_SIZE
config.views = ("any(crop(8), rotate(15), cutout(20))",)
config.method.task_weight, config.method.distill_weight = 0.5, 0.5
config.method.temperature = 4.0
result = okdph_jax.fit(config, "runs/taught")
print(result.best_single)

# How far the student is from the teacher, and from the labels, over training.
for line in result.run.lines:
  print(line["epoch"], line["losses"]["teacher_loss"], line["losses"]["label_loss"])
