#!/usr/bin/env bash
# Makes the pocket model from nothing, with fixed seeds and the training commands of this repository. Every step goes
# on where it was stopped; run it from the root of the repository, again if it was killed.
#
#     bash examples/pocket/make_pocket.sh
set -euo pipefail

WORK=pocket_work  # the recipes name it too; make it a link to put it elsewhere
PYTHON=${PYTHON:-python}
VQ_STEPS=${VQ_STEPS:-16500}
STAGES=${STAGES:-96:40000 128:270000}  # base size, and scenes of text to image
PAIRS=${PAIRS:-100000}  # scenes of two objects, of which most is to be learnt: what is where and what belongs together
TASKS=${TASKS:-segmentation:16000 depth:8000 normal:4000 detection:16000 control:14000 edit:30000 question:20000
    conversation:6000 caption:8000}  # with samples of each
NUM_PROCESSES=${NUM_PROCESSES:-2}  # of the last and longest training
POCKET=examples/pocket

step() {
    local began=$SECONDS
    echo "== $*"
    "$PYTHON" "$@"
    echo "== $((SECONDS - began)) s"
}

step $POCKET/train_vq.py --output "$WORK/vq" --max_train_steps "$VQ_STEPS"
if [ ! -f "$WORK/start/model_index.json" ]; then
    step $POCKET/make_model.py --vqvae "$WORK/vq/vqvae" --output "$WORK/start"
fi
for stage in $STAGES; do
    step $POCKET/make_data.py --pipeline "$WORK/start" --output "$WORK/data" --base_size "${stage%:*}" \
        --num_samples "${stage#*:}" --vqvae_dtype bfloat16
done
step examples/training/train_fp_sft.py --config $POCKET/recipes/fp_sft.yaml
for task in $TASKS; do
    step $POCKET/make_data.py --pipeline "$WORK/start" --output "$WORK/data" --base_size 128 --tasks "${task%:*}" \
        --first 1000000 --num_samples "${task#*:}" --vqvae_dtype bfloat16
done
step $POCKET/make_data.py --pipeline "$WORK/start" --output "$WORK/pairs" --base_size 128 --num_things 2 \
    --first 2000000 --num_samples "$PAIRS" --vqvae_dtype bfloat16
OMP_NUM_THREADS=1 step -m torch.distributed.run --nproc_per_node "$NUM_PROCESSES" \
    examples/training/train_omni_sft.py --config $POCKET/recipes/omni_sft.yaml \
    --train_batch_size $((64 / NUM_PROCESSES))
step $POCKET/finish_model.py --pipeline "$WORK/omni_sft/pipeline" --output "$WORK/pocket"
step $POCKET/evaluate.py --pipeline "$WORK/pocket" --output "$WORK/figures" --judge_only
step $POCKET/evaluate.py --pipeline "$WORK/pocket" --output "$WORK/figures" --tasks --num_fid_images 500
step $POCKET/evaluate.py --pipeline "$WORK/pocket" --output "$WORK/figures" --split held_out
step $POCKET/finish_model.py --pipeline "$WORK/omni_sft/pipeline" --output "$WORK/pocket" --figures "$WORK/figures" \
    --vq_figures "$WORK/vq/figures.jsonl" \
    --training "$WORK"/fp_sft/{96,128}/pipeline/training.json "$WORK/omni_sft/pipeline/training.json"
