"""DOT's systems: a teacher, and its student without it, with it, and with DOT.

    python -m okdph_jax.main --config=configs/dot.py:teacher,vgg13-vgg8 --workdir=runs/vgg13
    python -m okdph_jax.main --config=configs/dot.py:dot,vgg13-vgg8 --workdir=DIR \\
      --config.teacher=runs/vgg13

The argument is VARIANT,SYSTEM, dot,resnet32x4-resnet8x4 by default. VARIANT is one of

    teacher   trains the teacher, on labels alone
    ce        the student on labels alone; its distance from the teacher is only logged
    kd        the student with the teacher
    dot       the same by DOT (Zhao et al., ICCV 2023, arXiv:2307.08436)
    control   kd by plain SGD with DOT's steady-state weights of the two losses, and its pull
              of weight decay: wd (1 - momentum) / (1 - momentum + delta); these follow
              --config.momentum

metrics.jsonl has for every epoch `label_loss` and `teacher_loss`, both unweighted. Expected on
ImageNet (paper): dot 2.59 points above kd.

Every number is megvii-research/mdistiller's (configs/*/dot, engine/cfg.py, dataset/). SYSTEM is
one of those below. Tiny-ImageNet is a folder, --config.data.dir=DIR with DIR/train/CLASS/*.JPEG
and DIR/val/CLASS/*.JPEG: the archive's images/ folders have to go, and its val/ is to be sorted
by val_annotations.txt. How far the gradients of the two losses agree is logged with
--config.wrappers="({'name':'dot','delta':0.075},{'name':'gradient_cosine'})".
"""

from okdph_jax.experiment import paper

SYSTEMS = {  # name -> dataset, teacher, student
  "resnet32x4-resnet8x4": ("cifar100", "resnet32x4", "resnet8x4"),
  "vgg13-vgg8": ("cifar100", "vgg13", "vgg8"),
  "resnet32x4-shufflenet_v2": ("cifar100", "resnet32x4", "shufflenet_v2"),
  "resnet18_small-mobilenet_v2": ("tiny_imagenet", "resnet18_small", "mobilenet_v2"),
  "resnet18_small-shufflenet_v2": ("tiny_imagenet", "resnet18_small", "shufflenet_v2"),
  "resnet34-resnet18": ("imagenet2012", "resnet34", "resnet18"),
  "resnet50-mobilenet_v1": ("imagenet2012", "resnet50", "mobilenet_v1"),
}
CIFAR_KD = dict(task_weight=0.1, distill_weight=0.9, temperature=4.0)
IMAGENET_KD = dict(task_weight=0.5, distill_weight=0.5, temperature=1.0)


def schedule(epochs, milestones, batch_size, learning_rate, weight_decay):
  return dict(
    epochs=epochs,
    milestones=tuple(300 * epoch / epochs for epoch in milestones),  # scaled with epochs
    batch_size=batch_size,
    learning_rate=learning_rate,
    weight_decay=weight_decay,
  )


SETTINGS = {  # dataset -> view, KD's options, DOT's delta, the schedule
  "cifar100": ("hflip", CIFAR_KD, 0.075, schedule(240, (150, 180, 210), 64, 0.05, 5e-4)),
  "tiny_imagenet": (
    "rotate(20)|flip",
    CIFAR_KD,
    0.075,
    schedule(200, (60, 120, 160), 256, 0.2, 5e-4),
  ),
  "imagenet2012": ("flip", IMAGENET_KD, 0.09, schedule(100, (30, 60, 90), 512, 0.2, 1e-4)),
}
LEARNING_RATES = {("cifar100", "shufflenet_v2"): 0.01}  # where not the dataset's
METHODS = ("dot", "kd", "ce", "control", "teacher")  # the first is the default


ARGUMENT = dict(variant=METHODS, system=tuple(SYSTEMS))


def get_config(argument=""):
  options = paper.split(argument, **ARGUMENT)
  method = options["variant"]
  dataset, teacher, student = SYSTEMS[options["system"]]
  view, kd, delta, plan = SETTINGS[dataset]

  if method == "teacher":
    config = paper.recipe(dataset, "base", teacher)
  else:
    weights = dict(task_weight=1.0, distill_weight=0.0) if method == "ce" else {}
    config = paper.recipe(dataset, "kd", student, **kd | weights)
  config.views = (view,)
  config.update(plan)
  if method != "teacher":
    config.learning_rate = LEARNING_RATES.get((dataset, student), plan["learning_rate"])
  if method == "dot":
    config.wrappers = (dict(name="dot", delta=delta),)
  if method == "control":  # of 1 / (1 - momentum), what DOT's two momenta sum up to
    decay = 1 - config.get_ref("momentum")
    task, distill = decay / (decay + delta), decay / (decay - delta)
    config.method.task_weight = task * kd["task_weight"]
    config.method.distill_weight = distill * kd["distill_weight"]
    config.weight_decay = task * plan["weight_decay"]  # DOT has it beside the task's gradient

  if dataset == "tiny_imagenet":
    config.data.name = "folder"
    config.data.test = "val"
    config.data.image_size = 64
    config.data.normalise_as = "tiny_imagenet"
  if dataset == "imagenet2012":
    config.data.test = "validation"
    config.data.image_size = 224
    config.data.memory_limit = 0  # streamed
  return config
