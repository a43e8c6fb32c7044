#!/bin/sh
# Draws the figures of flatness.md and self-distillation.md, then their tables:
#
#   docs/flatness.sh [ROOT [SELF]]
#
# ROOT has the runs of `okdph sweep cifar10_small`, SELF those of `okdph sweep self_distillation`.
# The landscape also needs same_init/dml-seed42 beside ROOT; flatness.md has the command.
# A figure whose .json is in docs/figures is not drawn again: first remove those that you want
# anew. All of them take an hour on two cores.
set -ef
root=${1:-runs/cifar10_small} self=${2:-runs/self_distillation}
docs=$(dirname "$0")
four="--workdir=$root/base3-seed* --workdir=$root/okdph-seed*"
four="$four --workdir=$root/okdph-release-seed* --workdir=$root/dml-seed*"
students=--readers=student_0,student_1,student_2

draw() {  # draw FIGURE ANALYSIS OPTION...
  figure=$1 analysis=$2 out=${TMPDIR:-/tmp}/okdph-flatness/$1  # where it goes on if interrupted
  shift 2
  test -e "$docs/figures/$figure.json" && return
  echo "# $figure"
  okdph analysis "$analysis" --out="$out" "$@"
  for kind in json png; do cp "$out/$analysis.$kind" "$docs/figures/$figure.$kind"; done
}

draw barrier barrier $four --images=250 --points=7 --snapshots=6 --baseline=base3
draw landscape landscape --workdir=$root/okdph-seed42 --workdir=${root%/*}/same_init/dml-seed42 \
  --size=21 --images=250 --statistics-images=250  # of the run in flatness.md
draw noise noise $four $students --baseline=base3
draw sharpness sharpness $four $students --images=250 --rho 0.01 --baseline=base3
draw correlation sharpness --workdir=$root/*-seed45 --workdir=$root/*-seed46 $students \
  --images=250 --rho 0.01
draw hessian hessian $four --readers=student_0 --images=100 --probes=10 --baseline=base3
draw random-plane landscape --plane=random --workdir=$root/okdph-seed42 \
  --workdir=$root/base3-seed42 --workdir=$root/dml-seed42 --readers=student_0 --size=21 \
  --images=100 --statistics-images=100
draw pac_bayes pac_bayes $four --readers=student_0 --points=3 --images=200 --batch=100 \
  --baseline=base3
draw ablation ablation --workdir=$self --readers=student_0 --images=100 --baseline=base1
draw generations hessian --workdir=$self/base1-seed* --workdir=$self/born-seed* \
  --readers=student_0 --images=100 --probes=10 --baseline=base1
draw dot dot --workdir=$self/labels-seed* --workdir=$self/by-ensemble-seed* \
  --workdir=$self/dot-seed* --images=500 --baseline=by-ensemble
draw distilled landscape --plane=random --workdir=$self/labels-seed42 \
  --workdir=$self/by-ensemble-seed42 --workdir=$self/dot-seed42 --size=21 --images=100 \
  --statistics-images=100
python "$docs/build.py"
