"""Learning curves of one run."""

from pathlib import Path


def curves(lines, out):
  """Draws accuracy over epochs, a line per reader; dashed on validation, if there is one.

  lines: what `logbook.lines` reads. The picture's format follows the ending of `out`.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(7, 4.2), layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  epochs = [line["epoch"] for line in lines]
  for split, dashes in (("test", "-"), ("validation", "--")):
    for i, reader in enumerate(lines[-1]["accuracy"].get(split) or {}):
      percent = [100 * line["accuracy"][split][reader] for line in lines]
      style = dict(color=f"C{i % 10}", linestyle=dashes, linewidth=1, marker=".", markersize=3)
      axes.plot(epochs, percent, label=f"{reader}, {split}", **style)
  axes.set(xlabel="epoch", ylabel="accuracy [%]")
  axes.grid(alpha=0.3)
  axes.legend(fontsize="small", loc="lower right")
  Path(out).parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(out, dpi=150)
